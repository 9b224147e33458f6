"""Many unauthenticated senders take no memory and no files that good senders need."""

import hmac
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from relay.receiver.budget import Budget
from relay.receiver.http_protocol import MAX_HEADERS
from tests.harness.fakes import SegmentServer
from tests.harness.processes import (
    PATH,
    PYTHON,
    ForwarderProcess,
    RelayProcess,
    closed_port,
    within,
)
from tests.harness.stores import pending
from tests.harness.webhooks import opened

NOBODY = "http://127.0.0.1:1"
MEBIBYTE = 2**20
KEY = "a-signing-key-for-the-tests"
SENT = b"1772366400"
MOST_FILES = 300


def delivered(event_id: str) -> bytes:
    webhook = {"object_type": "email", "metric": "delivered", "event_id": event_id}
    return json.dumps({**webhook, "data": {"identifiers": {"id": "42"}}}).encode()


def signed(body: bytes) -> dict[str, str]:
    signature = hmac.new(KEY.encode(), b"v0:%b:%b" % (SENT, body), "sha256").hexdigest()
    return {"X-CIO-Timestamp": SENT.decode(), "X-CIO-Signature": signature}


class WatchedRelay(RelayProcess):
    @property
    def pid(self) -> int:
        return self._process.pid

    def descriptors(self) -> int:
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def most_memory(self) -> int:
        """Return the largest resident memory it ever had, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) * 1024

    def metric(self, name: str) -> float:
        with self.connect() as reader:
            reader.sendall(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
            page = b"".join(iter(lambda: reader.recv(65_536), b"")).decode()
        (value,) = (row.split()[1] for row in page.splitlines() if row.startswith(f"{name} "))
        return float(value)


class ConfinedRelay(WatchedRelay):
    """A relay that may have few files open."""

    def _program(self) -> list[str]:
        confine = f'ulimit -n {MOST_FILES} && exec "$@"'
        return ["/bin/sh", "-c", confine, "sh", *PYTHON]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[WatchedRelay]:
    outbox = tmp_path / "relay.db"
    with WatchedRelay(outbox, NOBODY, RELAY_CUSTOMERIO_SIGNING_KEY=KEY) as relay:
        yield relay


def begin(sender: socket.socket, *headers: str) -> None:
    lines = ["POST /webhooks/customerio HTTP/1.1", "Host: relay", *headers, "", ""]
    sender.sendall("\r\n".join(lines).encode())


def push(sender: socket.socket, size: int) -> None:
    """Send so much of a body, or as much as relay reads."""
    sender.settimeout(5)
    with suppress(OSError):
        sender.sendall(b"x" * size)


def status(sender: socket.socket) -> bytes:
    sender.settimeout(30)
    with suppress(ConnectionResetError):
        return sender.recv(12)[9:]
    return b""


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("X-CIO-Timestamp: 1772366400",),
        ("X-CIO-Timestamp: 1772366400", "X-CIO-Signature: abc"),
        ("X-CIO-Timestamp: now", f"X-CIO-Signature: {'0' * 64}"),
    ],
)
def test_no_body_is_read_without_a_well_formed_signature(
    relay: WatchedRelay, headers: tuple[str, ...]
) -> None:
    with relay.connect() as sender:
        begin(sender, "Content-Length: 1000000", *headers)

        assert status(sender) == b"401"


def test_bodies_of_unauthenticated_senders_take_bounded_memory(relay: WatchedRelay) -> None:
    """Each sends a well-formed signature and all but the end of a large body."""
    forged = ("X-CIO-Timestamp: 1772366400", f"X-CIO-Signature: {'0' * 64}")
    before = relay.most_memory()
    with ExitStack() as stack:
        senders = [stack.enter_context(relay.connect()) for _ in range(300)]
        for sender in senders:
            begin(sender, f"Content-Length: {MEBIBYTE}", *forged)
            push(sender, MEBIBYTE - 1)
            relay.ask("GET", "/healthz")  # so that what is measured is held, not just passing
        body = delivered("event-1")
        well = relay.ask("POST", "/webhooks/customerio", body, signed(body))
        turned_out = status(senders[0])

    assert well.content["status"] == "accepted"
    assert turned_out == b"503"
    assert relay.most_memory() - before < 150 * MEBIBYTE


def test_heads_of_unauthenticated_senders_take_bounded_memory(relay: WatchedRelay) -> None:
    before = relay.most_memory()
    with ExitStack() as stack:
        senders = [stack.enter_context(relay.connect()) for _ in range(500)]
        for sender in senders:
            sender.sendall(f"POST {PATH} HTTP/1.1\r\nX: ".encode())
            push(sender, 60_000)
        well = relay.post(opened("mail-1"))
        first = status(senders[0])

    assert well.content["status"] == "accepted"
    assert first == b""
    assert relay.most_memory() - before < 60 * MEBIBYTE


def test_the_number_of_headers_is_limited(relay: WatchedRelay) -> None:
    most = {f"x-{number}": "1" for number in range(MAX_HEADERS - 3)}
    within_it = relay.post(opened("mail-1"), most)
    with relay.connect() as sender:
        sender.sendall(b"GET /healthz HTTP/1.1\r\n" + b"X: 1\r\n" * (MAX_HEADERS + 1) + b"\r\n")
        beyond = status(sender)

    assert within_it.content["status"] == "accepted"
    assert beyond == b"400"


def test_idle_connections_leave_files_for_everything_else(tmp_path: Path) -> None:
    replies = []
    with SegmentServer() as server, ConfinedRelay(tmp_path / "relay.db", server.url) as relay:
        most = []
        with ExitStack() as stack:
            for number in range(25):
                for _ in range(40):
                    stack.enter_context(relay.connect())
                replies.append(relay.post(opened(f"mail-{number}")))
                most.append(relay.descriptors())
            shed = relay.metric("relay_connections_shed_total")
        forwarded = within(30, lambda: pending(relay.store) == 0)
        lines = [line for line in relay.log() if line["event"] == "http.connection_shed"]

    assert [reply.content["status"] for reply in replies] == ["accepted"] * 25
    assert max(most) < MOST_FILES - 50
    assert shed > 500
    assert 1 <= len(lines) < 10
    assert forwarded


def test_the_limit_of_open_files_is_raised_as_far_as_allowed(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with WatchedRelay(tmp_path / "relay.db", NOBODY) as relay:
            limits = [
                resource.prlimit(process, resource.RLIMIT_NOFILE)
                for process in (relay.pid, relay.forwarder())
            ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert {soft for soft, _ in limits} == {min(hard, 2**16) if hard > 0 else 2**16}


class ToldForwarder(ForwarderProcess):
    def _command(self) -> list[str]:
        return ["forward", "--metrics-port", str(self.port)]


def test_idle_connections_do_not_keep_a_forwarder_from_showing_its_metrics(tmp_path: Path) -> None:
    outbox = tmp_path / "relay.db"
    with RelayProcess(outbox, NOBODY, options=["--no-forward"]):
        pass
    with ToldForwarder(outbox, NOBODY, port=closed_port()) as forwarder, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(forwarder.connect())
        replies = [forwarder.ask("GET", "/healthz") for _ in range(3)]

    assert [reply.status for reply in replies] == [200] * 3


class FakeHolder:
    def __init__(self) -> None:
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True


def test_the_longest_holder_is_evicted_first() -> None:
    first, second, third = holders = [FakeHolder() for _ in range(3)]
    budget = Budget(10)
    budget.hold(first, 2)
    budget.hold(second, 6)
    budget.release(first)
    budget.hold(first, 4)
    full = [holder.is_evicted for holder in holders]
    budget.hold(third, 5)
    over = [holder.is_evicted for holder in holders]
    budget.hold(third, 11)

    assert full == [False] * 3
    assert over == [False, True, False]
    assert [holder.is_evicted for holder in holders] == [True] * 3

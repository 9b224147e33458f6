"""relay is stopped: every request that the kernel has accepted by then is answered."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import count
from pathlib import Path

import pytest

from tests.harness.processes import (
    PATH,
    RelayProcess,
    Reply,
    WholeConnection,
    ask,
    closed_port,
    read_reply,
    within,
)
from tests.harness.stores import stored
from tests.harness.webhooks import opened

NOBODY = "http://127.0.0.1:1"


def request(mail: str) -> bytes:
    body = opened(mail)
    head = f"POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def answer_to(sender: socket.socket) -> Reply:
    response = HTTPResponse(sender)
    response.begin()
    return read_reply(response)


class StoppableRelay(RelayProcess):
    """A relay that can be suspended, as on a busy machine."""

    def suspend(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def is_running(self) -> bool:
        return self._process.poll() is None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self.suspend()
        yield
        self.resume()

    def is_leaving(self) -> bool:
        """Return whether it has begun to end."""
        return self.ask("GET", "/healthz").headers.get("connection") == "close"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[StoppableRelay]:
    with StoppableRelay(tmp_path / "relay.db", NOBODY) as relay:
        yield relay


@pytest.mark.parametrize("sent", [0, 1, 20, -20])
def test_a_request_sent_as_the_end_begins_is_answered(relay: StoppableRelay, sent: int) -> None:
    """On a connection that is open: all of it, or the rest of its head or body."""
    whole = request("mail-1")
    with relay.connect() as sender:
        sender.sendall(whole[:sent])
        relay.ask("GET", "/healthz")  # by now the first part has been read
        with relay.suspended():
            relay.terminate()
            sender.sendall(whole[len(whole[:sent]) :])
        reply = answer_to(sender)
        after = sender.recv(1)

    assert reply.content["status"] == "accepted"
    assert after == b""
    assert relay.wait(20) == 0


def test_a_request_on_a_connection_that_waits_to_be_accepted_is_answered(
    relay: StoppableRelay,
) -> None:
    with relay.suspended():
        relay.terminate()
        senders = [relay.connect() for _ in range(300)]
        for place, sender in enumerate(senders):
            sender.sendall(request(f"mail-{place}"))
    replies = [answer_to(sender) for sender in senders]
    for sender in senders:
        sender.close()

    assert {reply.content["status"] for reply in replies} == {"accepted"}
    assert relay.wait(20) == 0
    assert len(stored(relay.outbox)) == 300


def test_a_request_sent_a_moment_after_the_end_has_begun_is_answered(
    relay: StoppableRelay,
) -> None:
    with relay.connect() as fresh, closing(WholeConnection("127.0.0.1", relay.port)) as kept:
        first = ask(kept, "POST", PATH, opened("mail-1"))
        relay.terminate()
        assert within(20, relay.is_leaving)
        assert kept.sock
        with relay.suspended():  # however long it then takes to read them
            fresh.sendall(request("mail-2"))
            kept.sock.sendall(request("mail-3"))
        replies = [answer_to(fresh), answer_to(kept.sock)]

    assert "connection" not in first.headers
    assert [reply.content["status"] for reply in replies] == ["accepted"] * 2
    assert [reply.headers["connection"] for reply in replies] == ["close"] * 2
    assert relay.wait(20) == 0


def test_pipelined_requests_are_all_answered_at_the_end(relay: StoppableRelay) -> None:
    healthz = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
    with relay.connect() as sender:
        relay.ask("GET", "/healthz")
        with relay.suspended():
            relay.terminate()
            sender.sendall(request("mail-1") + healthz + request("mail-2") + healthz)
        answers = b"".join(iter(lambda: sender.recv(65_536), b""))

    assert answers.count(b"HTTP/1.1 200 ") == 4
    assert answers.count(b"connection: close") <= 1  # none if the signal was seen later
    assert relay.wait(20) == 0


def test_a_connection_without_a_request_does_not_delay_the_end(relay: StoppableRelay) -> None:
    with relay.connect() as silent, relay.connect() as halting:
        halting.sendall(b"POST /webhooks/ve")
        relay.ask("GET", "/healthz")
        relay.terminate()
        code = relay.wait(20)
        ends = [silent.recv(1), halting.recv(1)]

    assert code == 0
    assert ends == [b"", b""]


@dataclass
class Senders:
    """Senders that post on and on, whether relay is there or not.

    Attributes:
        answered: webhooks that got a 200.
        lost: what became of those that were sent on an open connection and got no answer.
    """

    port: int
    answered: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def posting(self, once: int, kept: int) -> Iterator[None]:
        """Post, some with a connection for each webhook, some on one that they keep."""
        threads = [threading.Thread(target=self._post, args=(False,)) for _ in range(once)]
        threads += [threading.Thread(target=self._post, args=(True,)) for _ in range(kept)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()

    def _post(self, keep: bool) -> None:  # noqa: FBT001 (the target of a thread)
        while not self.over.is_set():
            connection = WholeConnection("127.0.0.1", self.port, timeout=30)
            with closing(connection), suppress(ConnectionRefusedError):
                connection.connect()
                while self._post_one(connection) and keep and not self.over.is_set():
                    pass

    def _post_one(self, connection: HTTPConnection) -> bool:
        """Return whether the connection stays open."""
        mail = f"mail-{next(self.numbers)}"
        try:
            reply = ask(connection, "POST", PATH, opened(mail))
        except (OSError, HTTPException) as error:
            self.lost.append(f"{mail}: {error!r}")
            return False
        assert reply.status == 200
        self.answered.append(mail)
        return reply.headers.get("connection") != "close"

    def await_answers(self, more: int) -> None:
        enough = len(self.answered) + more
        assert within(60, lambda: len(self.answered) >= enough)


@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("machine", ["fast", "slow"])
def test_restarts_leave_no_request_without_an_answer(
    tmp_path: Path, machine: str, times: Callable[[int, int], int]
) -> None:
    outbox, port = tmp_path / "relay.db", closed_port()
    senders = Senders(port)
    codes = []
    with senders.posting(once=12, kept=4):
        for _ in range(times(4, 30)):
            with StoppableRelay(outbox, NOBODY, port=port) as relay:
                senders.await_answers(200)
                relay.terminate()
                while machine == "slow" and relay.is_running():
                    with relay.suspended():
                        time.sleep(0.05)
                    time.sleep(0.02)
                codes.append(relay.wait(20))
        senders.over.set()

    assert senders.lost == []
    assert set(codes) == {0}
    assert len(stored(outbox)) == len(senders.answered)

import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.harness.fakes import SegmentServer
from tests.harness.processes import PATH, RelayProcess, Reply, ask, within
from tests.harness.stores import pending
from tests.harness.webhooks import opened

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: relay\r\n".encode()
LENGTH = b"Content-Length: 9999\r\n\r\n{"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERED = HEAD + b"Content-Length: 2\r\n\r\n{}"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: relay\r\n"

IDLE = "nothing"
UNREAD = "answers, in reading them"
# What each kind of slow sender begins with, what it sends again and again, and its answer, if any.
SLOW = {
    IDLE: (b"", b"", ""),
    "one byte": (b"P", b"", ""),
    "blank lines": (b"\r\n", b"\r\n", ""),
    "a head": (HEAD + b"X: ", b"x", ""),
    "a head after an answer": (ANSWERED + b"POST ", b"", "200"),
    "blank lines after an answer": (ANSWERED, b"\r\n", "200"),
    "a body": (HEAD + LENGTH, b" ", "408"),
    "a body in chunks": (HEAD + CHUNKED, b"1\r\n \r\n", "408"),
    "a trailer": (HEAD + CHUNKED + b"2\r\n{}\r\n0\r\nX: ", b"x", "408"),
    "a body with a wrong secret": (HEAD.replace(b" HTTP", b"x HTTP") + LENGTH, b" ", "401"),
    "a body to nowhere": (b"POST /nowhere HTTP/1.1\r\nHost: relay\r\n" + LENGTH, b" ", "404"),
    "a body that nobody reads": (METRICS + LENGTH, b" ", "200"),
    UNREAD: (METRICS + b"\r\n", b"", "200"),
}
DISCONNECTED_WITHIN_SECONDS = 20


class WatchedRelay(RelayProcess):
    """A relay whose files, memory and connections are watched from outside."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def descriptors(self) -> int:
        """Return how many files and connections it has open."""
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def memory(self) -> int:
        """Return its resident memory, in MiB."""
        (line,) = (
            line
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        return int(line.split()[1]) // 1024

    def connected(self) -> set[int]:
        """Return the ports of the clients whose connections it has not closed, accepted or not."""
        _, *rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
        return {
            int(remote.rpartition(":")[2], 16)
            for _, local, remote, *more in rows
            if int(local.rpartition(":")[2], 16) == self.port and int(more[6])  # its inode
        }


@dataclass
class Sender:
    connection: socket.socket
    kind: str
    again: bytes
    stayed: bool = False

    @property
    def port(self) -> int:
        port: int = self.connection.getsockname()[1]
        return port

    def answer(self) -> str:
        """Return the status of its answer; empty if there is none."""
        with suppress(BlockingIOError, ConnectionResetError):
            return self.connection.recv(12)[9:].decode()
        return ""


@dataclass
class Scene:
    """What happened to slow senders, who stayed as long as they could, and to good ones.

    Attributes:
        seconds: that each good webhook took.
        descriptors: at first and at the end, when the slow ones still had not hung up.
        memory: likewise, in MiB.
    """

    senders: list[Sender]
    replies: list[Reply] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    good_seconds: float = 0
    descriptors: list[int] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


@pytest.fixture(scope="module")
def most_files() -> Iterator[int]:
    """Let processes open as many files as this system allows; yield how many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(before[1], 20_000) if before[1] > 0 else 20_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(scope="module")
def scene(
    most_files: int, times: Callable[[int, int], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    """Run all kinds at once: each takes ten seconds to be disconnected."""
    counts = {kind: times(38, 100) for kind in SLOW}
    counts |= {IDLE: min(times(38, 2_000), most_files // 2), UNREAD: 1}
    outbox = tmp_path_factory.mktemp("slow") / "relay.db"
    with SegmentServer() as server, WatchedRelay(outbox, server.url) as relay, ExitStack() as stack:
        relay.post(opened("first"))
        scene = Scene([], descriptors=[relay.descriptors()], memory=[relay.memory()])
        began = time.monotonic()
        for kind, (begin, again, _) in SLOW.items():
            for _ in range(counts[kind]):
                connection = stack.enter_context(relay.connect())
                connection.settimeout(0)
                with suppress(BlockingIOError):
                    connection.send(begin)
                scene.senders.append(Sender(connection, kind, again))
        with ThreadPoolExecutor(6) as pool:
            slow = pool.submit(_hold_on, relay, scene, began)
            good = [pool.submit(_post_well, relay, scene, name) for name in "abcd"]
            for posting in good:
                posting.result()
            scene.good_seconds = time.monotonic() - began
            pool.submit(_ask_on, scene.senders[-1].connection)
            slow.result()
        within(3, lambda: relay.descriptors() <= scene.descriptors[0])
        scene.descriptors.append(relay.descriptors())
        scene.memory.append(relay.memory())
        yield scene


def _hold_on(relay: WatchedRelay, scene: Scene, began: float) -> None:
    staying, seen = scene.senders, set[int]()
    while staying and time.monotonic() - began < DISCONNECTED_WITHIN_SECONDS:
        for sender in staying:
            with suppress(BlockingIOError, ConnectionError):
                sender.connection.send(sender.again)
        time.sleep(0.5)
        connected = relay.connected()
        seen |= connected
        staying = [one for one in staying if one.port in connected or one.port not in seen]
    for sender in staying:
        sender.stayed = True


def _ask_on(connection: socket.socket) -> None:
    """Send so many requests that the answers no longer fit into the socket's buffers."""
    with suppress(OSError):
        for _ in range(5_000):
            connection.send(METRICS + b"\r\n")
            time.sleep(0.002)


def _post_well(relay: RelayProcess, scene: Scene, name: str) -> None:
    for number in range(50):
        began = time.monotonic()
        scene.replies.append(relay.post(opened(f"{name}{number}")))
        scene.seconds.append(time.monotonic() - began)


@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_sender_is_answered_and_disconnected(scene: Scene, kind: str) -> None:
    senders = [sender for sender in scene.senders if sender.kind == kind]

    assert senders
    assert [sender.port for sender in senders if sender.stayed] == []
    assert {sender.answer() for sender in senders} == {SLOW[kind][2]}


def test_good_senders_do_not_wait_for_slow_ones(scene: Scene) -> None:
    ordered = sorted(scene.seconds)
    median, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]

    assert {reply.content["status"] for reply in scene.replies} == {"accepted"}
    assert len(scene.replies) == 200
    assert scene.good_seconds < 20, f"median {median:.3f} s, 99th percentile {p99:.3f} s"


def test_files_and_memory_of_slow_senders_are_freed(scene: Scene) -> None:
    before, after = scene.descriptors
    memory_before, memory_after = scene.memory

    assert after <= before
    assert memory_after - memory_before < 50


def _hung_up(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_more_connections_than_files_are_shed_until_they_go(tmp_path: Path) -> None:
    replies: list[Reply] = []

    def posted(mail: str) -> bool:
        with suppress(OSError, HTTPException):
            replies.append(relay.post(opened(mail)))
        return len(replies) == 3

    with SegmentServer() as server, WatchedRelay(tmp_path / "relay.db", server.url) as relay:
        for process in (relay.pid, relay.forwarder()):
            _, hard = resource.prlimit(process, resource.RLIMIT_NOFILE)
            resource.prlimit(process, resource.RLIMIT_NOFILE, (256, hard))
        with ExitStack() as stack:
            early = stack.enter_context(closing(relay.connection("127.0.0.1", relay.port)))
            replies.append(ask(early, "POST", PATH, opened("first")))
            many = [stack.enter_context(relay.connect()) for _ in range(400)]
            full = within(5, lambda: relay.descriptors() == 256)
            replies.append(ask(early, "POST", PATH, opened("second")))
            within(20, lambda: sum(map(_hung_up, many)) > 100)
            shed = [one for one in many if _hung_up(one)]
        recovered = within(20, lambda: posted("third"))
        forwarded = within(20, lambda: pending(relay.store) == 0)

    assert full
    assert len(shed) > 100
    assert recovered
    assert [reply.content["status"] for reply in replies] == ["accepted"] * 3
    assert forwarded
    assert len(server.accepted) == 3

"""A relay with a clock that a test moves, and a road to Segment on which requests fail."""

import json
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from relay.destinations.segment import Segment
from relay.events import EmailEvent
from relay.forwarder.forwarder import Forwarder
from relay.outbox.entries import Arrival
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from relay.sources.vero import Vero, VeroSettings
from tests.harness.fakes import Clock, SegmentServer
from tests.harness.oracle import Message
from tests.harness.processes import closed_port
from tests.harness.routes import routes, segment_at
from tests.harness.stores import SqliteStore, Store
from tests.harness.vero import VeroServer

Fault = Callable[[socket.socket], None]

_LENGTH = re.compile(rb"content-length: (\d+)\r\n.*?\r\n\r\n", re.IGNORECASE | re.DOTALL)


class Relay:
    """An outbox of either kind, and a forwarder that moves the clock instead of waiting.

    Attributes:
        happened: when each event happened, by its email id.
        every: seconds between two events; 0 for no events.
    """

    happened: dict[str, datetime]

    def __init__(self, store: Store, host: str) -> None:
        self.store = store
        self.clock = Clock()
        self.outbox = self._open()
        self.happened = {}
        self.every = 0.0
        self._arrived_at = 0.0
        self._vero = Vero(VeroSettings())
        self.point_at(host)

    def _open(self) -> Outbox:
        if isinstance(self.store, SqliteStore):
            clock = self.clock
            return SqliteOutbox(self.store.path, clock=clock.now, elapsed=clock.monotonic)
        return PostgresOutbox(self.store.url, clock=self.clock.now)

    def point_at(
        self,
        host: str,
        *,
        jitter: Callable[[float], float] = lambda bound: bound,
        timeout_seconds: float = Segment.limits.timeout_seconds,
    ) -> None:
        """Forward to this host from now on, as after a restart with other settings."""
        self._segment = segment_at(host, timeout_seconds=timeout_seconds)
        self._forwarder = Forwarder(
            self.outbox,
            self._segment,
            routes([self._vero], self._segment),
            clock=self.clock.monotonic,
            sleep=self.pass_time,
            jitter=jitter,
        )

    def add(self, count: int, **campaign: str) -> list[str]:
        """Store so many events that happen now, as the receiver does; return their email ids."""
        now = self.clock.now().replace(microsecond=0)
        first = len(self.happened)
        added = {f"mail-{number}": now for number in range(first, first + count)}
        self.happened |= added
        arrivals = []
        for name in added:
            webhook = {
                "type": "opened",
                "opened_at": now.timestamp(),
                "user": {"email": "ann@example.com"},
                "message_id": name,
                "campaign": campaign,
            }
            body = json.dumps(webhook).encode()
            event = self._vero.parse(body, now)
            assert isinstance(event, EmailEvent)
            message_id = self._segment.message_id("vero", event.dedupe_key, event.reported_at)
            arrivals.append(Arrival("vero", "segment", message_id, now, body))
        assert all(self.outbox.add(arrivals))
        return [*added]

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and add the events that happen meanwhile."""
        until = self.clock.monotonic() + seconds
        while self.every and self._arrived_at + self.every <= until:
            self._arrived_at += self.every
            self.clock.sleep(self._arrived_at - self.clock.monotonic())
            self.add(1)
        self.clock.sleep(until - self.clock.monotonic())

    def step(self) -> float:
        """Forward one claim as soon as a permit is given; return the time then."""
        assert self._forwarder.step()
        return self.clock.monotonic()

    def waits(self, steps: int) -> list[int]:
        """Return the seconds between so many steps."""
        times = [self.step() for _ in range(steps)]
        return [round(later - earlier) for earlier, later in pairwise(times)]

    def forward(self) -> None:
        """Step until nothing is due."""
        assert any(not self._forwarder.step() for _ in range(300)), "it goes on for ever"

    def fates(self) -> Counter[str]:
        """Return how many entries are `pending`, `delivered`, or dead for each reason."""
        return Counter(entry.reason or entry.state for entry in self.store.stored())

    def broken_promises(
        self,
        server: SegmentServer,
        *,
        rejected: Collection[str] = (),
        doubted: Mapping[str, int] = MappingProxyType({}),
    ) -> list[str]:
        """Return where store or Segment differ from: every event arrived, once, with its own time.

        Args:
            server: the stand-in for Segment.
            rejected: email ids of the events that it rejects.
            doubted: how many more copies of each event it may have.
        """
        broken = []
        arrived = defaultdict(list)
        for message in server.accepted:
            arrived[email_id(message)].append((message["messageId"], message["timestamp"]))
        entries = {json.loads(entry.body)["message_id"]: entry for entry in self.store.stored()}
        for name, at in self.happened.items():
            entry, came = entries[name], arrived.pop(name, [])
            fate = "rejected" if name in rejected else "delivered"
            most = 1 + doubted.get(name, 0)
            if (entry.reason or entry.state) != fate:
                broken.append(f"{name} ended as {entry}")
            if not came if fate == "delivered" else came:
                broken.append(f"{name} was {fate} and arrived {len(came)} times")
            if len(came) > most:
                broken.append(f"{name} arrived {len(came)} times, not {most} at the most")
            if {*came} - {(entry.message_id, at.isoformat(timespec="milliseconds"))}:
                broken.append(f"{name} of {at} arrived as {came}")
        return broken + [f"arrived out of nowhere: {name}" for name in arrived]


def email_id(message: Message) -> str:
    """Return the email id of the message's event."""
    name: str = message["properties"]["email_id"]
    return name


class Road:
    """The road to a stand-in for Segment or Vero: a port of its own, at which connections fail.

    Attributes:
        fault: handles each connection instead of `pass_on`; None to pass connections on.
        tls: the server's TLS context; None for plain text.
        lost: ports from which the stand-in was reached for answers that were cut off.
    """

    tls: ssl.SSLContext | None = None

    def __init__(self, server: SegmentServer | VeroServer) -> None:
        self.fault: Fault | None = None
        self.lost: set[int] = set()
        at = urlsplit(server.url)
        self._server_at = (at.hostname, at.port)
        self._port = closed_port()
        self._listener: _Listener | None = None
        self.open()

    def host(self, scheme: str = "http") -> str:
        """Return the value for `SEGMENT_HOST` or `VERO_HOST`."""
        return f"{scheme}://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Listen on its port."""
        if self._listener is None:
            self._listener = _Listener(self._port, self)
            serve = threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True)
            serve.start()

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None

    def carry(self, connection: socket.socket) -> None:
        """Handle one connection."""
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                (self.fault or self.pass_on)(connection)

    def pass_on(self, connection: socket.socket) -> None:
        """Pass bytes both ways until either side closes."""
        with self._reach() as server:
            peer = {connection: server, server: connection}
            while True:
                readable, _, _ = select.select([*peer], [], [])
                for side in readable:
                    data = side.recv(2**16)
                    if not data:
                        return
                    peer[side].sendall(data)

    def pass_on_and_lose_the_answer(self, connection: socket.socket) -> None:
        """Pass the request on, and cut the connection off without an answer."""
        self._answer_of_server(connection)
        reset(connection)

    def pass_on_and_reset(self, connection: socket.socket) -> None:
        """Pass the request and its answer on, and reset: the answer may be lost."""
        connection.sendall(self._answer_of_server(connection))
        reset(connection)

    def _answer_of_server(self, connection: socket.socket) -> bytes:
        with self._reach() as server:
            self.lost.add(server.getsockname()[1])
            server.sendall(read_request(connection))
            return b"".join(iter(lambda: server.recv(2**16), b""))

    def _reach(self) -> socket.socket:
        server = socket.create_connection(self._server_at)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server


class _Listener(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, road: Road) -> None:
        class Handler(BaseRequestHandler):
            request: Any

            def handle(self) -> None:
                road.carry(self.request)

        super().__init__(("127.0.0.1", port), Handler)


def read_request(connection: socket.socket) -> bytes:
    """Return one whole request."""
    request = b""
    while not (found := _LENGTH.search(request)) or len(request) < found.end() + int(found[1]):
        more = connection.recv(2**16)
        if not more:
            raise ConnectionResetError
        request += more
    return request


def reset(connection: socket.socket) -> None:
    """Reset the connection."""
    # Lingering for no time makes close() send a reset.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reset_while_reading(connection: socket.socket) -> None:
    """Reset the connection in the middle of the request."""
    connection.recv(100)
    reset(connection)


def reset_after_reading(connection: socket.socket) -> None:
    """Reset the connection instead of answering."""
    read_request(connection)
    reset(connection)


def silent(connection: socket.socket) -> None:
    """Never answer."""
    read_request(connection)
    connection.recv(1)


def says(head: bytes, drops: bytes = b"", *, seconds: float = 0) -> Fault:
    """Return a fault: answer with the head, then a byte every so many seconds, and close."""

    def answer(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(head)
        for drop in drops:
            time.sleep(seconds)
            connection.sendall(bytes([drop]))

    return answer


def for_ever(head: bytes, drop: bytes, *, seconds: float = 0.05, reads: bool = True) -> Fault:
    """Return a fault: answer with the head, then with the drop again and again, without end."""

    def answer(connection: socket.socket) -> None:
        if reads:
            read_request(connection)
        connection.sendall(head)
        while True:
            time.sleep(seconds)
            connection.sendall(drop)

    return answer

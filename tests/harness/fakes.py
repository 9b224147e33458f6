"""Stand-ins that are real: an HTTP server for Segment, and a clock that a test moves."""

import gzip
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Answer:
    """What the stand-in answers to one request.

    Attributes:
        status: of HTTP; 0 resets the connection instead of answering.
        headers: beside the body's length.
        body: as it is sent.
        delay: seconds before it is sent.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b'{"success":true}'
    delay: float = 0


@dataclass(frozen=True)
class Received:
    """One request to the stand-in, and how it was answered.

    Attributes:
        connection: the sender's port, one for each connection.
    """

    connection: int
    path: str
    headers: Mapping[str, str]
    payload: dict[str, Any]
    answer: Answer

    @property
    def batch(self) -> list[dict[str, Any]]:
        """The messages posted."""
        batch: list[dict[str, Any]] = self.payload["batch"]
        return batch


class SegmentServer:
    """Segment's `/v1/batch` on loopback: answers 200 unless told otherwise, keeps what it got.

    Attributes:
        received: every request, oldest first.
        answers: for the next requests, one each; then `judge` decides.
        judge: the answer to a batch for which none is set out.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answers: deque[Answer] = deque()
        self.judge: Callable[[list[dict[str, Any]]], Answer] = lambda _batch: Answer()
        self._server = LoopbackServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """What `SEGMENT_HOST` is set to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """Every message in a request that was answered 2xx, in the order of arrival."""
        return [
            message
            for request in list(self.received)
            if 200 <= request.answer.status < 300
            for message in request.batch
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP server of a stand-in, which waits for no request when it is closed."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A relay killed in the middle of a request is no fault of the server."""


def _handler(server: SegmentServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it would hold back the body for 40 ms, behind the headers

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            payload = json.loads(content)
            answer = server.answers.popleft() if server.answers else server.judge(payload["batch"])
            if answer.delay:
                threading.Event().wait(answer.delay)
            connection: int = self.client_address[1]
            server.received.append(
                Received(connection, self.path, dict(self.headers), payload, answer)
            )
            send(self, answer)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    return Handler


def send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    """Answer the handler's request."""
    if not answer.status:
        # Lingering for no time makes close() send a reset.
        linger = struct.pack("ii", 1, 0)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        handler.close_connection = True
        return
    handler.send_response(answer.status)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(answer.body)))
    handler.end_headers()
    handler.wfile.write(answer.body)


class Clock:
    """A clock that stands still until a test moves it; it tells both kinds of time."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def now(self) -> datetime:
        """The time of day, aware UTC."""
        return datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self._seconds += max(seconds, 0.001)

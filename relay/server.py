"""uvicorn, set up for relay: a short way for webhooks, and an end that loses nothing."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

HEAD_SECONDS: Final = 10
"""From a connection's beginning, or a request's first byte, to the end of its head."""
MAX_HEAD_BYTES: Final = 2**16
UNREAD_SECONDS: Final = 10
"""For a sender to read answers once they no longer fit on their way to him."""
MAX_SENT_AHEAD: Final = 100
"""Requests that may wait for the answer to an earlier one of their connection."""

Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, Headers, bytes], None]
"""Sends an answer: its status, its headers, its body."""
TakeWhole = Callable[[str, Headers, bytes, Reply], bool]
"""Takes a whole POST to `/webhooks/…` (path, headers, body) and will reply to it; or False."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address; port 0 is any free one.

    Raises:
        OSError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # Python's own text for some of these holds the address twice.
        raise OSError(error.errno, os.strerror(error.errno or 0)) from None


def base_url(listener: socket.socket) -> str:
    """Where the listener is reached from this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_http(
    app: ASGIApp,
    take_whole: TakeWhole,
    listener: socket.socket,
    *,
    grace_seconds: int,
    leaving: Callable[[], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what is under way.

    Args:
        app: the application.
        take_whole: its short way for webhooks.
        listener: where it listens.
        grace_seconds: how long requests under way have at the end.
        leaving: called when the end begins.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=cast("type[HttpToolsProtocol]", partial(_Protocol, take_whole=take_whole)),
            lifespan="on",
            log_config=None,
            access_log=False,  # it would print the secret in the path
            server_header=False,
            ws="none",
            proxy_headers=False,  # nobody's address is looked at
            timeout_graceful_shutdown=grace_seconds,
        ),
        leaving=leaving,
    )
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Ends quietly on a signal, which uvicorn itself would raise once more at its end."""

    def __init__(self, config: uvicorn.Config, *, leaving: Callable[[], None]) -> None:
        super().__init__(config)
        self._leaving = leaving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._leaving()
        super().handle_exit(sig, frame)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with a short way for a webhook that has come whole.

    A request is noted while it is parsed. A webhook that has come in one piece, as nearly all do,
    is handed to the application as it is. Anything else is played to uvicorn, as if it came only
    now: an ASGI task, its events and its messages are half of what a webhook costs.

    uvicorn waits for a request's head as long as its sender likes, and keeps as much of it as he
    sends; here it has `HEAD_SECONDS` and `MAX_HEAD_BYTES`. So has whatever else is no part of a
    body that somebody waits for: blank lines, trailers, the rest of what is answered already.

    `Upgrade`, which Java's client sends along, is ignored, as RFC 9110 (7.8) lets a server; the
    parser would take the body for another protocol.
    """

    def __init__(self, *args: Any, take_whole: TakeWhole, **kwargs: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        super().__init__(*args, **kwargs)
        self._take_whole = take_whole
        self._noting = False
        self._head_complete = False
        self._whole = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)  # until a head or a request ends, or a body goes on
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
            return
        if self.transport.is_closing():
            return
        if self._noting and self._head_complete:
            self._play()  # the rest may take its time: the application says how much
        elif self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"A request's head has {MAX_HEAD_BYTES} bytes at the most.")
        elif (
            self._head_timer is None
            and (self._head_bytes or not self._whole)
            and (self.cycle is None or self.cycle.response_complete)
        ):
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._upgrades():
                    return  # CONNECT, and no request can follow it
                (head_end,) = upgrade.args
                rest = rest[head_end:]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
                self.parser.feed_data(head)
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _upgrades(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # an answer is due first
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _head_done(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def on_message_begin(self) -> None:
        if len(self.pipeline) == MAX_SENT_AHEAD:
            raise httptools.HttpParserError  # each takes many times the memory that it came in
        self._unset_keepalive_if_required()  # armed by the answer to one in the same data
        self._noting = True
        self._head_complete = False
        self._whole = False
        self.url = b""
        self.headers = []
        self._body = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # what comes after a chunked body is of no use here
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._upgrades():
            return  # it comes again, without
        self._head_complete = True
        self._head_done()
        if not (
            self.url.startswith(b"/webhooks/")
            and self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
        ):
            self._play()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self._noting:
            self._body.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrades():
            return
        self._whole = True
        self._head_bytes = 0
        if self._noting:
            self._noting = False
            cycle = _ShortCycle(self)
            path = unquote(httptools.parse_url(self.url).path.decode("ascii"))
            before, self.cycle = self.cycle, cast("RequestResponseCycle", cycle)
            if self._take_whole(path, self.headers, b"".join(self._body), cycle.reply):
                return
            self.cycle = before
            self._play()
        super().on_message_complete()

    def _play(self) -> None:
        """Let uvicorn have the request, as far as it has come."""
        self._noting = False
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        for body in self._body:
            super().on_body(body)


# uvicorn sets it when a connection is lost; on the short way nobody waits for it.
_UNHEARD: Final = asyncio.Event()


class _ShortCycle:
    """A request on the short way, as far as uvicorn asks for it.

    Until it is answered, uvicorn keeps later requests of its connection waiting, and lets it end.
    """

    def __init__(self, protocol: _Protocol) -> None:
        parser = protocol.parser
        self.keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        self.response_complete = False
        self.disconnected = False
        self.message_event = _UNHEARD
        self._protocol = protocol

    def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the answer."""
        self.response_complete = True
        if self.disconnected:
            return
        protocol, transport = self._protocol, self._protocol.transport
        lines = [STATUS_LINE[status]]
        for name, value in (*protocol.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        transport.write(b"".join(lines))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()

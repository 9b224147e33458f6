"""uvicorn's protocol, with a short way for webhooks, limits, and an end that loses nothing."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from relay.receiver.accepting import is_readable
from relay.receiver.connections import Crowd

HEAD_SECONDS: Final = 10
"""From a connection's beginning, or a request's first byte, to the end of its head."""
MAX_HEAD_BYTES: Final = 2**16
UNREAD_SECONDS: Final = 10
"""For a sender to read answers once they no longer fit on their way to him."""
QUIET_SECONDS: Final = 0.5
"""At the end, for how long nothing has come of a connection that is closed."""
FAREWELL_SECONDS: Final = 1
"""For a sender to see that its connection is closed, and to close it, too."""
MAX_HEADERS: Final = 100
"""In a head; each takes some thirty times the memory of a short one's bytes."""
MAX_SENT_AHEAD: Final = 100
"""Requests that may wait for the answer to an earlier one of their connection."""

_BODILESS: Final = frozenset({"GET", "HEAD"})

Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, Headers, bytes], None]
"""Sends an answer: its status, its headers, its body."""
TakeWhole = Callable[[str, Headers, bytes, Reply], bool]
"""Takes a whole POST to `/webhooks/…` (path, headers, body) and will reply to it; or False."""


def protocols(handle_buffered: TakeWhole, crowd: Crowd) -> type[HttpToolsProtocol]:
    """What uvicorn is to make for each connection.

    Args:
        handle_buffered: the application's short way for webhooks.
        crowd: where connections are counted.
    """
    made = partial(_Protocol, handle_buffered=handle_buffered, crowd=crowd)
    return cast("type[HttpToolsProtocol]", made)


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

    def __init__(self, *args: Any, handle_buffered: TakeWhole, crowd: Crowd, **kwargs: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        super().__init__(*args, **kwargs)
        self._take_whole = handle_buffered
        self._crowd = crowd
        self._heard_at = 0.0
        self._said_farewell = False
        self._noting = False
        self._head_complete = False
        self._whole = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._crowd.came(self)
        self._heard_at = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.went(self)
        self._head_done()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Keep the connection for the answer to a sender that has no more to send.

        An answer that has begun is not kept up for it: who goes away from a stream does no more
        than that either.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.response_started:
            return False
        cycle.keep_alive = False
        # What is cut off is never answered, but what was whole before it is.
        return self._whole or not self._head_complete or bool(self.pipeline)

    def is_last(self) -> bool:
        """Whether the answer that is sent now is the last one of the connection."""
        return self._crowd.leaving and not self.pipeline

    def turn_out(self) -> None:
        """See `Guest`."""
        self.transport.abort()

    def close_after_answer(self) -> None:
        """See `Guest`."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # the one that came last, where some wait behind others

    def close_if_quiet(self) -> None:
        """See `Guest`."""
        if (
            (self.cycle is None or self.cycle.response_complete)
            and not self._head_bytes
            and self.loop.time() - self._heard_at > QUIET_SECONDS
        ):
            self._say_farewell()

    def _say_farewell(self) -> None:
        """Close the sending half, and the rest once the sender has seen it.

        A request that crosses it is not answered, but the connection is not reset either. What has
        come by now is read first.
        """
        if self._said_farewell or self.transport.is_closing():
            return
        if is_readable(self.transport.get_extra_info("socket")):
            return
        self._said_farewell = True
        self.transport.write_eof()
        self.loop.call_later(FAREWELL_SECONDS, self.transport.close)

    def timeout_keep_alive_handler(self) -> None:
        self._say_farewell()

    def data_received(self, data: bytes) -> None:
        if self._said_farewell:
            return
        if self._crowd.leaving:
            self._heard_at = self.loop.time()
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
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"A request's head has {MAX_HEAD_BYTES} bytes at the most.")
            return
        if self._head_bytes:
            self._crowd.begins(self, self._head_bytes)
        if (
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
        self._crowd.rests(self)
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._crowd.asked(self)
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def on_message_begin(self) -> None:
        if self.pipeline and (
            len(self.pipeline) == MAX_SENT_AHEAD or not self._crowd.may_send_ahead(self)
        ):
            raise httptools.HttpParserError  # each takes many times the memory that it came in
        self._unset_keepalive_if_required()  # armed by the answer to one in the same data
        self._noting = True
        self._head_complete = False
        self._whole = False
        self.url = b""
        self.headers = []
        self._body = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_complete:
            return  # what comes after a chunked body is of no use here
        if len(self.headers) == MAX_HEADERS:
            raise httptools.HttpParserError
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._upgrades():
            return  # it comes again, without
        self._head_complete = True
        self._head_done()
        self._crowd.asked(self)
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
        elif self.scope["method"] not in _BODILESS:  # nobody would read it
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

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._crowd.rests(self)
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.is_last():
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

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
            self.on_body(body)


# uvicorn sets it when a connection is lost; on the short way nobody waits for it.
_UNHEARD: Final = asyncio.Event()


class _ShortCycle:
    """A request on the short way, as far as uvicorn asks for it.

    Until it is answered, uvicorn keeps later requests of its connection waiting, and lets it end.
    """

    def __init__(self, protocol: _Protocol) -> None:
        parser = protocol.parser
        self.keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        self.response_started = False
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
        if protocol.is_last():
            self.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in (*protocol.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        transport.write(b"".join(lines))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()

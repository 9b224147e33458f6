"""Extends uvicorn's HTTP/1.1 protocol: limits, a fast path for webhooks, an end without loss."""

import asyncio
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from relay.receiver.acceptor import is_readable
from relay.receiver.buffered import BufferedCycle, HandleBuffered
from relay.receiver.connections import Connections

HEAD_SECONDS: Final = 10
"""Time from the beginning of a connection, or a request's first byte, to the end of its head."""
MAX_HEAD_BYTES: Final = 2**16
UNREAD_SECONDS: Final = 10
"""Time that a client has to read answers that no longer fit into the socket's buffers."""
IDLE_SECONDS: Final = 0.5
"""At the end, a connection on which nothing has come for this long is closed."""
LINGER_SECONDS: Final = 1
"""Time that a client has to see that its connection is closed, and to close its side."""
MAX_HEADERS: Final = 100
"""The most headers of a request. A short header takes thirty times its bytes in memory."""
MAX_PIPELINED: Final = 100
"""Requests of a connection that may wait for the answer to an earlier one."""

_BODILESS: Final = frozenset({"GET", "HEAD"})


def protocol_class(
    handle_buffered: HandleBuffered, connections: Connections
) -> type[HttpToolsProtocol]:
    """Return the class of the protocol that uvicorn creates for each connection.

    Args:
        handle_buffered: the application's fast path for webhooks.
        connections: the server's connections.
    """
    protocol = partial(_HttpProtocol, handle_buffered=handle_buffered, connections=connections)
    return cast("type[HttpToolsProtocol]", protocol)


class _HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a fast path for a webhook that has come whole.

    A request is buffered while it is parsed. A webhook that comes in one piece, as nearly all do,
    goes straight to the application. Any other request is passed on to uvicorn as if it came only
    now. The fast path exists because ASGI's task, events and messages are half of what a webhook
    costs.

    uvicorn sets no limit to the time and size of a request's head. Here they are `HEAD_SECONDS` and
    `MAX_HEAD_BYTES`. The same limits hold for other bytes that are no part of a body being read:
    blank lines, trailers, the rest of a request that is answered already.

    `Upgrade`, which Java's client sends, is ignored, as RFC 9110 (7.8) lets a server; otherwise the
    parser takes the body for another protocol.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (uvicorn's own)
        handle_buffered: HandleBuffered,
        connections: Connections,
        **kwargs: Any,  # noqa: ANN401 (as above)
    ) -> None:
        super().__init__(*args, **kwargs)
        self._handle_buffered = handle_buffered
        self._connections = connections
        self._received_at = 0.0
        self._is_half_closed = False
        self._buffering = False
        self._head_complete = False
        self._request_complete = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._connections.add(self)
        self._received_at = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_timed_out)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._end_head()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Keep the connection open if the client has closed its side and is owed an answer.

        Close it if the answer has begun, because a client that leaves a stream looks the same.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.response_started:
            return False
        cycle.keep_alive = False
        # A request cut off by it is never answered, but complete requests before it are.
        return self._request_complete or not self._head_complete or bool(self.pipeline)

    def is_last(self) -> bool:
        """Return whether the answer being sent is the connection's last."""
        return self._connections.ending and not self.pipeline

    def evict(self) -> None:
        """See `Connection`."""
        self.transport.abort()

    def close_after_answer(self) -> None:
        """See `Connection`."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # of several that wait, the last

    def close_if_idle(self) -> None:
        """See `Connection`."""
        if (
            (self.cycle is None or self.cycle.response_complete)
            and not self._head_bytes
            and self.loop.time() - self._received_at > IDLE_SECONDS
        ):
            self._close_gracefully()

    def _close_gracefully(self) -> None:
        """Close the sending side, and the rest once the client has seen it.

        A request that crosses it is not answered, but the connection is not reset either. If there
        are bytes to read, the connection stays open.
        """
        if self._is_half_closed or self.transport.is_closing():
            return
        if is_readable(self.transport.get_extra_info("socket")):
            return
        self._is_half_closed = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def timeout_keep_alive_handler(self) -> None:
        self._close_gracefully()

    def data_received(self, data: bytes) -> None:
        if self._is_half_closed:
            return
        if self._connections.ending:
            self._received_at = self.loop.time()
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
        if self._buffering and self._head_complete:
            self._pass_to_uvicorn()  # the application limits the time for the rest
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response(f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")
            return
        if self._head_bytes:
            self._connections.hold_head(self, self._head_bytes)
        if (
            self._head_timer is None
            and (self._head_bytes or not self._request_complete)
            and (self.cycle is None or self.cycle.response_complete)
        ):
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_timed_out)

    def _parse(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._upgrades():
                    return  # CONNECT; no request can follow it
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

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:  # the answer must be sent first
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_timed_out)

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.end_request(self)
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._connections.start_request(self)
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def on_message_begin(self) -> None:
        if self.pipeline and (
            len(self.pipeline) == MAX_PIPELINED or not self._connections.may_pipeline(self)
        ):
            raise httptools.HttpParserError  # a request takes many times its bytes in memory
        self._unset_keepalive_if_required()  # set by the answer to a request in the same data
        self._buffering = True
        self._head_complete = False
        self._request_complete = False
        self.url = b""
        self.headers = []
        self._body = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_complete:
            return  # a trailer, after a chunked body
        if len(self.headers) == MAX_HEADERS:
            raise httptools.HttpParserError
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._upgrades():
            return  # it is parsed again, without `Upgrade`
        self._head_complete = True
        self._end_head()
        self._connections.start_request(self)
        if not (
            self.url.startswith(b"/webhooks/")
            and self.parser.get_method() == b"POST"
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
        ):
            self._pass_to_uvicorn()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        if self._buffering:
            self._body.append(body)
        elif self.scope["method"] not in _BODILESS:  # the application does not read it
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrades():
            return
        self._request_complete = True
        self._head_bytes = 0
        if self._buffering:
            self._buffering = False
            cycle = BufferedCycle(self, self.is_last)
            path = unquote(httptools.parse_url(self.url).path.decode("ascii"))
            before, self.cycle = self.cycle, cast("RequestResponseCycle", cycle)
            if self._handle_buffered(path, self.headers, b"".join(self._body), cycle.reply):
                return
            self.cycle = before
            self._pass_to_uvicorn()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self.pipeline:
            self._connections.end_request(self)
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if self.is_last():
            cycle.keep_alive = False
        super()._start_asgi_task(cycle, app)

    def _pass_to_uvicorn(self) -> None:
        """Give uvicorn the request, as far as it has come, and then the rest of it."""
        self._buffering = False
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        for body in self._body:
            self.on_body(body)

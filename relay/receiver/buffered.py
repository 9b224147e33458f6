"""The fast path: answers a request that has come whole without the tasks and events of ASGI."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

Headers = Sequence[tuple[bytes, bytes]]
Reply = Callable[[int, Headers, bytes], None]
"""Sends an answer: its status, its headers, its body."""
HandleBuffered = Callable[[str, Headers, bytes, Reply], bool]
"""Handles a whole POST to `/webhooks/…` (path, headers, body) and replies to it, now or later.
Returns False if it leaves the request to the ASGI application."""

# uvicorn sets it when a connection is lost; on the fast path nothing waits for it.
_DISCONNECTED: Final = asyncio.Event()


class BufferedCycle:
    """A request on the fast path; it has the attributes that uvicorn reads of a request cycle.

    Until it is answered, uvicorn keeps its connection open and lets later requests on it wait.
    """

    def __init__(self, protocol: HttpToolsProtocol, is_last: Callable[[], bool]) -> None:
        parser = protocol.parser
        self.keep_alive = parser.should_keep_alive() and parser.get_http_version() != "1.0"
        self.response_started = False
        self.response_complete = False
        self.disconnected = False
        self.message_event = _DISCONNECTED
        self._protocol = protocol
        self._is_last = is_last

    def reply(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the answer."""
        self.response_complete = True
        if self.disconnected:
            return
        protocol, transport = self._protocol, self._protocol.transport
        if self._is_last():
            self.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in (*protocol.server_state.default_headers, *headers):
            lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        transport.write(b"".join(lines))
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()

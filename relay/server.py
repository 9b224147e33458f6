"""uvicorn, set up for relay: one write an answer, and an end that loses nothing."""

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# All but "100 Continue", for which the sender waits.
_FINAL_STATUS: Final = tuple(b"HTTP/1.1 %d" % first for first in (2, 3, 4, 5))


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
    app: ASGIApp, listener: socket.socket, *, grace_seconds: int, leaving: Callable[[], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what is under way.

    Args:
        app: the application.
        listener: where it listens.
        grace_seconds: how long requests under way have at the end.
        leaving: called when the end begins.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=_OneWriteProtocol,
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


class _OneWriteProtocol(HttpToolsProtocol):
    """Sends an answer's head and body together.

    uvicorn writes them apart, and two system calls for two packets are a seventh of all that a
    webhook costs.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._joined = _JoinedWrites(cast("asyncio.Transport", transport))
        super().connection_made(cast("asyncio.Transport", self._joined))

    def on_response_complete(self) -> None:
        self._joined.flush()  # an answer to HEAD has no body to go with
        super().on_response_complete()


class _JoinedWrites:
    """A transport that keeps an answer's head back until its body comes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        if data.startswith(_FINAL_STATUS) and data.endswith(b"\r\n\r\n"):
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)

"""Runs uvicorn for relay: with a fast path for webhooks, and an end that loses no request."""

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE

from relay.process.files import max_connections
from relay.receiver.acceptor import Acceptor
from relay.receiver.buffered import HandleBuffered
from relay.receiver.connections import Connections
from relay.receiver.http_protocol import protocol_class

_OPEN_SECONDS: Final = 0.5
"""How long new connections are accepted once the end has begun: a load balancer may not know of it
yet."""
_HANDSHAKE_SECONDS: Final = 0.25
"""Time that a handshake has to be completed: a round trip around the world."""
_CHECK_SECONDS: Final = 0.05
_NO_ADDRESS: Final = "it is not an address of this machine"
_CLOSE_SECONDS: Final = 2.0
_MAX_CONNECTIONS_IN_THREAD: Final = 50


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; port 0 is any free one, `::` includes IPv4.

    Raises:
        OSError: it cannot listen; EADDRNOTAVAIL if the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_any = host == "::" and socket.has_dualstack_ipv6()
    if not host.strip():  # to Python, all addresses
        raise OSError(errno.EADDRNOTAVAIL, _NO_ADDRESS)
    try:
        return socket.create_server(
            (host, port), family=family, backlog=2048, dualstack_ipv6=is_any
        )
    except OSError as error:
        # For some codes Python's own text names the address twice. Below 0 it is the resolver's.
        code = error.errno or 0
        if code < 0 or code == errno.EADDRNOTAVAIL:
            raise OSError(errno.EADDRNOTAVAIL, _NO_ADDRESS) from None
        raise OSError(code, os.strerror(code)) from None


def base_url(listener: socket.socket) -> str:
    """Return the URL at which the listener is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if ip_address(host).is_unspecified:  # every address of this machine
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve_http(
    app: ASGIApp,
    handle_buffered: HandleBuffered,
    listener: socket.socket,
    *,
    grace_seconds: int,
    leaving: Callable[[], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer the requests under way.

    Args:
        app: the application.
        handle_buffered: its fast path for webhooks.
        listener: the socket that accepts connections; closed at the end.
        grace_seconds: how long requests under way have at the end.
        leaving: called when the end begins.
    """
    _Server(app, handle_buffered, listener, max_connections(), grace_seconds, leaving).run()


@contextmanager
def serving_in_thread(app: ASGIApp, listener: socket.socket) -> Iterator[None]:
    """Serve a few pages in a thread, for as long as the context lasts."""
    server = _Server(app, lambda *_: False, listener, _MAX_CONNECTIONS_IN_THREAD)

    def serve() -> None:
        server.run()
        if not server.should_exit:
            raise RuntimeError("the server has ended")

    thread = threading.Thread(target=serve, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # A thread whose event loop still runs when Python ends may crash the process.
        server.should_exit = True
        thread.join(_CLOSE_SECONDS)


class _Server(uvicorn.Server):
    """A server that ends on a signal without losing a request that the kernel has accepted.

    uvicorn closes its listener and idle connections at once, which resets requests that were sent,
    and raises the signal again at its end. Here the end has four parts. For a moment requests are
    still accepted, but each connection is closed after its answer. Then no new connection is
    accepted. Then idle connections are closed. Requests under way have the rest of the time.
    """

    def __init__(
        self,
        app: ASGIApp,
        handle_buffered: HandleBuffered,
        listener: socket.socket,
        max_connections: int,
        grace_seconds: float = 0,
        leaving: Callable[[], None] = lambda: None,
    ) -> None:
        self._connections = Connections(max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_class(handle_buffered, self._connections),
                lifespan="on",
                log_config=None,
                access_log=False,  # it would print the secret in the path
                server_header=False,
                ws="none",
                proxy_headers=False,  # no client's address is used
            )
        )
        self._listener = listener
        self._grace_seconds = grace_seconds
        self._leaving = leaving

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.handle_exit)
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (as uvicorn's)
        # A second Ctrl-C changes nothing; in uvicorn it cuts the end short.
        self.should_exit = True
        self._leaving()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (as uvicorn's)
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self._acceptor = Acceptor(self._listener, self._protocol, self._connections.shed)
        self._acceptor.start()
        self.started = True

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn calls it
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (as uvicorn's)
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._grace_seconds
        self._connections.end()
        await asyncio.sleep(_OPEN_SECONDS)
        self._acceptor.refuse_handshakes()
        await asyncio.sleep(_HANDSHAKE_SECONDS)
        await self._acceptor.close()
        while (self._connections or self.server_state.tasks) and clock() < deadline:
            self._connections.close_idle()
            await asyncio.sleep(_CHECK_SECONDS)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()

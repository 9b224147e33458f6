"""Accepts connections; at the end of the process none is lost that the kernel has accepted."""

import asyncio
import select
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

from relay.logs.sampling import LogSampler

_PAUSE_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 1
_LOG_EVERY_SECONDS: Final = 10

# A classic BPF program (linux/filter.h): load the flags of the TCP header, mask SYN and ACK, and
# drop the packet if only SYN is set.
_SO_ATTACH_FILTER: Final = 26
_NO_SYN: Final = (
    (0x30, 0, 0, 13),
    (0x54, 0, 0, 0x12),
    (0x15, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0x7FFFFFFF),
)

_log = structlog.get_logger()


class HasFileno(Protocol):
    """An object with a file descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Acceptor:
    """An acceptor of a listener's connections, for the running event loop.

    Closing a listener resets the connections in its queue and those in their handshake. Measured
    with 24 senders, a connection for each request, and 20 closings: `close()` alone reset 298 of
    16,035 connections; `shutdown()` before `close()` reset 204 of 16,809, because it empties the
    queue in the same way; refusing handshakes, and closing once the queue is empty, reset none of
    22,131.

    Args:
        listener: the socket that listens; `close` closes it.
        make_protocol: creates the protocol of a connection.
        shed: closes a connection, and returns whether there was one; called when the process or the
            system has no file descriptor left.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        shed: Callable[[], bool],
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._shed = shed
        self._connecting: set[asyncio.Task[None]] = set()
        self._closing = False
        self._sampler = LogSampler(every_seconds=_LOG_EVERY_SECONDS)

    def start(self) -> None:
        """Begin to accept."""
        self._loop = asyncio.get_running_loop()
        self._listener.settimeout(0)
        # Connections inherit it; asyncio sets it only on a socket that was created with a protocol.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._resume()

    def refuse_handshakes(self) -> None:
        """Let no further handshake begin; those under way are completed.

        The kernel of a client that connects meanwhile tries again after a second. By then the
        listener is closed or belongs to another process. On systems other than Linux, do nothing.
        """
        if sys.platform != "linux":
            return
        code = array("B", b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
        address, _ = code.buffer_info()
        program = struct.pack("HP", len(_NO_SYN), address)
        with suppress(OSError):  # a sandbox may forbid it; then a few connections may be reset
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    async def close(self) -> None:
        """Accept what is in the queue, then close the listener."""
        self._loop.remove_reader(self._listener)
        self._closing = True
        deadline = self._loop.time() + _CLOSE_SECONDS
        while is_readable(self._listener) and self._loop.time() < deadline:
            self._accept()
            await asyncio.sleep(0)
        self._listener.close()
        await asyncio.gather(*self._connecting)

    def _resume(self) -> None:
        if not self._closing:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """Accept only one connection at a time, so that earlier ones are served in between."""
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # the client has gone again
            return
        except OSError as error:
            self._make_room(error)
            return
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _make_room(self, error: OSError) -> None:
        """Close a connection to get a file descriptor for the next one; if there is none, wait."""
        if self._sampler.sample("no_room") is not None:
            _log.error("http.no_room", error=error.strerror)
        if not self._shed():
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE_SECONDS, self._resume)

    async def _connect(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the client has gone again
            connection.close()


def is_readable(readable: HasFileno) -> bool:
    """Return whether there is something to read, or to accept, at this moment."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    return bool(poll.poll(0))

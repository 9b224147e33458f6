"""Accepts connections, and leaves none behind that the kernel has taken."""

import asyncio
import math
import select
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import structlog

_PAUSE_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 1
_TELL_SECONDS: Final = 10

# From linux/filter.h: the flags of a TCP header are loaded, SYN and ACK are kept of them, and what
# is a SYN alone is dropped.
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
    """What has a descriptor."""

    def fileno(self) -> int:
        """Its number."""
        ...


class Acceptor:
    """Accepts connections of a listener into the running event loop.

    Closing a listener resets what waits in its queue, and whose handshake is under way. With 24
    senders, a connection for each request, 20 closings of a plain listener reset 298 of 16,035
    connections; `shutdown()` before `close()` reset 204 of 16,809, as it empties the queue in the
    same way; a listener that lets no handshake begin, and is closed once its queue is empty, reset
    none of 22,131.

    Args:
        listener: closed by `close`.
        make_protocol: makes the protocol of a connection.
        shed: closes a connection, if one can be spared; called when the process or the system has
            no file left for another one.
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
        self._told_at = -math.inf

    def start(self) -> None:
        """Accept from now on."""
        self._loop = asyncio.get_running_loop()
        self._listener.settimeout(0)
        # asyncio would set it only where the socket names its protocol; connections inherit it.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._resume()

    def refuse_handshakes(self) -> None:
        """Let no further handshake begin; those under way are completed.

        A client that connects meanwhile tries again after a second, when the listener is closed or
        is another process's. Elsewhere than on Linux nothing changes.
        """
        if sys.platform != "linux":
            return
        code = array("B", b"".join(struct.pack("HBBI", *line) for line in _NO_SYN))
        address, _ = code.buffer_info()
        program = struct.pack("HP", len(_NO_SYN), address)
        with suppress(OSError):  # a sandbox without it: what is lost is a moment, not the end
            self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

    async def close(self) -> None:
        """Accept what waits, then close the listener."""
        self._loop.remove_reader(self._listener)
        self._closing = True
        give_up_at = self._loop.time() + _CLOSE_SECONDS
        while is_readable(self._listener) and self._loop.time() < give_up_at:
            self._accept()
            await asyncio.sleep(0)
        self._listener.close()
        await asyncio.gather(*self._connecting)

    def _resume(self) -> None:
        if not self._closing:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        """Accept one connection; those that are there get their turn before the next one."""
        try:
            connection, _address = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        except OSError as error:
            self._make_room(error)
            return
        task = self._loop.create_task(self._connect(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _make_room(self, error: OSError) -> None:
        """Shed a connection, so that there is a file for the next; wait a moment without one."""
        if self._loop.time() - self._told_at > _TELL_SECONDS:
            self._told_at = self._loop.time()
            _log.error("http.no_room", error=error.strerror)
        if not self._shed():
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_PAUSE_SECONDS, self._resume)

    async def _connect(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # likewise
            connection.close()


def is_readable(readable: HasFileno) -> bool:
    """Whether there is something to read, or to accept, at this very moment."""
    poll = select.poll()
    poll.register(readable, select.POLLIN)
    return bool(poll.poll(0))

"""A proxy before a server, which may fall silent: connections stay open, and nothing comes back."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Gateway:
    """Forwards connections on a port of its own to a server on loopback.

    Args:
        server_port: of the server.
        address: of this machine, to listen on.

    Attributes:
        port: where it listens.
        taken: how many connections it has taken by now.
    """

    def __init__(self, server_port: int, address: str = "127.0.0.1") -> None:
        self._server_port = server_port
        self._address = address
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self.taken = 0
        self._silent_until = 0  # connections taken before this one are silent
        self._mute = False
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._listener.close()

    def url(self, url: str) -> str:
        """The URL of what is at the URL, by way of this gateway."""
        address = urlsplit(url).netloc.rpartition("@")[2]
        return url.replace(address, f"{self._address}:{self.port}")

    def silence(self) -> None:
        """Let nothing more through on the connections that are open, as after a failover."""
        self._silent_until = self.taken

    @contextmanager
    def mute(self) -> Iterator[None]:
        """Let nothing through meanwhile, on new connections either; those stay silent."""
        self._mute = True
        try:
            yield
        finally:
            self.silence()
            self._mute = False

    def _serve(self) -> None:
        with suppress(OSError):
            while not self._ended.is_set():
                client, _ = self._listener.accept()
                number, self.taken = self.taken, self.taken + 1
                threading.Thread(target=self._join, args=(client, number), daemon=True).start()

    def _join(self, client: socket.socket, number: int) -> None:
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(closing(client))
            server = socket.create_connection(("127.0.0.1", self._server_port))
            stack.enter_context(closing(server))
            ways = [
                threading.Thread(target=self._pump, args=(*way, number), daemon=True)
                for way in ((client, server), (server, client))
            ]
            for way in ways:
                way.start()
            for way in ways:
                way.join()

    def _pump(self, source: socket.socket, sink: socket.socket, number: int) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if self._is_silent(number):
                    self._ended.wait()
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _is_silent(self, number: int) -> bool:
        return self._mute or number < self._silent_until

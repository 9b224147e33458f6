"""A real HTTP proxy on loopback: tunnels for https, requests passed on for http."""

import re
import select
import socket
import threading
from base64 import b64encode
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Any, Self

_REQUEST_LINE = re.compile(rb"(?P<method>[A-Z]+) (?:http://[^/ ]+)?(?P<path>\S+) ")


class Proxy:
    """Leads whatever it is asked for to one server.

    Args:
        target: where that listens.
        login: what it lets in, `user:password`; None lets everybody in.

    Attributes:
        asked: the first line of each request.
        refusal: the status line it answers to everything, instead of passing it on.
    """

    def __init__(self, target: tuple[str, int], login: str | None = None) -> None:
        self.asked: list[str] = []
        self.refusal: bytes | None = None
        self._target = target
        self._login = login
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    @property
    def url(self) -> str:
        """What `https_proxy` or `http_proxy` is set to."""
        login = f"{self._login}@" if self._login else ""
        return f"http://{login}127.0.0.1:{self._server.server_address[1]}"

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

    def _handler(self) -> type[BaseRequestHandler]:
        proxy = self

        class Handler(BaseRequestHandler):
            request: Any

            def handle(self) -> None:
                with suppress(OSError):
                    proxy.pass_on(self.request)

        return Handler

    def pass_on(self, sender: socket.socket) -> None:
        """Do what the first request of this connection asks for."""
        head = b""
        while b"\r\n\r\n" not in head:
            more = sender.recv(2**16)
            if not more:
                return
            head += more
        self.asked.append(head.partition(b"\r\n")[0].decode())
        login = b64encode((self._login or "").encode())
        if self.refusal or (self._login and b": Basic %b\r\n" % login not in head):
            status = self.refusal or b"407 Proxy Authentication Required"
            sender.sendall(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)
            return
        with socket.create_connection(self._target) as server:
            if head.startswith(b"CONNECT "):
                sender.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                server.sendall(_REQUEST_LINE.sub(rb"\g<method> \g<path> ", head, count=1))
            peer = {sender: server, server: sender}
            while True:
                for source in select.select([*peer], [], [])[0]:
                    piece = source.recv(2**16)
                    if not piece:
                        return
                    peer[source].sendall(piece)


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

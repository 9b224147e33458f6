"""Looks up the addresses of hosts within a time limit, and recognises hosts that are local."""

import socket
import threading
import time
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, Final

_LOOK_UP_SECONDS: Final = 60.0

Addresses = list[tuple[int, int, int, str, Any]]
"""What `socket.getaddrinfo` returns."""


class Lookups:
    """Look-ups of addresses, one at a time for each name; all threads that need it share one.

    A look-up by the system may take any time and cannot be interrupted. glibc waits for ever if a
    name server truncates its answer and is then silent over TCP. So after a minute another thread
    starts the same look-up again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], tuple[Future[Addresses], float]] = {}

    def addresses(self, host: str, port: int, seconds: float) -> Addresses:
        """Return the addresses to connect to.

        Raises:
            OSError: the name does not exist, or there was no answer within so many seconds.
        """
        with self._lock:
            answer, started_at = self._running.get((host, port), (None, 0.0))
            if answer is None or time.monotonic() - started_at > _LOOK_UP_SECONDS:
                answer = Future()
                thread = threading.Thread(
                    target=self._look_up, args=(host, port, answer), daemon=True
                )
                thread.start()
                self._running[host, port] = answer, time.monotonic()
        try:
            return answer.result(seconds)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None

    def _look_up(self, host: str, port: int, answer: Future[Addresses]) -> None:
        try:
            answer.set_result([*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except Exception as error:  # noqa: BLE001 (raised in every thread that waits for it)
            answer.set_exception(error)
        finally:
            with self._lock:
                if self._running.get((host, port), (None,))[0] is answer:
                    del self._running[host, port]


def is_loopback(host: str) -> bool:
    """Return whether the host, a name or an address, can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

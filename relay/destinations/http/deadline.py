"""Gives each request one deadline; when it passes, the request's connection is shut down."""

import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

_FEWEST_SECONDS: Final = 0.001  # a socket takes a time limit of 0 for something else


class Deadline:
    """The time by which one request must have its whole answer.

    Attributes:
        passed: whether it has passed; the connection is then shut down.
        ended: whether the request is over.
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.passed = False
        self.ended = False

    def left(self) -> float:
        """Return the seconds that are left."""
        return max(_FEWEST_SECONDS, self._at - time.monotonic())

    def bind(self, descriptor: int) -> None:
        """Shut this connection down when the deadline passes, or now if it has passed.

        Keep a duplicate of the descriptor. The socket object is replaced when TLS begins, and
        another connection may soon get the number of a closed descriptor.
        """
        with self._lock:
            if self._socket is None:
                self._socket = socket.socket(fileno=os.dup(descriptor))
        if self.passed:
            self.expire()

    def expire(self) -> None:
        """Shut the connection down, so that no thread waits for it any longer."""
        self.passed = True
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Release the connection, because the request is over."""
        self.ended = True
        with self._lock:
            if self._socket is not None:
                self._socket.close()


class Watchdog:
    """A thread that enforces the deadlines of one client's requests.

    Every request has the same time limit, so deadlines pass in the order in which requests begin.
    The thread starts with the first request and ends with the watchdog.
    """

    def __init__(self) -> None:
        self._deadlines: _Deadlines = SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._started = False
        weakref.finalize(self, _close, self._closed, self._deadlines)

    def watch(self, deadline: Deadline) -> None:
        """Enforce the deadline of a request that begins now."""
        with self._lock:
            if not self._started:
                args = (self._closed, self._deadlines)
                threading.Thread(target=_enforce, name="watchdog", args=args, daemon=True).start()
                self._started = True
        self._deadlines.put(weakref.ref(deadline))


_Deadlines = SimpleQueue["weakref.ref[Deadline]"]
"""They outlast their requests in it by a time limit. So it does not keep them alive."""


def _close(closed: threading.Event, deadlines: _Deadlines) -> None:
    closed.set()
    deadlines.put(weakref.ref(Deadline(0)))  # wakes the thread


def _enforce(closed: threading.Event, deadlines: _Deadlines) -> None:
    while not closed.is_set():
        deadline = deadlines.get()()
        if deadline is None or deadline.ended:
            continue
        # To be woken at the end of each request would cost more than to sleep through it.
        if not closed.wait(deadline.left()) and not deadline.ended:
            deadline.expire()

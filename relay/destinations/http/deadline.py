"""Gives each request one deadline; when it passes, the request's connection is shut down."""

import os
import socket
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
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

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return time.monotonic() >= self._at

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

    The thread starts with the first request and ends with the watchdog.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = False
        self._watched = _Watched()
        weakref.finalize(self, self._watched.close)

    def watch(self, deadline: Deadline) -> None:
        """Enforce the deadline of a request that begins now."""
        self._watched.add(deadline)
        with self._lock:
            if not self._started:
                enforce = self._watched.enforce
                threading.Thread(target=enforce, name="watchdog", daemon=True).start()
                self._started = True


class _Watched:
    """The deadlines of requests under way.

    Every request has the same time limit, so deadlines pass in the order in which requests begin.
    """

    def __init__(self) -> None:
        self._deadlines: deque[Deadline] = deque()
        self._changed = threading.Condition()
        self._is_idle = False
        self._closed = False

    def add(self, deadline: Deadline) -> None:
        with self._changed:
            self._forget_ended()
            self._deadlines.append(deadline)
            if self._is_idle:  # else the thread wakes when an earlier deadline passes
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def enforce(self) -> None:
        with self._changed:
            while not self._closed:
                self._forget_ended()
                self._is_idle = not self._deadlines
                if self._is_idle:
                    self._changed.wait()
                elif self._deadlines[0].is_over:
                    self._deadlines.popleft().expire()
                else:
                    self._changed.wait(self._deadlines[0].left())

    def _forget_ended(self) -> None:
        while self._deadlines and self._deadlines[0].ended:
            self._deadlines.popleft()

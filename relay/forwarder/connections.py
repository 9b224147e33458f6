"""Limits how many requests of one process are under way, and eases off when there are too many."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

REGAIN_SECONDS: Final = 60
"""After each so many seconds without an answer that there are too many, one more is allowed."""


class Connections:
    """How many requests may be under way at a time.

    Args:
        most: as many as there are workers.
        clock: seconds, monotonic.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._allowed = most
        self._changed_at = clock()
        self._lock = threading.Lock()
        self._used = 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count one request as under way meanwhile."""
        with self._lock:
            self._used += 1
        try:
            yield
        finally:
            with self._lock:
                self._used -= 1

    @property
    def may_use(self) -> bool:
        """Whether one more request may be under way."""
        return self._used < self.allowed

    @property
    def allowed(self) -> int:
        """How many requests may be under way now."""
        regained = int((self._clock() - self._changed_at) / REGAIN_SECONDS)
        return min(self._most, self._allowed + regained)

    def halve(self) -> None:
        """Allow half as many from now on, at least one: the destination says it is too much."""
        self._allowed = max(1, self.allowed // 2)
        self._changed_at = self._clock()

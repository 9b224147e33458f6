"""Detects workers of a process that make no progress, by heartbeats that they give."""

from collections.abc import Hashable
from itertools import count


class Heartbeats:
    """The heartbeats of several workers; `check` is called once a second.

    Time is counted in checks, not by a clock: while a process is suspended, so are its checks.
    """

    def __init__(self) -> None:
        self._count = count()
        self._beats: dict[Hashable, int] = {}
        self._last_checked: dict[Hashable, int] = {}
        self._silent_checks: dict[Hashable, int] = {}

    def beat(self, worker: Hashable) -> None:
        """Note that the worker makes progress."""
        self._beats[worker] = next(self._count)

    def pause(self, worker: Hashable) -> None:
        """Expect no beats of the worker, because it is idle, until its next beat."""
        self._beats.pop(worker, None)

    def check(self) -> int:
        """Return how many checks in a row, including this one, found some worker silent."""
        beats = dict(self._beats)
        self._silent_checks = {
            worker: self._silent_checks.get(worker, 0) + 1
            for worker, beat in beats.items()
            if self._last_checked.get(worker) == beat
        }
        self._last_checked = beats
        return max(self._silent_checks.values(), default=0)

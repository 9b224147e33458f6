"""Tells when the time of day can be believed, so that a wrong clock deletes nothing."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

STEADY: Final = timedelta(days=1)
"""For so long a clock must have kept pace."""

_JUMP: Final = timedelta(hours=1)

_log = structlog.get_logger()


class SteadyTime:
    """The time of day, once it has kept pace with the seconds elapsed for a day.

    That begins anew when the clock jumps forward by more than an hour: NTP has set it right, or
    somebody has set it wrong. A process that has just started takes the word of a witness who saw
    the clock a day ago. A clock that is put back deletes nothing too early.

    Args:
        clock: the time of day.
        elapsed: seconds, which nobody sets.
    """

    def __init__(self, clock: Callable[[], datetime], elapsed: Callable[[], float]) -> None:
        self._clock = clock
        self._elapsed = elapsed
        self._last = (clock(), elapsed())
        self._steady_since = self._last[1]
        self._jumped = False

    def read(self, witnessed: Callable[[datetime], bool]) -> datetime | None:
        """The time of day; None while it cannot be believed.

        Args:
            witnessed: whether anything is known to have happened a day before the time.
        """
        before, now = self._last, (self._clock(), self._elapsed())
        self._last = now
        jump = (now[0] - before[0]) - timedelta(seconds=now[1] - before[1])
        if jump > _JUMP:
            self._steady_since, self._jumped = now[1], True
            _log.warning("clock.jumped", seconds=round(jump.total_seconds()))
        if now[1] - self._steady_since >= STEADY.total_seconds():
            return now[0]
        return now[0] if not self._jumped and witnessed(now[0]) else None

"""The time of day, trusted only once it has been steady: a wrong clock must delete nothing."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

STEADY: Final = timedelta(days=1)
"""How long a clock must have agreed with the elapsed seconds."""

_JUMP: Final = timedelta(hours=1)

_log = structlog.get_logger()


class SteadyTime:
    """The time of day, once it has agreed with the elapsed seconds for a day.

    The day begins again when the clock jumps forward by more than an hour: it was corrected, or set
    wrong. A process that has just started trusts the clock if something is known to have happened a
    day ago by it. A clock that is put back deletes nothing too early.

    Args:
        clock: the time of day.
        elapsed: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], datetime], elapsed: Callable[[], float]) -> None:
        self._clock = clock
        self._elapsed = elapsed
        self._last = (clock(), elapsed())
        self._steady_since = self._last[1]
        self._jumped = False

    def read(self, witnessed: Callable[[datetime], bool]) -> datetime | None:
        """Return the time of day; None while it cannot be trusted.

        Args:
            witnessed: returns whether anything is known to have happened a day before that time.
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

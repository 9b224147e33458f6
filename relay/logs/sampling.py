"""Samples log lines: an event that happens many times a second is logged once a minute."""

import time
from collections.abc import Callable, Hashable
from typing import Final

from msgspec import Struct

EVERY_SECONDS: Final = 60


class _Sample(Struct):
    logged_at: float
    suppressed: int = 0


class LogSampler:
    """A limit on how often events of a kind are logged.

    Args:
        every_seconds: the shortest time between two log lines of a kind.
        clock: seconds, monotonic.
    """

    def __init__(
        self, *, every_seconds: float = EVERY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_seconds = every_seconds
        self._clock = clock
        self._samples: dict[Hashable, _Sample] = {}

    def sample(self, kind: Hashable) -> int | None:
        """Return how many events of the kind were left out since the last one that was logged.

        None if this event must be left out, too.

        Args:
            kind: a kind of event; their number must be limited, because each is remembered.
        """
        now = self._clock()
        latest = self._samples.get(kind)
        if latest and now - latest.logged_at < self._every_seconds:
            latest.suppressed += 1
            return None
        self._samples[kind] = _Sample(now)
        return latest.suppressed if latest else 0

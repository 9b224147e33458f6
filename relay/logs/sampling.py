"""What may happen many times a second, and is told of once in a while."""

import time
from collections.abc import Callable, Hashable
from typing import Final

from msgspec import Struct

EVERY_SECONDS: Final = 60


class _Told(Struct):
    at: float
    passed_over: int = 0


class Seldom:
    """Tells whether it is time to tell of something again.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[Hashable, _Told] = {}

    def due(self, subject: Hashable) -> int | None:
        """How many times the subject was passed over since it was told last; None passes it over.

        Args:
            subject: one of a limited number, each of which is remembered.
        """
        told = self._told.get(subject)
        if told and self._clock() - told.at < EVERY_SECONDS:
            told.passed_over += 1
            return None
        self._told[subject] = _Told(self._clock())
        return told.passed_over if told else 0

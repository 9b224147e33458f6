"""When the next request to Segment may go.

Backoff belongs to the destination, not to an entry: when Segment is down, everything waits
together behind one probe, and nothing is used up by waiting.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from msgspec import Struct

REQUESTS_PER_SECOND: Final = 50
"""Segment's limit for partners' streams (segment-docs, partners/streams.md)."""
FIRST_BACKOFF: Final = timedelta(seconds=1)
LONGEST_BACKOFF: Final = timedelta(minutes=5)
HOLD_PROBE: Final = timedelta(minutes=1)

_SHORTEST_BACKOFF: Final = 0.02
_PROBE_UNDER_WAY: Final = 0.25


class Turn(Struct, frozen=True):
    """Leave to send one request. Its answer must be told to the `Pacer` that gave it.

    Attributes:
        era: which stretch between two changes of state it was given in.
    """

    era: int


def full_jitter(bound: float) -> float:
    """A random wait up to the bound, in seconds: spreads many relays' probes the most."""
    return random.uniform(0, bound)  # noqa: S311 (no secret hangs on it)


class Pacer:
    """Hands out turns: 50 a second when all is well, otherwise a single probe at a time.

    Safe to use from several threads. The clock is monotonic, in seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._next_at = clock()
        self._taken_at: deque[float] = deque(maxlen=REQUESTS_PER_SECOND)
        self._era = 0
        self._troubled = False
        self._failures = 0
        self._probing = False
        self._hold: str | None = None

    @property
    def hold(self) -> str | None:
        """Why forwarding is on hold: what Segment answered; None when it is not."""
        return self._hold

    def take(self) -> Turn | float:
        """A turn, or the seconds after which to ask again."""
        with self._lock:
            if self._probing:
                return _PROBE_UNDER_WAY
            now = self._clock()
            if now < self._next_at:
                return self._next_at - now
            # Turns of a second may come at once: a process that wakes for each of them finds the
            # processor's caches cold, and works at little more than half its speed.
            if len(self._taken_at) == REQUESTS_PER_SECOND and now < self._taken_at[0] + 1:
                return self._taken_at[0] + 1 - now
            self._taken_at.append(now)
            self._probing = self._troubled
            return Turn(self._era)

    def give_back(self, turn: Turn) -> None:
        """Nothing was sent in this turn."""
        with self._lock:
            if turn.era == self._era:
                self._probing = False

    def succeeded(self, turn: Turn) -> None:
        """Segment took the request, or spoke of its content: it is there and knows us."""
        with self._lock:
            if turn.era == self._era and self._troubled:
                self._start_era(troubled=False, wait=0)
                self._failures = 0
                self._hold = None

    def failed(self, turn: Turn, retry_after: timedelta | None = None) -> None:
        """Not now: the next probe goes after a backoff, or later if Segment asked for it."""
        with self._lock:
            # Requests that were under way together and fail together are one failure.
            if turn.era == self._era:
                bound = FIRST_BACKOFF.total_seconds() * 2.0 ** min(self._failures, 16)
                wait = self._jitter(min(bound, LONGEST_BACKOFF.total_seconds()))
                asked = retry_after.total_seconds() if retry_after else 0
                self._start_era(troubled=True, wait=max(wait, asked, _SHORTEST_BACKOFF))
                self._failures += 1

    def refused(self, turn: Turn, answer: str) -> None:
        """Our fault or the operator's: everything is held, and a probe goes once a minute."""
        with self._lock:
            if turn.era == self._era:
                self._start_era(troubled=True, wait=HOLD_PROBE.total_seconds())
                self._hold = answer

    def _start_era(self, *, troubled: bool, wait: float) -> None:
        self._era += 1
        self._troubled = troubled
        self._probing = False
        self._next_at = self._clock() + wait

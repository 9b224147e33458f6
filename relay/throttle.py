"""When the next request to Segment may go.

Backoff belongs to the destination, not to an entry: when Segment is down, everything waits
together behind one probe, and nothing is used up by waiting. All forwarders of one outbox share
one pace, kept by the outbox: to Segment they are one source, with one budget.
"""

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

REQUESTS_PER_SECOND: Final = 50
"""Segment's limit for partners' streams (segment-docs, partners/streams.md)."""
FIRST_BACKOFF: Final = timedelta(seconds=1)
LONGEST_BACKOFF: Final = timedelta(minutes=5)
HOLD_PROBE: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=1)
"""No wait is longer, whatever Segment asks for; one that seems so comes of a clock put back."""
PROBE_LEASE: Final = timedelta(minutes=1)
"""A probe unanswered for so long has died with its process, and another one may go."""

_ROUNDING: Final = 0.001
_SHORTEST_BACKOFF: Final = 0.02
_PROBE_UNDER_WAY: Final = 0.25


class Turn(Struct, frozen=True):
    """Leave to send one request. Its answer must be told to the `Pace` that gave it.

    Attributes:
        era: which stretch between two changes of state it was given in.
        taken_at: when.
        probe: whether it was given in trouble, so that all others wait for its answer.
    """

    era: int
    taken_at: float
    probe: bool


class Standing(Struct, frozen=True):
    """How forwarding stands with Segment.

    Attributes:
        hold: what Segment answered if forwarding is on hold; otherwise None.
        failures: in a row, of probes.
        next_at: when the next probe goes; None when nothing is waited for.
        answer: the latest answer, whatever it was; None before the first.
        answered_at: about when it came.
    """

    hold: str | None = None
    failures: int = 0
    next_at: datetime | None = None
    answer: str | None = None
    answered_at: datetime | None = None


def full_jitter(bound: float) -> float:
    """A random wait up to the bound, in seconds: spreads many relays' probes the most."""
    return random.uniform(0, bound)  # noqa: S311 (no secret hangs on it)


class Pace(Struct):
    """Hands out turns: 50 a second when all is well, otherwise a single probe at a time.

    Pure: it is told the time, in seconds by any clock that all its users share.

    Attributes:
        taken_at: when the latest turns were taken, as many as a second has, oldest first.
        next_at: no turn before.
        era: counts changes of state.
        failures: in a row, of probes.
        probe_until: when the probe under way is given up; 0 when none is.
        hold: what Segment answered if forwarding is on hold; otherwise None.
        answer: the latest answer, and in `answered_at` when it came.
    """

    taken_at: list[float] = []
    next_at: float = 0.0
    era: int = 0
    failures: int = 0
    probe_until: float = 0.0
    hold: str | None = None
    answer: str | None = None
    answered_at: float = 0.0

    @property
    def troubled(self) -> bool:
        """Whether single probes go, because the last request was not answered well."""
        return self.failures > 0 or self.hold is not None

    def take(self, now: float) -> Turn | float:
        """A turn, or the seconds after which to ask again."""
        if _ahead(self.probe_until, now, PROBE_LEASE):
            return _PROBE_UNDER_WAY
        if wait := _ahead(self.next_at, now, LONGEST_WAIT):
            return wait
        # Turns of a second may come at once: a process that wakes for each of them finds the
        # processor's caches cold, and works at little more than half its speed.
        if len(self.taken_at) == REQUESTS_PER_SECOND:
            if wait := _ahead(self.taken_at[0] + 1, now, timedelta(seconds=1)):
                return wait
            del self.taken_at[0]
        self.taken_at.append(now)
        if self.troubled:
            self.probe_until = _end_of_probe(now)
        return Turn(self.era, now, self.troubled)

    def give_back(self, turn: Turn) -> None:
        """Nothing was sent in this turn."""
        if turn.taken_at in self.taken_at:
            self.taken_at.remove(turn.taken_at)
        if self.probe_until == _end_of_probe(turn.taken_at):  # not a later one's
            self.probe_until = 0.0

    def succeeded(self, turn: Turn) -> None:
        """Segment took the request, or spoke of its content: it is there and knows us."""
        if turn.era == self.era and turn.probe:
            self._start_era(next_at=0.0)
            self.failures = 0
            self.hold = None

    def failed(
        self,
        turn: Turn,
        now: float,
        answer: str,
        retry_after: timedelta | None,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        """Not now: the next probe goes after a backoff, or later if Segment asked for it."""
        self.heard(answer, now)
        # Requests that were under way together and fail together are one failure.
        if turn.era == self.era:
            bound = FIRST_BACKOFF.total_seconds() * 2.0 ** min(self.failures, 16)
            wait = jitter(min(bound, LONGEST_BACKOFF.total_seconds()))
            asked = retry_after.total_seconds() if retry_after else 0
            self._start_era(next_at=now + max(wait, asked, _SHORTEST_BACKOFF))
            self.failures += 1

    def refused(self, turn: Turn, now: float, answer: str) -> None:
        """Our fault or the operator's: everything is held, and a probe goes once a minute."""
        self.heard(answer, now)
        if turn.era == self.era:
            self._start_era(next_at=now + HOLD_PROBE.total_seconds())
            self.hold = answer

    def heard(self, answer: str, at: float) -> None:
        """Segment has answered."""
        self.answer, self.answered_at = answer, at

    def standing(self, now: float, clock: datetime) -> Standing:
        """The same in words of the time of day, which it is by the clock."""

        def moment(at: float) -> datetime:
            return clock + timedelta(seconds=at - now)

        waiting = self.troubled and self.next_at > now
        return Standing(
            hold=self.hold,
            failures=self.failures,
            next_at=moment(self.next_at) if waiting else None,
            answer=self.answer,
            answered_at=moment(self.answered_at) if self.answer is not None else None,
        )

    def _start_era(self, *, next_at: float) -> None:
        self.era += 1
        self.probe_until = 0.0
        self.next_at = next_at


def _end_of_probe(taken_at: float) -> float:
    return taken_at + PROBE_LEASE.total_seconds()


def _ahead(moment: float, now: float, most: timedelta) -> float:
    """How far ahead the moment is; 0 where it has passed, or is further than it can be."""
    wait = moment - now
    return wait if 0 < wait <= most.total_seconds() + _ROUNDING else 0.0

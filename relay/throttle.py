"""Decides when the next request to a destination may be sent: rate limit, backoff and hold.

Backoff belongs to the destination, not to an entry. When a destination is down, all its entries
wait for one probe, and waiting does not count as an attempt. All forwarders to one destination
share one throttle, which the outbox keeps, because the destination limits them as one sender.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from relay import backoff

HOLD_PROBE: Final = timedelta(minutes=1)
LONGEST_WAIT: Final = timedelta(hours=1)
"""No wait is longer, whatever the destination asks for; a longer one means a clock set back."""
PROBE_LEASE: Final = timedelta(minutes=1)
"""A probe that is unanswered for this long has ended with its process; another may be sent."""

_ROUNDING: Final = 0.001
_PROBE_UNDER_WAY: Final = 0.25


STRAYS: Final = 3
"""A destination that fails at so many entries, one after the other, is down."""


class Permit(Struct, frozen=True):
    """Permission to send one request. Report its answer to the `Throttle` that gave it.

    Attributes:
        generation: the throttle's generation when it gave the permit.
        taken_at: when the permit was given.
        probe: whether it was given after a failure; all other requests wait for its answer.
    """

    generation: int
    taken_at: float
    probe: bool


class DestinationStatus(Struct, frozen=True):
    """How forwarding to a destination stands.

    Attributes:
        hold: the destination's answer if forwarding to it is on hold; otherwise None.
        failures: consecutive failed probes.
        next_at: when the next probe is sent; None if there is nothing to wait for.
        answer: the latest answer, good or bad; None before the first.
        answered_at: when the latest answer came, roughly.
    """

    hold: str | None = None
    failures: int = 0
    next_at: datetime | None = None
    answer: str | None = None
    answered_at: datetime | None = None


class Throttle(Struct):
    """A giver of permits: so many a second when all is well, otherwise one probe at a time.

    Pure: callers pass the time, in seconds, by a clock that they share.

    Attributes:
        taken_at: when the latest permits were given, oldest first; as many as a second allows.
        next_at: no permit is given before this time.
        generation: counts changes of state.
        failures: consecutive failed probes.
        probe_until: when another probe may be sent although one is unanswered; 0 if none is.
        hold: the destination's answer if forwarding to it is on hold; otherwise None.
        answer: the latest answer.
        answered_at: when it came.
        accepted_at: when the destination last accepted a request; None before the first.
        strays: the entries at which the destination has failed since.
    """

    taken_at: list[float] = []
    next_at: float = 0.0
    generation: int = 0
    failures: int = 0
    probe_until: float = 0.0
    hold: str | None = None
    answer: str | None = None
    answered_at: float = 0.0
    accepted_at: float | None = None
    strays: list[int] = []

    @property
    def probing(self) -> bool:
        """Whether only single probes are sent, because the last request failed."""
        return self.failures > 0 or self.hold is not None

    def acquire(self, now: float, requests_per_second: int) -> Permit | float:
        """Return a permit, or the seconds after which to ask again."""
        if _ahead(self.probe_until, now, PROBE_LEASE):
            return _PROBE_UNDER_WAY
        if wait := _ahead(self.next_at, now, LONGEST_WAIT):
            return wait
        # All permits of a second may be taken at once. A process that wakes for each one finds the
        # processor's caches cold, and works at little more than half its speed.
        del self.taken_at[: max(0, len(self.taken_at) - requests_per_second)]
        if len(self.taken_at) == requests_per_second:
            if wait := _ahead(self.taken_at[0] + 1, now, timedelta(seconds=1)):
                return wait
            del self.taken_at[0]
        self.taken_at.append(now)
        if self.probing:
            self.probe_until = _end_of_probe(now)
        return Permit(self.generation, now, self.probing)

    def release(self, permit: Permit) -> None:
        """Take back a permit with which nothing was sent."""
        if permit.taken_at in self.taken_at:
            self.taken_at.remove(permit.taken_at)
        if self.probe_until == _end_of_probe(permit.taken_at):  # not a later one's
            self.probe_until = 0.0

    def succeeded(self, permit: Permit) -> None:
        """Note that the destination accepted the request, or rejected its content."""
        if permit.generation == self.generation and permit.probe:
            self._start_generation(next_at=0.0)
            self.failures = 0
            self.hold = None

    def accepted(self, at: float) -> None:
        """Note that the destination accepted a request."""
        self.accepted_at = at
        self.strays = []

    def failed_at(
        self,
        entry: int,
        permit: Permit,
        now: float,
        answer: str,
        retry_after: timedelta | None,
        jitter: Callable[[float], float] = backoff.full_jitter,
    ) -> None:
        """Note a failure at one entry; back off if the destination fails at others, too."""
        if entry not in self.strays:
            self.strays = [*self.strays, entry][-STRAYS:]
        if permit.probe or len(self.strays) == STRAYS:
            self.failed(permit, now, answer, retry_after, jitter)
        else:
            self.record(answer, now)

    def failed(
        self,
        permit: Permit,
        now: float,
        answer: str,
        retry_after: timedelta | None,
        jitter: Callable[[float], float] = backoff.full_jitter,
    ) -> None:
        """Back off: send the next probe after a wait, or later if the destination asked for it."""
        self.record(answer, now)
        # Requests that were under way at the same time and all fail count as one failure.
        if permit.generation == self.generation:
            wait = backoff.wait_seconds(self.failures, retry_after, jitter)
            self._start_generation(next_at=now + wait)
            self.failures += 1

    def refused(self, permit: Permit, now: float, answer: str) -> None:
        """Hold everything, because the destination refuses relay; send one probe a minute."""
        self.record(answer, now)
        if permit.generation == self.generation:
            self._start_generation(next_at=now + HOLD_PROBE.total_seconds())
            self.hold = answer

    def record(self, answer: str, at: float) -> None:
        """Note the destination's latest answer."""
        self.answer, self.answered_at = answer, at

    def status(self, now: float, clock: datetime) -> DestinationStatus:
        """Return the status, with times of day; `clock` is the time of day at `now`."""

        def time_of_day(at: float) -> datetime:
            return clock + timedelta(seconds=at - now)

        waiting = self.probing and self.next_at > now
        return DestinationStatus(
            hold=self.hold,
            failures=self.failures,
            next_at=time_of_day(self.next_at) if waiting else None,
            answer=self.answer,
            answered_at=time_of_day(self.answered_at) if self.answer is not None else None,
        )

    def _start_generation(self, *, next_at: float) -> None:
        self.generation += 1
        self.probe_until = 0.0
        self.next_at = next_at


def _end_of_probe(taken_at: float) -> float:
    return taken_at + PROBE_LEASE.total_seconds()


def _ahead(at: float, now: float, most: timedelta) -> float:
    """Return the seconds until a time; 0 if it has passed, or is further ahead than `most`."""
    wait = at - now
    return wait if 0 < wait <= most.total_seconds() + _ROUNDING else 0.0

"""Takes permits to send from a destination's throttle, which forwarders share in the outbox."""

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta

import structlog

from relay.backoff import full_jitter
from relay.errors import OutboxError
from relay.outbox.entries import Entry
from relay.outbox.protocol import Outbox
from relay.throttle import Permit, Throttle

_log = structlog.get_logger()


class Permits:
    """A forwarder's access to its destination's throttle: permits, and reports of answers.

    Args:
        outbox: keeps the throttle.
        destination: name of the destination.
        requests_per_second: the destination's limit.
        clock: seconds, monotonic.
        jitter: takes a longest wait and returns a wait, in seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        destination: str,
        requests_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._outbox = outbox
        self._destination = destination
        self._requests_per_second = requests_per_second
        self._clock = clock
        self._jitter = jitter
        self._unreported: deque[Callable[[Throttle, float], None]] = deque()
        self._latest: tuple[str, float] | None = None
        self._accepted_at: float | None = None

    def acquire(self) -> Permit | float:
        """Return a permit, or the seconds after which to ask again.

        Raises:
            OutboxError: the throttle cannot be reached.
        """
        self._report_late()
        return self._outbox.throttle(self._destination, self._acquire)

    def release(self, permit: Permit) -> None:
        """Release a permit that was not used to send anything."""
        self._report(lambda throttle, _: throttle.release(permit))

    def succeeded(self, permit: Permit) -> None:
        """Report that the destination took the request: of a probe at once, else in time."""
        self._accepted_at = self._clock()
        if permit.probe:
            self._report(lambda throttle, _: throttle.succeeded(permit))

    def failed(self, permit: Permit, answer: str, retry_after: timedelta | None) -> None:
        """Report that the destination is unavailable."""
        jitter = self._jitter
        self._report(lambda t, now: t.failed(permit, now, answer, retry_after, jitter))

    def failed_at(
        self, entry: Entry, permit: Permit, answer: str, retry_after: timedelta | None
    ) -> timedelta | None:
        """Report that the destination failed at an entry, and may take others.

        Return how long ago it last took one; None if that is not known.
        """
        ago: timedelta | None = None

        def fail(throttle: Throttle, now: float) -> None:
            nonlocal ago
            throttle.failed_at(entry.id, permit, now, answer, retry_after, self._jitter)
            if throttle.accepted_at is not None:
                ago = timedelta(seconds=max(0, now - throttle.accepted_at))

        self._report(fail)
        return ago

    def refused(self, permit: Permit, answer: str) -> None:
        """Report that the destination refuses relay."""
        self._report(lambda throttle, now: throttle.refused(permit, now, answer))

    def record(self, answer: str) -> None:
        """Keep the latest answer, to be reported with the next permit that is taken."""
        self._latest = answer, self._clock()

    def _acquire(self, throttle: Throttle, now: float) -> Permit | float:
        self._catch_up(throttle, now)
        return throttle.acquire(now, self._requests_per_second)

    def _catch_up(self, throttle: Throttle, now: float) -> None:
        """Note what has happened since the throttle was last changed."""
        late = self._clock() - now
        accepted_at, self._accepted_at = self._accepted_at, None
        if accepted_at is not None:
            throttle.accepted(accepted_at - late)
        latest, self._latest = self._latest, None
        if latest:
            answer, at = latest
            throttle.record(answer, at - late)

    def _report(self, change: Callable[[Throttle, float], None]) -> None:
        """Change the throttle, or once the outbox is back: others may wait for a probe's answer."""

        def caught_up(throttle: Throttle, now: float) -> None:
            self._catch_up(throttle, now)
            change(throttle, now)

        try:
            self._outbox.throttle(self._destination, caught_up)
        except OutboxError as error:
            self._unreported.append(change)
            _log.warning(
                "forward.throttle_not_reached", destination=self._destination, error=str(error)
            )

    def _report_late(self) -> None:
        while self._unreported:
            change = self._unreported.popleft()
            try:
                self._outbox.throttle(self._destination, change)
            except OutboxError:
                self._unreported.appendleft(change)
                raise

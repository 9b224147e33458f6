"""Settles entries that a destination does not take now."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from relay import backoff
from relay.destinations import Destination
from relay.errors import UnavailableError
from relay.events import DeadReason, Unusable
from relay.forwarder.batches import Batch
from relay.forwarder.claims import Claims
from relay.forwarder.connections import Connections
from relay.forwarder.permits import Permits
from relay.forwarder.repeats import answer_of
from relay.outbox.entries import Clock, Entry
from relay.throttle import Permit

PATIENCE: Final = timedelta(hours=4)
"""How long a destination may fail at an entry while it takes others, as long as Segment tries."""


class Failures:
    """Settles what a destination does not take now: all of it waits, or one entry and its lanes.

    Args:
        destination: that fails.
        claims: settles entries.
        permits: the destination's permits.
        connections: how many requests may be under way.
        now: the time of day.
        jitter: takes a longest wait and returns a wait, in seconds.
    """

    def __init__(
        self,
        destination: Destination,
        *,
        claims: Claims,
        permits: Permits,
        connections: Connections,
        now: Clock,
        jitter: Callable[[float], float],
    ) -> None:
        self._destination = destination
        self._claims = claims
        self._permits = permits
        self._connections = connections
        self._now = now
        self._jitter = jitter

    def settle(self, batch: Batch, permit: Permit, error: UnavailableError) -> None:
        """Report the failure, and settle the batch."""
        if error.too_many:
            self._connections.halve()
        if error.affects_all or not self._destination.ordered:
            self._permits.failed(permit, str(error), error.retry_after)
            self._claims.release(batch.entries, answer_of(error))
        else:
            for entry in batch.entries:
                self._settle_alone(entry, permit, error)

    def _settle_alone(self, entry: Entry, permit: Permit, error: UnavailableError) -> None:
        accepted_ago = self._permits.failed_at(entry, permit, str(error), error.retry_after)
        now = self._now()
        accepted_at = None if accepted_ago is None else now - accepted_ago
        since = _failing_since(entry, now, accepted_at)
        if now - since >= PATIENCE:
            title, hours = self._destination.title, PATIENCE // timedelta(hours=1)
            detail = f"{title} has failed at it for {hours} h and took others: {error}"
            self._claims.dead_letter(entry, Unusable(DeadReason.POISON, detail))
            return
        wait = backoff.wait_seconds(entry.attempts - 1, error.retry_after, self._jitter)
        retry_at = now + timedelta(seconds=wait)
        self._claims.postpone(
            entry, retry_at=retry_at, answer=answer_of(error), failing_since=since
        )


def _failing_since(entry: Entry, now: datetime, accepted_at: datetime | None) -> datetime:
    """Return since when the destination has failed at the entry while it took others."""
    since = entry.failing_since
    if since is None or accepted_at is None or accepted_at < since:
        return now
    return since

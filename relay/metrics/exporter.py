"""What the outbox tells Prometheus, read when it asks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relay.errors import OutboxError
from relay.events import DeadReason
from relay.metrics import definitions as metrics
from relay.outbox.counters import Change, CounterRow, forgotten, population
from relay.outbox.entries import Clock, total, utc_now
from relay.outbox.protocol import Outbox

_MEBIBYTE: Final = 2**20


class AcceptedVsStored(Struct, frozen=True):
    """What this process has answered `accepted`, and what the outbox has received.

    The first is counted where the answer is made, the second by the outbox in the transaction that
    stores the event. Whatever is answered `accepted` has been committed before, so between two
    looks, each of which takes the first before the second, the second grows at least as much.
    Where it does not, so many events were answered that are not stored, or were stored in a
    database that has gone back to an earlier state since: a standby that lacked the last
    transactions, a copy put in its place.

    It proves no more than that. The second also grows by other receivers, by imports and restores,
    and by webhooks that were stored too late to be answered; each of these can make up for one
    that is missing. Answers from before the first look, at this process's start, are not in it,
    nor are dead letters. That what is stored is not lost on its way out is no part of it:
    the outbox counts what leaves it, and received = in some state + forgotten is how it counts.
    """

    accepted: float
    received: int

    def missing_since(self, earlier: "AcceptedVsStored") -> float:
        """How many events were answered since then and not received."""
        return max(0, (self.accepted - earlier.accepted) - (self.received - earlier.received))


class OutboxExporter:
    """All that the outbox tells.

    Args:
        outbox: the one to read.
        max_backlog: pending entries; None for any number.
        min_free_disk: MiB.
        clock: the time of day.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        max_backlog: int | None,
        min_free_disk: int,
        clock: Clock = utc_now,
    ) -> None:
        self._outbox = outbox
        self._max_backlog = max_backlog
        self._min_free_disk = min_free_disk
        self._clock = clock
        self._before: AcceptedVsStored | None = None

    def begin(self, outbox: Outbox) -> None:
        """Compare what is answered from here on with what is stored; before anything is taken.

        Where the outbox does not answer, nothing is compared until the next start: by a later look,
        what is then on its way would be missing from one side.
        """
        try:
            self._before = _accepted_and_stored(outbox)[0]
        except OutboxError:
            self._before = None

    def read(self) -> bytes:
        """What Prometheus is told; without the outbox, only that it is away."""
        try:
            return _page(self._metrics())
        except OutboxError:
            return self.unread()

    def unread(self) -> bytes:
        """What Prometheus is told while the outbox does not answer."""
        return _page([metrics.OUTBOX_UP.told({(): 0})])

    def _metrics(self) -> list[Metric]:
        promises, counters = _accepted_and_stored(self._outbox)
        counts = total(self._outbox.counts())
        log = self._outbox.log_state()
        now = self._clock()
        waiting = now - (counts.waiting_since or now)
        told = {
            metrics.BACKLOG: counts.pending,
            # A clock may have been put back since.
            metrics.BACKLOG_AGE: max(0, waiting.total_seconds()),
            metrics.BACKLOG_LIMIT: self._max_backlog,
            metrics.HOLD: self._outbox.destination_status("segment").hold is not None,
            metrics.FREE: self._outbox.free_bytes(),
            metrics.LEAST_FREE: self._min_free_disk * _MEBIBYTE,
            metrics.MISSING: promises.missing_since(self._before) if self._before else None,
            metrics.LOG_BYTES: log.size_bytes if log else None,
            metrics.LOG_HELD: log.is_held if log else None,
            metrics.OUTBOX_UP: 1,
        }
        return [
            *(metric.told({(): value}) for metric, value in told.items() if value is not None),
            *of_tallies(counters),
        ]


def of_tallies(counters: Iterable[CounterRow]) -> list[Metric]:
    """What entries did, and where they are now."""
    counters = list(counters)
    received: Counter[tuple[str, ...]] = Counter()
    # From the beginning, so that the first of each kind shows as growth.
    died: Counter[tuple[str, ...]] = Counter({(reason.value,): 0 for reason in DeadReason})
    delivered = 0
    for row in counters:
        if row.change is Change.RECEIVED:
            received[row.source, row.collection or ""] += row.entries
        elif row.change is Change.DEAD_LETTERED:
            died[(row.reason or "",)] += row.entries
        elif row.change is Change.DELIVERED:
            delivered += row.entries
    now: dict[tuple[str, ...], float] = {
        (kind.source, kind.collection or "", kind.state.value, kind.reason or ""): entries
        for kind, entries in population(counters).items()
    }
    return [
        metrics.EVENTS.told(now),
        metrics.RECEIVED.told(received),
        metrics.DELIVERED.told({(): delivered}),
        metrics.DEAD_LETTERED.told(died),
        metrics.FORGOTTEN.told({(): forgotten(counters)}),
    ]


def _accepted_and_stored(outbox: Outbox) -> tuple[AcceptedVsStored, Sequence[CounterRow]]:
    accepted = sum(
        sample.value
        for metric in metrics.WEBHOOKS.collect()
        for sample in metric.samples
        if sample.labels["outcome"] == "accepted"
    )
    counters = outbox.counters()
    # What is answered `accepted` has a collection; what came as a dead letter has none.
    received = sum(
        row.entries
        for row in counters
        if row.change is Change.RECEIVED and row.collection is not None
    )
    return AcceptedVsStored(accepted, received), counters


def _page(told: Sequence[Metric]) -> bytes:
    return generate_latest(_Told(told))


class _Told(Collector):
    def __init__(self, told: Sequence[Metric]) -> None:
        self._told = told

    def collect(self) -> Iterable[Metric]:
        return self._told

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
from relay.outbox.entries import Clock, Counts, utc_now
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
    """Reads from an outbox what Prometheus is told about it.

    Args:
        outbox: the one to read.
        destinations: the names of all.
        max_backlog: pending entries; None for any number.
        min_free_disk: MiB.
        clock: the time of day.
    """

    def __init__(
        self,
        outbox: Outbox,
        destinations: Sequence[str],
        *,
        max_backlog: int | None,
        min_free_disk: int,
        clock: Clock = utc_now,
    ) -> None:
        self._outbox = outbox
        self._destinations = destinations
        self._max_backlog = max_backlog
        self._min_free_disk = min_free_disk
        self._clock = clock
        self._before: AcceptedVsStored | None = None

    def begin(self, outbox: Outbox) -> None:
        """Compare what is answered from here on with what is stored; call it before both.

        If the outbox does not answer, nothing is compared until the next start: a later first look
        would miss on one side what is then being stored.
        """
        try:
            self._before = _accepted_and_stored(outbox)[0]
        except OutboxError:
            self._before = None

    def read(self) -> bytes:
        """Return the metrics of the outbox; if it does not answer, only that it is away."""
        try:
            return _page(self._metrics())
        except OutboxError:
            return self.unread()

    def unread(self) -> bytes:
        """Return the metrics while the outbox does not answer."""
        return _page([metrics.OUTBOX_UP.with_values({(): 0})])

    def _metrics(self) -> list[Metric]:
        accepted_and_stored, counters = _accepted_and_stored(self._outbox)
        log = self._outbox.log_state()
        missing = accepted_and_stored.missing_since(self._before) if self._before else None
        values = {
            metrics.BACKLOG_LIMIT: self._max_backlog,
            metrics.FREE: self._outbox.free_bytes(),
            metrics.LEAST_FREE: self._min_free_disk * _MEBIBYTE,
            metrics.MISSING: missing,
            metrics.LOG_BYTES: log.size_bytes if log else None,
            metrics.LOG_HELD: log.is_held if log else None,
            metrics.OUTBOX_UP: 1,
        }
        return [
            *(each.with_values({(): value}) for each, value in values.items() if value is not None),
            *self._by_destination(),
            *from_counters(counters, self._destinations),
        ]

    def _by_destination(self) -> list[Metric]:
        counts = dict.fromkeys(self._destinations, Counts()) | dict(self._outbox.counts())
        now = self._clock()
        # A clock may have been put back since.
        ages: dict[tuple[str, ...], float] = {
            (name,): max(0.0, (now - (each.waiting_since or now)).total_seconds())
            for name, each in counts.items()
        }
        holds: dict[tuple[str, ...], float] = {
            (name,): float(self._outbox.destination_status(name).hold is not None)
            for name in counts
        }
        return [
            metrics.BACKLOG.with_values(
                {(name,): float(each.pending) for name, each in counts.items()}
            ),
            metrics.BACKLOG_AGE.with_values(ages),
            metrics.HOLD.with_values(holds),
        ]


def from_counters(counters: Iterable[CounterRow], destinations: Iterable[str]) -> list[Metric]:
    """Return what entries did, and in which state they are now."""
    counters = list(counters)
    received: Counter[tuple[str, ...]] = Counter()
    # From the beginning, so that the first of each kind shows as growth.
    delivered: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in destinations})
    dead: Counter[tuple[str, ...]] = Counter(
        {(*name, reason.value): 0 for name in delivered for reason in DeadReason}
    )
    for row in counters:
        if row.change is Change.RECEIVED:
            received[row.source, row.collection or ""] += row.entries
        elif row.change is Change.DEAD_LETTERED:
            dead[row.destination, row.reason or ""] += row.entries
        elif row.change is Change.DELIVERED:
            delivered[(row.destination,)] += row.entries
    now: dict[tuple[str, ...], float] = {
        (
            *(kind.source, kind.destination, kind.collection or ""),
            *(kind.state.value, kind.reason or ""),
        ): entries
        for kind, entries in population(counters).items()
    }
    return [
        metrics.EVENTS.with_values(now),
        metrics.RECEIVED.with_values(received),
        metrics.DELIVERED.with_values(delivered),
        metrics.DEAD_LETTERED.with_values(dead),
        metrics.FORGOTTEN.with_values({(): forgotten(counters)}),
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


def _page(values: Sequence[Metric]) -> bytes:
    return generate_latest(_Values(values))


class _Values(Collector):
    def __init__(self, values: Sequence[Metric]) -> None:
        self._values = values

    def collect(self) -> Iterable[Metric]:
        return self._values

"""Reads the metrics of an outbox, whenever Prometheus asks for them."""

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

_Values = dict[tuple[str, ...], float]


class AcceptedVsStored(Struct, frozen=True):
    """A reading of how many events were answered `accepted`, and of how many were stored.

    An event is received in the transaction that stores it, and accepted after that transaction is
    committed. Each reading takes `accepted` before `received`. So from one reading to the next,
    `received` grows at least as much as `accepted`. If it grows less, some events were answered and
    are not stored: they never were, or the database has gone back to an earlier state. That happens
    after a failover to a standby that lacked the last transactions, or when a copy is put in the
    database's place.

    The comparison finds only some missing events. Other receivers, imports, restores, and webhooks
    that were stored too late for their answer also make `received` grow, and each can hide a
    missing event. Answers from before the first reading, and dead letters, are not compared. An
    event that is lost after it was stored does not show, because it stays counted as received.

    Attributes:
        accepted: events that this process has answered `accepted`.
        received: events that the outbox has ever counted as received, with a collection.
    """

    accepted: float
    received: int

    def missing_since(self, earlier: "AcceptedVsStored") -> float:
        """Return how many events were answered `accepted` since the earlier one and not stored."""
        return max(0, (self.accepted - earlier.accepted) - (self.received - earlier.received))


class OutboxExporter:
    """The metrics of one outbox, as text for Prometheus.

    Args:
        outbox: where they are read.
        destinations: the names of all destinations; each has its series from the start.
        max_backlog: the most entries that may be pending; None if there is no limit.
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
        self._first: AcceptedVsStored | None = None

    def begin(self, outbox: Outbox) -> None:
        """Take the first reading, before anything is answered or stored; later ones compare to it.

        If the outbox does not answer, nothing is compared until the next start: a first reading
        taken later would miss what is being stored at that moment.
        """
        try:
            self._first = _reading(outbox)[0]
        except OutboxError:
            self._first = None

    def read(self) -> bytes:
        """Return the metrics of the outbox; if it does not answer, only `relay_outbox_up`."""
        try:
            return _text(self._metrics())
        except OutboxError:
            return self.away()

    def away(self) -> bytes:
        """Return the metrics of an outbox that does not answer, without asking it."""
        return _text([metrics.OUTBOX_UP.with_values({(): 0})])

    def _metrics(self) -> list[Metric]:
        reading, counters = _reading(self._outbox)
        log = self._outbox.log_state()
        values = {
            metrics.BACKLOG_LIMIT_ENTRIES: self._max_backlog,
            metrics.OUTBOX_FREE_BYTES: self._outbox.free_bytes(),
            metrics.OUTBOX_MIN_FREE_BYTES: self._min_free_disk * _MEBIBYTE,
            metrics.EVENTS_MISSING: reading.missing_since(self._first) if self._first else None,
            metrics.OUTBOX_LOG_BYTES: log.size_bytes if log else None,
            metrics.OUTBOX_LOG_HELD: log.is_held if log else None,
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
        entries: _Values = {}
        seconds: _Values = {}
        holds: _Values = {}
        for name, count in counts.items():
            entries[name,] = count.pending
            # Not below 0: the clock may have been put back since.
            seconds[name,] = max(0.0, (now - (count.waiting_since or now)).total_seconds())
            holds[name,] = self._outbox.destination_status(name).hold is not None
        return [
            metrics.BACKLOG_ENTRIES.with_values(entries),
            metrics.BACKLOG_SECONDS.with_values(seconds),
            metrics.HOLD.with_values(holds),
        ]


def from_counters(counters: Iterable[CounterRow], destinations: Iterable[str]) -> list[Metric]:
    """Return the metrics that count what entries did, and how many are now in each state.

    Each destination has its series at 0 before anything happens, so that the first event of each
    kind shows as growth.
    """
    counters = list(counters)
    received: Counter[tuple[str, ...]] = Counter()
    delivered: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in destinations})
    dead_lettered: Counter[tuple[str, ...]] = Counter(
        {(name, reason.value): 0 for (name,) in delivered for reason in DeadReason}
    )
    for row in counters:
        if row.change is Change.RECEIVED:
            received[row.source, row.collection or ""] += row.entries
        elif row.change is Change.DELIVERED:
            delivered[row.destination,] += row.entries
        elif row.change is Change.DEAD_LETTERED:
            dead_lettered[row.destination, row.reason or ""] += row.entries
    events: _Values = {
        (
            *(kind.source, kind.destination, kind.collection or ""),
            *(kind.state.value, kind.reason or ""),
        ): entries
        for kind, entries in population(counters).items()
    }
    return [
        metrics.EVENTS.with_values(events),
        metrics.EVENTS_RECEIVED.with_values(received),
        metrics.EVENTS_DELIVERED.with_values(delivered),
        metrics.EVENTS_DEAD_LETTERED.with_values(dead_lettered),
        metrics.EVENTS_FORGOTTEN.with_values({(): forgotten(counters)}),
    ]


def _reading(outbox: Outbox) -> tuple[AcceptedVsStored, Sequence[CounterRow]]:
    """Return what to compare, and the counters that it was read from."""
    accepted = _accepted()  # first: see `AcceptedVsStored`
    counters = outbox.counters()
    received = sum(
        row.entries
        for row in counters
        # Without a collection it came as a dead letter, and was not answered `accepted`.
        if row.change is Change.RECEIVED and row.collection is not None
    )
    return AcceptedVsStored(accepted, received), counters


def _accepted() -> float:
    return sum(
        sample.value
        for metric in metrics.WEBHOOKS.collect()
        for sample in metric.samples
        if sample.labels["outcome"] == "accepted"
    )


def _text(values: Sequence[Metric]) -> bytes:
    return generate_latest(_Collected(values))


class _Collected(Collector):
    """Metrics in the form that `generate_latest` takes."""

    def __init__(self, values: Sequence[Metric]) -> None:
        self._values = values

    def collect(self) -> Iterable[Metric]:
        return self._values

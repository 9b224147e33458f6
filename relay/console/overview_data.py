"""Collects what the overview shows: destinations, the seven collections, what was ignored."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from relay.destinations import Destination
from relay.events import Collection, DeadReason
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.counters import SLOT, Change, CounterRow, population
from relay.outbox.entries import Clock, Counts, State, utc_now
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus

# Segment's descriptions, in other words (segment-docs, connections/sources/catalog/cloud-apps/
# vero).
DESCRIPTIONS: Final = {
    Collection.SENT: "Sent from the source's servers.",
    Collection.DELIVERED: "Delivered to the receiving server.",
    Collection.OPENED: "The HTML message was opened; needs open tracking.",
    Collection.LINK_CLICKED: "A link in it was clicked; needs click tracking.",
    Collection.UNSUBSCRIBED: "The subscription management link was clicked.",
    Collection.BOUNCED: "The receiving server could not or would not accept it.",
    Collection.MARKED_AS_SPAM: "The recipient marked it as spam.",
}

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_BARS: Final = 48
_RATE_SECONDS: Final = 15.0
_FRESH_SECONDS: Final = 0.9


class CollectionView(Struct, frozen=True):
    """What was received of one of the seven collections.

    Attributes:
        hour: received within the last hour; `day`: within the last day.
        total: ever received.
        bars: received in each half hour of the last day, oldest first.
        latest: when the last one was received.
    """

    collection: Collection
    description: str
    hour: int
    day: int
    total: int
    bars: tuple[int, ...]
    latest: datetime | None


class DestinationView(Struct, frozen=True):
    """What the overview shows of one destination.

    Attributes:
        title: its name for people.
        counts: its entries by state.
        dead: its dead letters, without those that today's settings would ignore.
        rate: delivered a second; None until two measurements can be compared.
        bars: delivered in each half hour of the last day, oldest first.
        latest: when the last one was delivered.
    """

    name: str
    title: str
    status: DestinationStatus
    counts: Counts
    dead: int
    rate: float | None
    bars: tuple[int, ...]
    latest: datetime | None


class AnswerCount(Struct, frozen=True):
    """How many webhooks of a source had the same answer since this process began.

    Attributes:
        what: why they were ignored, or the status with which they were refused.
    """

    source: str
    what: str
    count: int


class Overview(Struct, frozen=True):
    """All that the page shows.

    Attributes:
        received: how many events were ever received.
        rate: received a second; None until two measurements can be compared.
        bars: received in each half hour of the last day, oldest first.
        latest: when the last one was received.
        ignored: answers by reason, the commonest first; `refused`: by status.
    """

    now: datetime
    received: int
    rate: float | None
    bars: tuple[int, ...]
    latest: datetime | None
    destinations: tuple[DestinationView, ...]
    collections: tuple[CollectionView, ...]
    ignored: tuple[AnswerCount, ...]
    refused: tuple[AnswerCount, ...]


class OverviewCache:
    """The overview, worked out at most once a second for everyone who has the page open.

    Args:
        outbox: what is counted.
        destinations: every destination.
        clock: the time of day.
        elapsed: seconds, monotonic.
    """

    def __init__(
        self,
        outbox: Outbox,
        destinations: Sequence[Destination],
        *,
        clock: Clock = utc_now,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._destinations = destinations
        self._clock = clock
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._latest: Overview | None = None
        self._measured_at = 0.0
        self._received_rate = _Rate()
        self._delivered_rates = {destination.name: _Rate() for destination in destinations}

    def current(self) -> Overview:
        """Return the overview, less than a second old."""
        with self._lock:
            now = self._elapsed()
            if self._latest is None or now - self._measured_at >= _FRESH_SECONDS:
                self._latest = self._measure(now)
                self._measured_at = now
            return self._latest

    def _measure(self, elapsed: float) -> Overview:
        now = self._clock()
        counters = self._outbox.counters()
        received = [row for row in counters if row.change is Change.RECEIVED]
        return Overview(
            now=now,
            received=_sum(received),
            rate=self._received_rate.measure(elapsed, _sum(received)),
            bars=_bars(received, now),
            latest=_latest(received),
            destinations=tuple(self._destination_views(counters, elapsed, now)),
            collections=tuple(_collection_view(each, received, now) for each in Collection),
            ignored=_answers("ignored"),
            refused=_answers("refused"),
        )

    def _destination_views(
        self, counters: Sequence[CounterRow], elapsed: float, now: datetime
    ) -> Iterator[DestinationView]:
        counts, dead = self._outbox.counts(), _dead(counters)
        delivered = [row for row in counters if row.change is Change.DELIVERED]
        for destination in self._destinations:
            name = destination.name
            own = [row for row in delivered if row.destination == name]
            yield DestinationView(
                name=name,
                title=destination.title,
                status=self._outbox.destination_status(name),
                counts=counts.get(name, Counts()),
                dead=dead[name],
                rate=self._delivered_rates[name].measure(elapsed, _sum(own)),
                bars=_bars(own, now),
                latest=_latest(own),
            )


class _Rate:
    """The growth of a total over the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def measure(self, elapsed: float, total: int) -> float | None:
        """Take a sample; return the growth a second, None at the first one and after a pause."""
        self._samples.append((elapsed, total))
        while elapsed - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        since, before = self._samples[0]
        return (total - before) / (elapsed - since) if elapsed > since else None


def _collection_view(
    collection: Collection, received: Iterable[CounterRow], now: datetime
) -> CollectionView:
    own = [row for row in received if row.collection == collection]
    return CollectionView(
        collection=collection,
        description=DESCRIPTIONS[collection],
        hour=_sum(_within(own, now - _HOUR)),
        day=_sum(_within(own, now - _DAY)),
        total=_sum(own),
        bars=_bars(own, now),
        latest=_latest(own),
    )


def _dead(counters: Iterable[CounterRow]) -> Counter[str]:
    """Count each destination's dead letters, without those that today's settings would ignore."""
    counted: Counter[str] = Counter()
    for kind, entries in population(counters).items():
        if kind.state is State.DEAD and kind.reason != DeadReason.IGNORED:
            counted[kind.destination] += entries
    return counted


def _within(counters: Iterable[CounterRow], since: datetime) -> list[CounterRow]:
    """Return the rows of slots that began after `since`, give or take half a slot."""
    return [row for row in counters if row.since and row.since > since - SLOT / 2]


def _sum(counters: Iterable[CounterRow]) -> int:
    return sum(row.entries for row in counters)


def _latest(counters: Iterable[CounterRow]) -> datetime | None:
    return max((row.latest for row in counters), default=None)


def _bars(counters: Iterable[CounterRow], now: datetime) -> tuple[int, ...]:
    counted: Counter[int] = Counter()
    width = _DAY / _BARS
    for row in counters:
        if row.since:
            counted[_BARS - 1 - (now - row.since) // width] += row.entries
    return tuple(counted[place] for place in range(_BARS))


def _answers(outcome: str) -> tuple[AnswerCount, ...]:
    """Return what this process has answered with the outcome, the commonest first."""
    counted = [
        AnswerCount(sample.labels["source"], sample.labels["what"], int(sample.value))
        for metric in WEBHOOKS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == outcome
    ]
    return tuple(sorted(counted, key=lambda each: (-each.count, each.source, each.what)))

"""Collects what the overview shows: the flows, what came in by kind, and what was ignored."""

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from relay.console.descriptions import DESCRIPTIONS, IGNORED_BY
from relay.console.kinds import Kinds, kinds_for
from relay.destinations import Destination
from relay.events import DeadReason
from relay.metrics.definitions import WEBHOOKS
from relay.operations.waiting import stranded
from relay.outbox.counters import SLOT, Change, CounterRow, population
from relay.outbox.entries import Clock, Counts, State, utc_now
from relay.outbox.protocol import Outbox
from relay.routes import Routes
from relay.throttle import DestinationStatus

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_BARS: Final = 48
_RATE_SECONDS: Final = 15.0
_FRESH_SECONDS: Final = 0.9


class CollectionView(Struct, frozen=True):
    """What was received of one of the seven collections, or of one type of calls.

    Attributes:
        hour: received within the last hour; `day`: within the last day.
        total: ever received.
        bars: received in each half hour of the last day, oldest first.
        latest: when the last one was received.
    """

    collection: str
    description: str
    hour: int
    day: int
    total: int
    bars: tuple[int, ...]
    latest: datetime | None


class Traffic(Struct, frozen=True):
    """What was received or delivered.

    Attributes:
        total: ever.
        rate: a second; None until two measurements can be compared.
        bars: in each half hour of the last day, oldest first.
        latest: when the last one was.
    """

    total: int
    rate: float | None
    bars: tuple[int, ...]
    latest: datetime | None


class Flow(Struct, frozen=True):
    """What comes in for one destination, and goes out to it.

    Attributes:
        name: the destination's; `title` is its name for people.
        credential: the variable without which nothing can be sent there.
        kinds: the kinds of what goes there.
        counts: its entries by state.
        dead: its dead letters, without those that today's settings would ignore.
        collections: what was received, by collections or by types of calls.
    """

    name: str
    title: str
    credential: str
    kinds: Kinds
    status: DestinationStatus
    counts: Counts
    dead: int
    received: Traffic
    delivered: Traffic
    collections: tuple[CollectionView, ...]


class AnswerCount(Struct, frozen=True):
    """How many webhooks or calls of a source had the same answer since this process began.

    Attributes:
        what: why they were ignored, or the status with which they were refused.
        setting: the variable by which they were ignored; None if no setting decides.
    """

    source: str
    what: str
    count: int
    setting: str | None = None


class Overview(Struct, frozen=True):
    """All that the page shows.

    Attributes:
        received: how many entries were ever received.
        flows: one for each destination that is in use.
        stranded: sentences about entries for destinations that are not configured.
        ignored: answers by reason, the commonest first; `refused`: by status.
    """

    now: datetime
    received: int
    flows: tuple[Flow, ...]
    stranded: tuple[str, ...]
    ignored: tuple[AnswerCount, ...]
    refused: tuple[AnswerCount, ...]


class OverviewCache:
    """The overview, worked out at most once a second for everyone who has the page open.

    Args:
        outbox: what is counted.
        routes: every route.
        clock: the time of day.
        elapsed: seconds, monotonic.
    """

    def __init__(
        self,
        outbox: Outbox,
        routes: Routes,
        *,
        clock: Clock = utc_now,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._routes = routes
        self._clock = clock
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._latest: Overview | None = None
        self._measured_at = 0.0
        self._rates: defaultdict[tuple[str, Change], _Rate] = defaultdict(_Rate)

    def current(self) -> Overview:
        """Return the overview, less than a second old."""
        with self._lock:
            now = self._elapsed()
            if self._latest is None or now - self._measured_at >= _FRESH_SECONDS:
                self._latest = self._measure(now)
                self._measured_at = now
            return self._latest

    def _measure(self, elapsed: float) -> Overview:
        counters, counts = self._outbox.counters(), self._outbox.counts()
        return Overview(
            now=self._clock(),
            received=_sum(row for row in counters if row.change is Change.RECEIVED),
            flows=tuple(self._flows(counters, counts, elapsed)),
            stranded=tuple(stranded(counts, self._routes)),
            ignored=_answers("ignored"),
            refused=_answers("refused"),
        )

    def _flows(
        self, counters: Sequence[CounterRow], counts: Mapping[str, Counts], elapsed: float
    ) -> Iterator[Flow]:
        dead, now = _dead(counters), self._clock()
        for destination in self._used_destinations(counts):
            name = destination.name
            kinds = kinds_for(destination, self._routes)
            own = [row for row in counters if row.destination == name]
            received = [row for row in own if row.change is Change.RECEIVED]
            yield Flow(
                name=name,
                title=destination.title,
                credential=destination.credential,
                kinds=kinds,
                status=self._outbox.destination_status(name),
                counts=counts.get(name, Counts()),
                dead=dead[name],
                received=self._traffic(name, Change.RECEIVED, own, elapsed),
                delivered=self._traffic(name, Change.DELIVERED, own, elapsed),
                collections=tuple(
                    _collection_view(each, received, now) for each in kinds.collections
                ),
            )

    def _used_destinations(self, counts: Mapping[str, Counts]) -> Sequence[Destination]:
        """Return the destinations that sources are received for, or that have entries."""
        used = {route.destination.name for route in self._routes.receiving} | {*counts}
        destinations = self._routes.destinations
        return [each for each in destinations if each.name in used] or destinations

    def _traffic(
        self, destination: str, change: Change, counters: Iterable[CounterRow], elapsed: float
    ) -> Traffic:
        made = [row for row in counters if row.change is change]
        total = _sum(made)
        rate = self._rates[destination, change].measure(elapsed, total)
        return Traffic(total, rate, _bars(made, self._clock()), _latest(made))


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
    collection: str, received: Iterable[CounterRow], now: datetime
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
        AnswerCount(
            sample.labels["source"],
            sample.labels["what"],
            int(sample.value),
            IGNORED_BY.get(sample.labels["what"]),
        )
        for metric in WEBHOOKS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == outcome
    ]
    return tuple(sorted(counted, key=lambda each: (-each.count, each.source, each.what)))

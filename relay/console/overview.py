"""What the first page shows: the flow and its numbers, the seven collections, what was ignored."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from relay.destinations import Destination
from relay.events import Collection, DeadReason
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.counters import SLOT, Change, CounterRow, population
from relay.outbox.entries import Clock, Counts, State, total, utc_now
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus

# As Segment's documentation describes them (segment-docs, connections/sources/catalog/cloud-apps/
# vero), in other words.
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


class Row(Struct, frozen=True):
    """One of the seven.

    Attributes:
        hour: how many were received within it, and so on.
        bars: how many in each half hour of the last day, oldest first.
        latest: when the last one was received.
    """

    collection: Collection
    description: str
    hour: int
    day: int
    in_all: int
    bars: tuple[int, ...]
    latest: datetime | None


class Count(Struct, frozen=True):
    """So many webhooks were answered alike since this process began."""

    source: str
    what: str
    count: int


class Overview(Struct, frozen=True):
    """All that the page shows.

    Attributes:
        received: how many ever were.
        rate_in: received, a second; None until that can be told.
        rate_out: delivered, a second.
        bars_in: received in each half hour of the last day, oldest first.
        bars_out: delivered likewise.
        latest_in: when the last one was received, and `latest_out` delivered.
        dead: how many dead letters there are that are not just ignored by now.
        ignored: by reason; and `refused` by the status that was answered.
    """

    now: datetime
    counts: Counts
    standing: DestinationStatus
    received: int
    rate_in: float | None
    rate_out: float | None
    rows: tuple[Row, ...]
    bars_in: tuple[int, ...]
    bars_out: tuple[int, ...]
    latest_in: datetime | None
    latest_out: datetime | None
    dead: int
    ignored: tuple[Count, ...]
    refused: tuple[Count, ...]


class Watch:
    """Looks at the outbox, once a second at the most however many look at the page.

    Args:
        outbox: what is looked at.
        destinations: all of them.
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
        self._looking = threading.Lock()
        self._latest: Overview | None = None
        self._samples: deque[tuple[float, int, int]] = deque()

    def look(self) -> Overview:
        """How things are."""
        with self._looking:
            now = self._elapsed()
            if self._latest is None or now - self._samples[-1][0] >= _FRESH_SECONDS:
                self._latest = self._look(now)
            return self._latest

    def _look(self, elapsed: float) -> Overview:
        counters = self._outbox.counters()
        received = [row for row in counters if row.change is Change.RECEIVED]
        delivered = [row for row in counters if row.change is Change.DELIVERED]
        ever_in, ever_out = _sum(received), _sum(delivered)
        rate_in, rate_out = self._rates(elapsed, ever_in, ever_out)
        now = self._clock()
        return Overview(
            now=now,
            counts=total(self._outbox.counts()),
            standing=self._outbox.destination_status(self._destinations[0].name),
            received=ever_in,
            rate_in=rate_in,
            rate_out=rate_out,
            rows=tuple(_row(collection, received, now) for collection in Collection),
            bars_in=_bars(received, now),
            bars_out=_bars(delivered, now),
            latest_in=_latest(received),
            latest_out=_latest(delivered),
            dead=_dead(counters),
            ignored=_answered("ignored"),
            refused=_answered("refused"),
        )

    def _rates(
        self, elapsed: float, received: int, delivered: int
    ) -> tuple[float, float] | tuple[None, None]:
        self._samples.append((elapsed, received, delivered))
        while elapsed - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        since, received_then, delivered_then = self._samples[0]
        if elapsed == since:
            return None, None
        seconds = elapsed - since
        return (received - received_then) / seconds, (delivered - delivered_then) / seconds


def _row(collection: Collection, received: Sequence[CounterRow], now: datetime) -> Row:
    own = [row for row in received if row.collection == collection]
    return Row(
        collection=collection,
        description=DESCRIPTIONS[collection],
        hour=_sum(_within(own, now - _HOUR)),
        day=_sum(_within(own, now - _DAY)),
        in_all=_sum(own),
        bars=_bars(own, now),
        latest=_latest(own),
    )


def _dead(counters: Iterable[CounterRow]) -> int:
    return sum(
        entries
        for kind, entries in population(counters).items()
        if kind.state is State.DEAD and kind.reason != DeadReason.IGNORED
    )


def _within(counters: Iterable[CounterRow], since: datetime) -> list[CounterRow]:
    """Those of slots that began since then, about five minutes more or less."""
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


def _answered(outcome: str) -> tuple[Count, ...]:
    """What this process has answered so, the commonest first."""
    counted = [
        Count(sample.labels["source"], sample.labels["what"], int(sample.value))
        for metric in WEBHOOKS.collect()
        for sample in metric.samples
        if sample.name.endswith("_total") and sample.labels["outcome"] == outcome
    ]
    return tuple(sorted(counted, key=lambda one: (-one.count, one.source, one.what)))

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.console.overview_data import (
    DESCRIPTIONS,
    CollectionView,
    DestinationView,
    Overview,
    OverviewCache,
)
from relay.events import Collection, DeadReason, Unusable
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.entries import Arrival, total
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import MINUTE
from tests.harness.fakes import Clock
from tests.harness.routes import segment_at

HOUR = 60 * MINUTE
SENT, OPENED = Collection.SENT, Collection.OPENED


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SqliteOutbox]:
    """It shares the clock."""
    outbox = SqliteOutbox(tmp_path / "relay.db", clock=clock.now)
    yield outbox
    outbox.close()


@pytest.fixture
def overview_cache(outbox: SqliteOutbox, clock: Clock) -> OverviewCache:
    return OverviewCache(outbox, [segment_at()], clock=clock.now, elapsed=clock.monotonic)


def add(
    outbox: SqliteOutbox,
    at: datetime,
    collection: Collection = OPENED,
    count: int = 1,
) -> None:
    first = total(outbox.counts()).pending + total(outbox.counts()).delivered
    outbox.add(
        [
            Arrival("vero", "segment", f"event-{first + each}", at, b"{}", collection=collection)
            for each in range(count)
        ]
    )


def ack(outbox: SqliteOutbox, count: int) -> None:
    outbox.ack(outbox.claim("segment", count, lease=MINUTE))


def row(overview: Overview, collection: Collection = OPENED) -> CollectionView:
    return next(row for row in overview.collections if row.collection == collection)


def segment(overview: Overview) -> DestinationView:
    """Return the view of the only destination."""
    (view,) = overview.destinations
    return view


def test_dead_letters_that_are_ignored_by_now_are_not_counted_as_dead(
    outbox: SqliteOutbox, clock: Clock, overview_cache: OverviewCache
) -> None:
    add(outbox, clock.now(), count=3)
    reasons = (DeadReason.IGNORED, DeadReason.REJECTED, DeadReason.IGNORED)
    for entry, reason in zip(outbox.claim("segment", 3, lease=MINUTE), reasons, strict=True):
        outbox.dead_letter(entry, Unusable(reason, "why"))
    view = segment(overview_cache.current())

    assert (view.dead, view.counts.dead) == (1, 3)


def test_all_seven_collections_are_listed_before_anything_is_received(
    overview_cache: OverviewCache,
) -> None:
    overview = overview_cache.current()

    assert [row.collection for row in overview.collections] == [*Collection]
    assert [row.description for row in overview.collections] == [*DESCRIPTIONS.values()]
    assert {(row.hour, row.day, row.total, row.latest) for row in overview.collections} == {
        (0, 0, 0, None)
    }
    assert (overview.received, overview.latest, segment(overview).latest) == (0, None, None)
    assert overview.bars == segment(overview).bars == (0,) * 48


def test_each_collection_is_counted_for_the_hour_the_day_and_in_total(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    now = clock.now()
    for ago, count in ((timedelta(0), 1), (50 * MINUTE, 2), (70 * MINUTE, 4), (23 * HOUR, 8)):
        add(outbox, now - ago, count=count)
    add(outbox, now - 24.5 * HOUR, count=16)
    add(outbox, now - 100 * HOUR, count=32)
    add(outbox, now - MINUTE, SENT)
    outbox.aggregate_counters(now - 25 * HOUR)
    overview = overview_cache.current()
    opened = row(overview)

    assert (opened.hour, opened.day, opened.total) == (3, 15, 63)
    assert opened.latest == now
    assert (row(overview, SENT).total, row(overview, SENT).latest) == (1, now - MINUTE)
    assert overview.received == 64
    assert overview.latest == now


def test_each_bar_counts_half_an_hour_of_the_last_day(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    now = clock.now()
    add(outbox, now, count=1)
    add(outbox, now - 20 * MINUTE, count=2)
    add(outbox, now - 40 * MINUTE, SENT, count=4)
    add(outbox, now - 23.7 * HOUR, count=8)
    add(outbox, now - 24.2 * HOUR, count=16)
    ack(outbox, 31)
    overview = overview_cache.current()

    assert len(overview.bars) == 48
    assert (overview.bars[-1], overview.bars[-2], overview.bars[0]) == (3, 4, 8)
    assert sum(overview.bars) == 15
    assert (row(overview).bars[-1], row(overview).bars[-2]) == (3, 0)
    assert segment(overview).bars == (0,) * 47 + (31,)
    assert segment(overview).latest == now


def test_a_clock_that_goes_back_moves_nothing_to_yesterday(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    add(outbox, clock.now() + 2 * HOUR)
    overview = overview_cache.current()

    assert sum(overview.bars) == 0
    assert row(overview).total == 1


def test_rates_are_measured_over_the_last_seconds(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    assert (overview_cache.current().rate, segment(overview_cache.current()).rate) == (None, None)

    add(outbox, clock.now(), count=30)
    clock.sleep(10)
    ack(outbox, 20)
    overview = overview_cache.current()

    assert (overview.rate, segment(overview).rate) == (3, 2)

    clock.sleep(5)

    assert overview_cache.current().rate == 2

    clock.sleep(5)

    assert overview_cache.current().rate == 0

    clock.sleep(60)

    assert overview_cache.current().rate is None  # nobody has looked for so long


def test_the_outbox_is_looked_at_once_a_second_at_most(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    first = overview_cache.current()
    add(outbox, clock.now())
    clock.sleep(0.5)

    assert overview_cache.current() is first

    clock.sleep(0.5)

    assert overview_cache.current().received == 1


def test_equal_answers_are_counted_together(overview_cache: OverviewCache, clock: Clock) -> None:
    before = {(each.source, each.what): each.count for each in overview_cache.current().ignored}
    WEBHOOKS.labels("for-the-overview", "ignored", "a_reason").inc(3)
    WEBHOOKS.labels("for-the-overview", "refused", "401").inc(2)
    WEBHOOKS.labels("for-the-overview", "accepted", "Email Sent").inc(9)
    clock.sleep(1)
    overview = overview_cache.current()
    refused = {(each.source, each.what): each.count for each in overview.refused}

    assert {(each.source, each.what): each.count for each in overview.ignored} == {
        **before,
        ("for-the-overview", "a_reason"): 3,
    }
    assert refused["for-the-overview", "401"] == 2
    assert [each.count for each in overview.ignored] == sorted(
        (each.count for each in overview.ignored), reverse=True
    )

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.console.overview import DESCRIPTIONS, Overview, Row, Watch
from relay.console.pages import bars, number, rate, span
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
def watch(outbox: SqliteOutbox, clock: Clock) -> Watch:
    return Watch(outbox, [segment_at()], clock=clock.now, elapsed=clock.monotonic)


def add(
    outbox: SqliteOutbox, at: datetime, collection: Collection = OPENED, count: int = 1
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


def row(overview: Overview, collection: Collection = OPENED) -> Row:
    return next(row for row in overview.rows if row.collection == collection)


def test_what_is_ignored_by_now_is_not_among_the_dead_letters_that_need_a_look(
    outbox: SqliteOutbox, clock: Clock, watch: Watch
) -> None:
    add(outbox, clock.now(), count=3)
    reasons = (DeadReason.IGNORED, DeadReason.REJECTED, DeadReason.IGNORED)
    for entry, reason in zip(outbox.claim("segment", 3, lease=MINUTE), reasons, strict=True):
        outbox.dead_letter(entry, Unusable(reason, "why"))
    overview = watch.look()

    assert (overview.dead, overview.counts.dead) == (1, 3)


def test_the_seven_stand_there_even_where_nothing_came_in(watch: Watch) -> None:
    overview = watch.look()

    assert [row.collection for row in overview.rows] == [*Collection]
    assert [row.description for row in overview.rows] == [*DESCRIPTIONS.values()]
    assert {(row.hour, row.day, row.in_all, row.latest) for row in overview.rows} == {
        (0, 0, 0, None)
    }
    assert (overview.received, overview.latest_in, overview.latest_out) == (0, None, None)
    assert overview.bars_in == overview.bars_out == (0,) * 48


def test_each_is_counted_for_the_hour_the_day_and_in_all(
    watch: Watch, outbox: SqliteOutbox, clock: Clock
) -> None:
    now = clock.now()
    for ago, count in ((timedelta(0), 1), (50 * MINUTE, 2), (70 * MINUTE, 4), (23 * HOUR, 8)):
        add(outbox, now - ago, count=count)
    add(outbox, now - 24.5 * HOUR, count=16)
    add(outbox, now - 100 * HOUR, count=32)
    add(outbox, now - MINUTE, SENT)
    outbox.aggregate_counters(now - 25 * HOUR)
    overview = watch.look()
    opened = row(overview)

    assert (opened.hour, opened.day, opened.in_all) == (3, 15, 63)
    assert opened.latest == now
    assert (row(overview, SENT).in_all, row(overview, SENT).latest) == (1, now - MINUTE)
    assert overview.received == 64
    assert overview.latest_in == now


def test_bars_stand_for_the_half_hours_of_a_day(
    watch: Watch, outbox: SqliteOutbox, clock: Clock
) -> None:
    now = clock.now()
    add(outbox, now, count=1)
    add(outbox, now - 20 * MINUTE, count=2)
    add(outbox, now - 40 * MINUTE, SENT, count=4)
    add(outbox, now - 23.7 * HOUR, count=8)
    add(outbox, now - 24.2 * HOUR, count=16)
    ack(outbox, 31)
    overview = watch.look()

    assert len(overview.bars_in) == 48
    assert (overview.bars_in[-1], overview.bars_in[-2], overview.bars_in[0]) == (3, 4, 8)
    assert sum(overview.bars_in) == 15
    assert (row(overview).bars[-1], row(overview).bars[-2]) == (3, 0)
    assert overview.bars_out == (0,) * 47 + (31,)
    assert overview.latest_out == now


def test_a_clock_that_goes_back_moves_nothing_to_yesterday(
    watch: Watch, outbox: SqliteOutbox, clock: Clock
) -> None:
    add(outbox, clock.now() + 2 * HOUR)
    overview = watch.look()

    assert sum(overview.bars_in) == 0
    assert row(overview).in_all == 1


def test_rates_are_those_of_the_last_seconds(
    watch: Watch, outbox: SqliteOutbox, clock: Clock
) -> None:
    assert (watch.look().rate_in, watch.look().rate_out) == (None, None)

    add(outbox, clock.now(), count=30)
    clock.sleep(10)
    ack(outbox, 20)
    overview = watch.look()

    assert (overview.rate_in, overview.rate_out) == (3, 2)

    clock.sleep(5)

    assert watch.look().rate_in == 2

    clock.sleep(5)

    assert watch.look().rate_in == 0

    clock.sleep(60)

    assert watch.look().rate_in is None  # nobody has looked for so long


def test_the_outbox_is_looked_at_once_a_second_at_the_most(
    watch: Watch, outbox: SqliteOutbox, clock: Clock
) -> None:
    first = watch.look()
    add(outbox, clock.now())
    clock.sleep(0.5)

    assert watch.look() is first

    clock.sleep(0.5)

    assert watch.look().received == 1


def test_what_was_answered_alike_is_counted_together(watch: Watch, clock: Clock) -> None:
    before = {(each.source, each.what): each.count for each in watch.look().ignored}
    WEBHOOKS.labels("for-the-overview", "ignored", "a_reason").inc(3)
    WEBHOOKS.labels("for-the-overview", "refused", "401").inc(2)
    WEBHOOKS.labels("for-the-overview", "accepted", "Email Sent").inc(9)
    clock.sleep(1)
    overview = watch.look()
    refused = {(each.source, each.what): each.count for each in overview.refused}

    assert {(each.source, each.what): each.count for each in overview.ignored} == {
        **before,
        ("for-the-overview", "a_reason"): 3,
    }
    assert refused["for-the-overview", "401"] == 2
    assert [each.count for each in overview.ignored] == sorted(
        (each.count for each in overview.ignored), reverse=True
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_599, "59 min 59 s"),
        (3_605, "1 h 5 s"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_told_in_two_units_at_the_most(seconds: float, said: str) -> None:
    assert span(timedelta(seconds=seconds)) == said


@pytest.mark.parametrize(
    ("per_second", "said"),
    [(None, "…"), (0, "0/min"), (0.5, "30/min"), (1, "1/s"), (1_234.6, "1\u202f235/s")],
)
def test_a_rate_is_told_by_the_second_or_the_minute(per_second: float | None, said: str) -> None:
    assert rate(per_second) == said


def test_thousands_stand_apart() -> None:
    assert number(1_234_567) == "1\u202f234\u202f567"


def test_bars_are_as_high_as_there_is_room_and_none_vanishes() -> None:
    assert [bar["height"] for bar in bars((0, 1, 500, 1_000))] == [0, 2, 18, 36]
    assert [bar["x"] for bar in bars((5, 5))] == [0, 1]
    assert [bar["height"] for bar in bars((0, 0))] == [0, 0]

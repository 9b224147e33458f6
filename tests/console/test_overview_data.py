import ast
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.console.descriptions import DESCRIPTIONS, IGNORED_BY
from relay.console.overview_data import CollectionView, Flow, Overview, OverviewCache
from relay.events import CallType, Collection, DeadReason, Unusable
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.entries import Arrival, total
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from relay.sources.vero import Vero, VeroSettings
from tests.contracts.outbox import MINUTE
from tests.harness.calls import accepted, routes_both_ways, segment_source, vero_at
from tests.harness.fakes import Clock
from tests.harness.routes import routes, segment_at

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
    return OverviewCache(outbox, routes(), clock=clock.now, elapsed=clock.monotonic)


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
    return next(row for row in only(overview).collections if row.collection == collection)


def only(overview: Overview) -> Flow:
    """Return the only flow."""
    (flow,) = overview.flows
    return flow


def rates(overview_cache: OverviewCache) -> tuple[float | None, float | None]:
    """Return how many entries a second are received and delivered."""
    flow = only(overview_cache.current())
    return flow.received.rate, flow.delivered.rate


def test_each_reason_names_the_setting_that_ignores_by_it() -> None:
    """The table of the overview is what the sources and destinations say."""
    calls = [
        node
        for path in Path("relay").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Ignored"
    ]
    literals = [[ast.unparse(each).strip("'") for each in call.args] for call in calls]

    assert {reason: setting for reason, *rest in literals for setting in rest} == IGNORED_BY


def test_what_a_setting_ignores_is_shown_with_it(overview_cache: OverviewCache) -> None:
    WEBHOOKS.labels("segment", "ignored", "screen").inc()
    WEBHOOKS.labels("segment", "ignored", "loop").inc()
    ignored = {each.what: each.setting for each in overview_cache.current().ignored}

    assert ignored["screen"] == "VERO_SCREEN"
    assert ignored["loop"] is None


def test_dead_letters_that_are_ignored_by_now_are_not_counted_as_dead(
    outbox: SqliteOutbox, clock: Clock, overview_cache: OverviewCache
) -> None:
    add(outbox, clock.now(), count=3)
    reasons = (DeadReason.IGNORED, DeadReason.REJECTED, DeadReason.IGNORED)
    for entry, reason in zip(outbox.claim("segment", 3, lease=MINUTE), reasons, strict=True):
        outbox.dead_letter(entry, Unusable(reason, "why"))
    flow = only(overview_cache.current())

    assert (flow.dead, flow.counts.dead) == (1, 3)


def test_all_seven_collections_are_listed_before_anything_is_received(
    overview_cache: OverviewCache,
) -> None:
    overview = overview_cache.current()
    flow = only(overview)

    assert [row.collection for row in flow.collections] == [*Collection]
    assert [row.description for row in flow.collections] == [DESCRIPTIONS[c] for c in Collection]
    assert {(row.hour, row.day, row.total, row.latest) for row in flow.collections} == {
        (0, 0, 0, None)
    }
    assert (overview.received, flow.received.latest, flow.delivered.latest) == (0, None, None)
    assert flow.received.bars == flow.delivered.bars == (0,) * 48


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
    assert overview.received == only(overview).received.total == 64
    assert only(overview).received.latest == now


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

    bars = only(overview).received.bars

    assert len(bars) == 48
    assert (bars[-1], bars[-2], bars[0]) == (3, 4, 8)
    assert sum(bars) == 15
    assert (row(overview).bars[-1], row(overview).bars[-2]) == (3, 0)
    assert only(overview).delivered.bars == (0,) * 47 + (31,)
    assert only(overview).delivered.latest == now


def test_a_clock_that_goes_back_moves_nothing_to_yesterday(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    add(outbox, clock.now() + 2 * HOUR)
    overview = overview_cache.current()

    assert sum(only(overview).received.bars) == 0
    assert row(overview).total == 1


def test_rates_are_measured_over_the_last_seconds(
    overview_cache: OverviewCache, outbox: SqliteOutbox, clock: Clock
) -> None:
    assert rates(overview_cache) == (None, None)

    add(outbox, clock.now(), count=30)
    clock.sleep(10)
    ack(outbox, 20)

    assert rates(overview_cache) == (3, 2)

    clock.sleep(5)

    assert rates(overview_cache)[0] == 2

    clock.sleep(5)

    assert rates(overview_cache)[0] == 0

    clock.sleep(60)

    assert rates(overview_cache)[0] is None  # nobody has looked for so long


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


def test_each_flow_counts_its_own_entries_by_its_own_kinds(
    outbox: SqliteOutbox, clock: Clock
) -> None:
    both = routes_both_ways()
    overview_cache = OverviewCache(outbox, both, clock=clock.now, elapsed=clock.monotonic)
    add(outbox, clock.now(), count=3)
    outbox.add(accepted(both, {"type": "track", "userId": "42", "event": "Seen"}))
    clock.sleep(1)
    emails, calls = overview_cache.current().flows

    assert (emails.received.total, calls.received.total) == (3, 1)
    assert {row.collection: row.total for row in emails.collections if row.total} == {OPENED: 3}
    assert [row.collection for row in calls.collections] == [*CallType]
    assert {row.collection: row.total for row in calls.collections if row.total} == {"track": 1}
    assert (emails.kinds.are_calls, calls.kinds.are_calls) == (False, True)
    assert overview_cache.current().received == 4


def test_a_destination_is_shown_once_something_is_received_for_it(
    outbox: SqliteOutbox, clock: Clock
) -> None:
    vero = Vero(VeroSettings.model_validate({"secret": "a-secret-of-vero"}))
    both = Routes([vero, segment_source()], [segment_at(), vero_at()])
    overview_cache = OverviewCache(outbox, both, clock=clock.now, elapsed=clock.monotonic)
    before = [flow.name for flow in overview_cache.current().flows]
    outbox.add(accepted(both, {"type": "identify", "userId": "42"}))
    clock.sleep(1)

    assert before == ["segment"]
    assert [flow.name for flow in overview_cache.current().flows] == ["segment", "vero"]

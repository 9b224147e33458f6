"""Replays of calls: into lanes, and of those of which only a part was sent."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.events import DeadReason, Unusable
from relay.operations.replay import Plan, plan, replay
from relay.operations.search import Criteria, Search
from relay.outbox.entries import Arrival, State
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from tests.cli.desk import webhook
from tests.contracts.outbox import MINUTE
from tests.harness.calls import NOON, accepted, routes_both_ways
from tests.harness.fakes import Clock

REFUSED = Unusable(DeadReason.REJECTED, "400 Bad Request")
BAD_TAGS = {
    "type": "identify",
    "userId": "42",
    "integrations": {"Vero": {"tags": {"action": "replace", "values": ["x"]}}},
}


@pytest.fixture
def routes() -> Routes:
    return routes_both_ways()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    """It shares the clock."""
    with closing(SqliteOutbox(tmp_path / "relay.db", clock=clock.now)) as outbox:
        yield outbox


def add(outbox: Outbox, routes: Routes, *calls: dict[str, Any]) -> None:
    outbox.add(accepted(routes, *calls))


def bury(outbox: Outbox, fault: Unusable, *, sent: int = 0) -> None:
    """Make the entry that is due first a dead letter, once so many of its messages are sent."""
    (entry,) = outbox.claim("vero", 1, lease=MINUTE, ordered=True)
    outbox.advance(entry, sent)
    outbox.dead_letter(entry, fault)


def planned(outbox: Outbox, routes: Routes, clock: Clock, *, chosen: bool = True) -> Plan:
    """Return the plan of a replay of everything, begun in a minute."""
    clock.sleep(60)
    entries = Search(outbox.entries, routes.sources).find(Criteria(), with_history=True)
    return plan(entries, routes, now=clock.now(), began_at=clock.now(), chosen=chosen)


def replayed(outbox: Outbox, routes: Routes, clock: Clock, *, chosen: bool = True) -> int:
    """Replay everything, begun in a minute; return how many entries became pending."""
    clock.sleep(60)
    entries = Search(outbox.entries, routes.sources).find(Criteria(), with_history=True)
    operation = outbox.entries.begin("replay", "all")
    now = clock.now()
    steps = replay(outbox.entries, entries, routes, operation, began_at=now, chosen=chosen)
    return sum(pending for _, pending in steps)


def test_a_plan_counts_what_is_sent_after_later_calls(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    email = routes["vero"].accept(webhook("ana"), NOON)
    assert isinstance(email, Arrival)
    outbox.add([email])
    outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
    add(outbox, routes, {"type": "identify", "userId": "42"}, {"type": "delete", "userId": "42"})
    bury(outbox, REFUSED)
    found = planned(outbox, routes, clock)

    assert found.to_send == 2
    assert found.in_lanes == {"Vero": 1}
    assert found.again == {"Segment": 1}
    assert found.too_late == {}
    assert found.unusable == {"deletion_requested": 1}


def test_each_destination_has_its_own_window_in_which_it_recognises_a_copy(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    email = routes["vero"].accept(webhook("ana"), NOON)
    assert isinstance(email, Arrival)
    event = {"type": "track", "userId": "42", "event": "Seeds Ordered"}
    outbox.add([email, *accepted(routes, event)])
    outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))
    clock.sleep(timedelta(hours=1).total_seconds())
    found = planned(outbox, routes, clock)

    assert found.again == {"Segment": 1, "Vero": 1}
    assert found.too_late == {"Vero": 1}


def test_a_call_that_says_how_things_are_never_counts_twice(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    outbox.add(accepted(routes, {"type": "identify", "userId": "42"}))
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))
    clock.sleep(timedelta(hours=1).total_seconds())
    found = planned(outbox, routes, clock)

    assert found.again == {"Vero": 1}
    assert found.too_late == {}


def test_a_replayed_call_is_sent_after_what_came_later_for_the_same_person(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    add(outbox, routes, {"type": "identify", "userId": "42", "traits": {"plan": "old"}})
    bury(outbox, REFUSED)
    add(outbox, routes, {"type": "identify", "userId": "42", "traits": {"plan": "new"}})
    count = replayed(outbox, routes, clock)
    first = outbox.claim("vero", 9, lease=MINUTE, ordered=True)
    outbox.ack(first)
    second = outbox.claim("vero", 9, lease=MINUTE, ordered=True)

    assert count == 1
    assert [[entry.id for entry in claimed] for claimed in (first, second)] == [[2], [1]]


def test_a_call_of_which_only_bad_tags_are_left_is_not_replayed(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    add(outbox, routes, BAD_TAGS)
    bury(outbox, Unusable(DeadReason.BAD_TAGS, "not a list"), sent=1)
    found = planned(outbox, routes, clock)

    assert (found.to_send, found.unusable) == (0, {"bad_tags": 1})
    assert replayed(outbox, routes, clock) == 0
    assert outbox.counts()["vero"].dead == 1


def test_a_call_with_bad_tags_is_replayed_if_it_was_not_sent_itself(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    add(outbox, routes, BAD_TAGS)
    bury(outbox, REFUSED)
    found = planned(outbox, routes, clock)

    assert (found.to_send, found.unusable) == (1, {})
    assert replayed(outbox, routes, clock) == 1
    assert [entry.state for entry in outbox.entries.find(Criteria(), 9)] == [State.PENDING]


def test_what_was_forbidden_is_replayed_only_if_it_is_chosen(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    add(outbox, routes, {"type": "alias", "userId": "42", "previousId": "7"})
    bury(outbox, Unusable(DeadReason.FORBIDDEN, "alias"))

    assert planned(outbox, routes, clock, chosen=False).unusable == {"forbidden": 1}
    assert replayed(outbox, routes, clock, chosen=False) == 0
    assert planned(outbox, routes, clock).to_send == 1
    assert replayed(outbox, routes, clock) == 1

"""What pending entries wait for."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from relay.operations.waiting import Wait, stranded, wait_of
from relay.outbox.entries import Query, StoredEntry
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from relay.throttle import Permit, Throttle
from tests.contracts.outbox import MINUTE
from tests.harness.calls import accepted, routes_both_ways, vero_at
from tests.harness.fakes import Clock

FIRST = {"type": "identify", "userId": "42"}
SECOND = {"type": "track", "userId": "42", "event": "Seen"}
UNCONFIGURED = routes_both_ways(vero_at(auth_token=""))


@pytest.fixture
def routes() -> Routes:
    return routes_both_ways()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock, routes: Routes) -> Iterator[Outbox]:
    """Two calls about one person, and a clock that it shares."""
    with closing(SqliteOutbox(tmp_path / "relay.db", clock=clock.now)) as outbox:
        outbox.add(accepted(routes, FIRST, SECOND))
        yield outbox


def entry(outbox: Outbox, id_: int) -> StoredEntry:
    (found,) = outbox.entries.find(Query(ids=(id_,)), 1)
    return found


def wait(outbox: Outbox, id_: int, routes: Routes, clock: Clock) -> Wait:
    found = wait_of(outbox, entry(outbox, id_), routes, clock.now())
    assert found is not None
    return found


def refuse(throttle: Throttle, now: float) -> None:
    """Have the destination refuse a request."""
    permit = throttle.acquire(now, 10)
    assert isinstance(permit, Permit)
    throttle.refused(permit, now, "401 Unauthorized")


def test_an_entry_waits_behind_the_first_of_its_lane(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    assert wait(outbox, 1, routes, clock).behind is None
    assert wait(outbox, 2, routes, clock).behind == 1


def test_a_settled_entry_waits_for_nothing_and_holds_nothing_up(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))

    assert wait_of(outbox, entry(outbox, 1), routes, clock.now()) is None
    assert wait(outbox, 2, routes, clock).behind is None


def test_a_postponed_entry_waits_until_it_is_tried_again(
    outbox: Outbox, routes: Routes, clock: Clock
) -> None:
    retry_at = clock.now() + timedelta(seconds=30)
    (first,) = outbox.claim("vero", 1, lease=MINUTE, ordered=True)
    outbox.postpone(first, retry_at=retry_at, answer="503", failing_since=clock.now())

    assert wait(outbox, 1, routes, clock).retry_at == retry_at
    assert wait(outbox, 2, routes, clock).retry_at is None

    clock.sleep(30)

    assert wait(outbox, 1, routes, clock).retry_at is None


def test_an_entry_waits_for_its_destination(outbox: Outbox, routes: Routes, clock: Clock) -> None:
    outbox.throttle("vero", refuse)
    status = wait(outbox, 1, routes, clock).status

    assert status is not None
    assert status.hold == "401 Unauthorized"
    assert wait(outbox, 1, UNCONFIGURED, clock).status is None


def test_entries_for_a_destination_that_is_not_configured_are_named(
    outbox: Outbox, routes: Routes
) -> None:
    (two,) = stranded(outbox.counts(), UNCONFIGURED)
    (removed,) = stranded({"gone": outbox.counts()["vero"]}, routes)
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))
    (one,) = stranded(outbox.counts(), UNCONFIGURED)

    assert two == "2 entries wait for vero, which is not configured: set VERO_AUTH_TOKEN"
    assert one == "1 entry waits for vero, which is not configured: set VERO_AUTH_TOKEN"
    assert removed == "2 entries wait for gone, which is not configured"
    assert stranded(outbox.counts(), routes) == []


def test_what_is_settled_waits_for_no_destination(outbox: Outbox) -> None:
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))
    outbox.ack(outbox.claim("vero", 1, lease=MINUTE, ordered=True))

    assert stranded(outbox.counts(), UNCONFIGURED) == []

"""Destinations share a PostgreSQL outbox and do not wait for each other."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier

import pytest
from msgspec import structs

from relay.outbox.entries import Arrival, Counts
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus, Throttle
from tests.contracts.outbox import FAULT, MINUTE, NOON, acquire, arrival, ids
from tests.harness.fakes import Clock
from tests.harness.postgres import query
from tests.harness.processes import within


@pytest.fixture
def outbox(url: str) -> Iterator[Outbox]:
    """An empty outbox."""
    with closing(PostgresOutbox(url)) as outbox:
        yield outbox


def for_vero(arrival: Arrival) -> Arrival:
    """Return the same arrival for another destination."""
    return structs.replace(arrival, destination="vero")


def test_a_notification_reaches_each_destination_once(url: str, outbox: Outbox) -> None:
    """The entry is a dead letter: nothing is due, so looking at the table would find nothing."""
    with closing(PostgresOutbox(url)) as adding:
        first = [outbox.changed(destination) for destination in ("segment", "vero")]
        quiet = [outbox.changed(destination) for destination in ("segment", "vero")]
        adding.add([arrival("a", fault=FAULT)])
        heard = within(10, lambda: outbox.changed("segment"))
        others = [outbox.changed(destination) for destination in ("vero", "vero", "segment")]

    assert (first, quiet) == ([True, True], [False, False])
    assert heard
    assert others == [True, False, False]


def test_while_no_notification_arrives_each_destination_is_looked_at(
    url: str, outbox: Outbox
) -> None:
    with closing(PostgresOutbox(url)) as adding:
        adding.add([arrival("a"), for_vero(arrival("b"))])
    first = [outbox.changed(destination) for destination in ("segment", "vero")]
    found = [outbox.changed(destination) for destination in ("segment", "vero", "other")]
    soon = [outbox.changed(destination) for destination in ("segment", "vero")]

    assert first == [True, True], "something may have been added before it listened"
    assert found == [True, True, True]
    assert soon == [False, False], "the outbox is not looked at again so soon"


def test_claims_and_counts_are_of_one_destination(url: str) -> None:
    clock = Clock()
    with closing(PostgresOutbox(url, clock=clock.now)) as outbox:
        outbox.add([arrival("a", received_at=NOON - MINUTE), for_vero(arrival("b"))])
        outbox.add([for_vero(arrival("c", fault=FAULT))])
        claimed = [
            ids(outbox.claim(destination, 9, lease=MINUTE))
            for destination in ("segment", "vero", "other")
        ]
        counts = outbox.counts()

    assert claimed == [{"a"}, {"b"}, set()]
    assert counts == {
        "segment": Counts(pending=1, waiting_since=NOON - MINUTE),
        "vero": Counts(pending=1, dead=1, waiting_since=NOON),
    }


def test_processes_that_use_a_throttle_for_the_first_time_share_it(url: str) -> None:
    start = Barrier(6)

    def acquire_one(outbox: Outbox) -> object:
        start.wait()
        return outbox.throttle("vero", acquire)

    with closing(PostgresOutbox(url)) as one, closing(PostgresOutbox(url)) as other:
        at_first = one.destination_status("vero")
        with ThreadPoolExecutor(6) as threads:
            permits = list(threads.map(acquire_one, [one, other] * 3))
        taken = one.throttle("vero", lambda throttle, _: len(throttle.taken_at))

    assert at_first == DestinationStatus()
    assert taken == len(permits) == 6
    assert query(url, "SELECT destination FROM relay.throttles") == [("vero",)]


def test_throttles_of_two_destinations_do_not_wait_for_each_other(url: str, outbox: Outbox) -> None:
    over = threading.Event()
    with closing(PostgresOutbox(url)) as other, ThreadPoolExecutor(1) as threads:
        for known in (False, True):
            over.clear()
            entered = Barrier(2)

            def hold(_throttle: Throttle, _now: float, entered: Barrier = entered) -> bool:
                entered.wait()
                return over.wait(2)

            holding = threads.submit(outbox.throttle, "segment", hold)
            entered.wait()
            for destination in ("vero", "third"):
                other.throttle(destination, acquire)
            over.set()

            assert holding.result(10), f"it was not over before the others had theirs; {known=}"


def test_a_process_stopped_with_the_throttle_does_not_stop_the_others(
    url: str, outbox: Outbox
) -> None:
    stopped, over = Barrier(2), Barrier(2)

    def stop(_throttle: Throttle, _now: float) -> None:
        stopped.wait()
        over.wait()

    with closing(PostgresOutbox(url)) as other, ThreadPoolExecutor(2) as threads:
        holder = threads.submit(outbox.throttle, "segment", stop)
        stopped.wait()
        permit = threads.submit(other.throttle, "segment", acquire)
        try:
            permit.result(30)
        finally:
            over.wait()

    assert holder.exception(10)

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from relay.forwarder.retention import BATCH_ENTRIES, Retention
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import MINUTE, arrival, states
from tests.harness.fakes import Clock
from tests.harness.postgres import PostgresServer

DAY = timedelta(days=1)
MONTH = timedelta(days=30)


class WrongClock(Clock):
    """One that can be set wrong, while the seconds elapsed go on."""

    wrong_by = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.wrong_by


@pytest.fixture
def clock() -> WrongClock:
    """The clock of the outbox and of its retention."""
    return WrongClock()


@pytest.fixture
def sqlite(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    """An empty file."""
    outbox = SqliteOutbox(tmp_path / "relay.db", clock=clock.now, elapsed=clock.monotonic)
    yield outbox
    outbox.close()


@pytest.fixture
def postgresql(postgres: PostgresServer, clock: Clock) -> Iterator[Outbox]:
    """An empty database."""
    url = postgres.create_database()
    outbox = PostgresOutbox(url, clock=clock.now)
    yield outbox
    outbox.close()
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def outbox(request: pytest.FixtureRequest, clock: Clock) -> Outbox:
    """One with a few more delivered entries than a step forgets, and two that are not delivered."""
    outbox: Outbox = request.getfixturevalue(request.param)
    ack(outbox, clock, *(f"delivered {number}" for number in range(BATCH_ENTRIES + 1)))
    outbox.add([arrival("pending"), arrival("dead")])
    return outbox


def ack(outbox: Outbox, clock: Clock, *names: str) -> None:
    """Receive and deliver them now."""
    outbox.add([arrival(name, received_at=clock.now()) for name in names])
    delivered = [
        entry
        for entry in outbox.claim("segment", BATCH_ENTRIES + 9, lease=MINUTE)
        if entry.message_id in names
    ]
    outbox.ack(delivered)


def retention_of(outbox: Outbox, clock: Clock) -> Retention:
    return Retention(outbox, MONTH, clock=clock.now, elapsed=clock.monotonic)


def test_delivered_entries_are_kept_for_their_time(outbox: Outbox, clock: Clock) -> None:
    retention = retention_of(outbox, clock)
    clock.sleep(MONTH.total_seconds() - 1)

    assert not retention.step()
    assert states(outbox)["delivered"] == BATCH_ENTRIES + 1


def test_old_counters_are_aggregated(outbox: Outbox, clock: Clock) -> None:
    retention = retention_of(outbox, clock)
    at_first = {row.since for row in outbox.counters()}
    clock.sleep(2 * 24 * 60 * 60)
    retention.step()

    assert None not in at_first
    assert {row.since for row in outbox.counters()} == {None}
    assert states(outbox) == {"delivered": BATCH_ENTRIES + 1, "pending": 2}


def test_old_delivered_entries_alone_are_deleted(outbox: Outbox, clock: Clock) -> None:
    retention = retention_of(outbox, clock)
    clock.sleep(MONTH.total_seconds() + 1)

    assert retention.step()
    assert states(outbox)["delivered"] == 1
    assert not retention.step()
    assert states(outbox) == {"pending": 2}


def test_a_clock_that_jumps_forward_deletes_nothing(outbox: Outbox, clock: WrongClock) -> None:
    retention = retention_of(outbox, clock)
    clock.sleep(DAY.total_seconds())
    retention.step()
    clock.wrong_by = timedelta(days=365)
    for _ in range(23):
        clock.sleep(3600)
        retention.step()
    kept = states(outbox)["delivered"]
    clock.wrong_by = timedelta(0)
    for _ in range(48):
        clock.sleep(3600)
        retention.step()

    assert kept == states(outbox)["delivered"] == BATCH_ENTRIES + 1


def test_a_clock_that_has_been_steady_for_a_day_is_trusted(
    outbox: Outbox, clock: WrongClock
) -> None:
    """What seemed a jump was the clock being put right, or the machine asleep."""
    retention = retention_of(outbox, clock)
    clock.wrong_by = MONTH + MINUTE
    steps = []
    for _ in range(26):
        clock.sleep(3600)
        steps.append(retention.step())

    assert steps.index(True) == 24
    assert states(outbox)["delivered"] == 0


def test_a_start_with_a_wrong_clock_deletes_nothing_even_after_new_events(
    outbox: Outbox, clock: WrongClock
) -> None:
    clock.wrong_by = timedelta(days=365)
    for hour in range(20):
        ack(outbox, clock, f"new {hour}")
        assert not retention_of(outbox, clock).step()
        clock.sleep(3600)

    assert states(outbox)["delivered"] == BATCH_ENTRIES + 1 + 20


def test_a_start_deletes_at_once_if_the_outbox_counted_events_a_day_ago(
    outbox: Outbox, clock: Clock
) -> None:
    """A platform that restarts its processes each day must not keep everything for ever."""
    clock.sleep(MONTH.total_seconds() + 1)
    assert not retention_of(outbox, clock).step()
    ack(outbox, clock, "new")
    clock.sleep(DAY.total_seconds() + 600)

    assert retention_of(outbox, clock).step()
    assert states(outbox)["delivered"] == 2


def test_it_ends_when_stopped(outbox: Outbox) -> None:
    retention = Retention(outbox, MONTH)
    retention.start()
    retention.stop()

    assert states(outbox)["delivered"] == BATCH_ENTRIES + 1

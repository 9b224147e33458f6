from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay.outbox.sqlite import SqliteOutbox
from relay.retention import STEP, Retention
from tests.contracts import MINUTE, arrival, states
from tests.fakes import Clock

MONTH = timedelta(days=30)


@pytest.fixture
def clock() -> Clock:
    """The clock of the outbox and of its retention."""
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SqliteOutbox]:
    """One with a few more delivered entries than a step forgets, and two that are not delivered."""
    outbox = SqliteOutbox(tmp_path / "relay.db", clock=clock.now, elapsed=clock.monotonic)
    outbox.add([arrival(f"delivered {number}") for number in range(STEP + 1)])
    outbox.deliver(outbox.claim(STEP + 1, lease=MINUTE))
    outbox.add([arrival("pending"), arrival("dead")])
    yield outbox
    outbox.close()


def test_delivered_entries_are_kept_for_their_time(outbox: SqliteOutbox, clock: Clock) -> None:
    retention = Retention(outbox, MONTH, clock=clock.now)
    clock.sleep(MONTH.total_seconds() - 1)

    assert not retention.step()
    assert states(outbox)["delivered"] == STEP + 1


def test_what_is_past_is_tallied_as_a_whole(outbox: SqliteOutbox, clock: Clock) -> None:
    retention = Retention(outbox, MONTH, clock=clock.now)
    at_first = {tally.since for tally in outbox.tallies()}
    clock.sleep(2 * 24 * 60 * 60)
    retention.step()

    assert None not in at_first
    assert {tally.since for tally in outbox.tallies()} == {None}
    assert states(outbox) == {"delivered": STEP + 1, "pending": 2}


def test_then_they_go_little_by_little_and_nothing_else_does(
    outbox: SqliteOutbox, clock: Clock
) -> None:
    retention = Retention(outbox, MONTH, clock=clock.now)
    clock.sleep(MONTH.total_seconds() + 1)

    assert retention.step()
    assert states(outbox)["delivered"] == 1
    assert not retention.step()
    assert states(outbox) == {"pending": 2}


def test_it_ends_when_told(outbox: SqliteOutbox) -> None:
    retention = Retention(outbox, MONTH)
    retention.start()
    retention.stop()

    assert states(outbox)["delivered"] == STEP + 1

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta

import pytest

from relay.outbox.entries import State
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import MINUTE, arrival, ids, settle, states
from tests.harness.fakes import Clock
from tests.harness.stores import SqliteStore, Store

_steps = pytest.mark.parametrize(
    "step",
    [timedelta(hours=1), timedelta(hours=-1), timedelta(days=1), timedelta(days=-1)],
    ids=str,
)


class WallClock(Clock):
    """A clock whose time of day is put right now and then, while time passes as ever."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        """The time of day, aware UTC."""
        return super().now() + self.ahead


@pytest.fixture
def clock() -> WallClock:
    """Of the machine that the store is on."""
    return WallClock()


@pytest.fixture
def outbox(store: Store, clock: WallClock) -> Iterator[Outbox]:
    """The store on a machine with that clock."""
    opened: Outbox
    if isinstance(store, SqliteStore):
        opened = SqliteOutbox(store.path, clock=clock.now, elapsed=clock.monotonic)
    else:
        opened = PostgresOutbox(store.url, clock=clock.now)
    with closing(opened):
        yield opened


@_steps
def test_a_corrected_clock_keeps_nothing_waiting(
    outbox: Outbox, clock: WallClock, step: timedelta
) -> None:
    outbox.add([arrival("new", received_at=clock.now()), arrival("released")])
    outbox.release(
        [e for e in outbox.claim("segment", 9, lease=MINUTE) if e.message_id == "released"]
    )
    clock.ahead += step
    outbox.add([arrival("later", received_at=clock.now())])
    at_once = ids(outbox.claim("segment", 9, lease=MINUTE))
    clock.sleep(60)
    within_a_lease = at_once | ids(outbox.claim("segment", 9, lease=MINUTE))

    assert at_once >= {"released", "later"}
    assert within_a_lease == {"new", "released", "later"}


@_steps
def test_a_corrected_clock_leases_nothing_twice_on_one_machine(
    outbox: Outbox, clock: WallClock, step: timedelta, kind: str
) -> None:
    """In PostgreSQL a lease is told by the clock: there the fence sees to it."""
    outbox.add([arrival("held", received_at=clock.now())])
    (held,) = outbox.claim("segment", 9, lease=MINUTE)
    clock.ahead += step
    again = outbox.claim("segment", 9, lease=MINUTE)
    settle(outbox, held, State.DEAD)

    assert len(again) == (kind == "postgres")
    assert states(outbox) == {"pending" if again else "dead": 1}

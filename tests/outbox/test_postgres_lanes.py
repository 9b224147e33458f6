"""The order of lanes, whatever several processes do in PostgreSQL at the same moment."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest

from relay.errors import OutboxError
from relay.outbox.entries import Entry, Query
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from tests.contracts.lanes import UNSOUND, A, B, call, claim, head, names, requeue
from tests.contracts.outbox import FAULT, MINUTE, arrival
from tests.harness.entries import by_name, erase, everything
from tests.harness.entries import requeue as requeue_unordered
from tests.harness.postgres import PostgresServer, database_of, query
from tests.harness.processes import within
from tests.outbox.crowd import assert_kept_by_a_crowd

_WAITING: Final = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"


@pytest.fixture
def url(postgres: PostgresServer, migrated: str) -> Iterator[str]:
    """The URL of a database with an empty outbox."""
    url = postgres.create_database(migrated)
    yield url
    postgres.drop_database(url)


@pytest.fixture
def outbox(url: str) -> Iterator[Outbox]:
    """An empty outbox."""
    with closing(PostgresOutbox(url)) as outbox:
        yield outbox


@contextmanager
def waiting(url: str, operate: Callable[[], object]) -> Iterator[None]:
    """Yield once the operation waits for the lock of the lanes; it ends after the block."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(operate)
        assert within(20, lambda: query(url, _WAITING) == [(1,)])
        yield
        done.result()


def unsound(url: str) -> list[Any]:
    return query(url, UNSOUND, search_path="relay")


def test_an_entry_is_not_blocked_by_one_that_ends_while_it_is_added(
    url: str, outbox: Outbox
) -> None:
    outbox.add([call("a", A)])
    with psycopg.connect(url) as ending:
        ending.execute("UPDATE relay.entries SET state = 'dead'")
        with waiting(url, lambda: outbox.add([call("b", A)])):
            ending.commit()

    assert unsound(url) == []
    assert names(claim(outbox)) == ["b"]


def test_an_entry_that_is_added_while_the_one_before_it_ends_is_freed(
    url: str, outbox: Outbox
) -> None:
    outbox.add([call("a", A)])
    a = head(outbox)
    with psycopg.connect(url) as adding:
        adding.execute("SELECT relay.lock_lanes()")
        with waiting(url, lambda: outbox.ack([a])):
            adding.execute(
                "INSERT INTO relay.entries (source, destination, message_id, state, received_at,"
                " pending_since, due_at, claim, body)"
                " SELECT source, destination, 'b', state, received_at, received_at, received_at,"
                " 1, body FROM relay.entries"
            )
            adding.execute(
                "INSERT INTO relay.lanes (lane, entry)"
                " SELECT %s, id FROM relay.entries WHERE message_id = 'b'",
                (A,),
            )
            adding.commit()

    assert unsound(url) == []
    assert names(claim(outbox)) == ["b"]


IN_LANES: dict[str, Callable[[Outbox, Entry], object]] = {
    "add": lambda outbox, _: outbox.add([arrival("first"), call("c", B)]),
    "ack": lambda outbox, entry: outbox.ack([entry]),
    "dead letter": lambda outbox, entry: outbox.dead_letter(entry, FAULT),
    "erase": lambda outbox, _: erase(outbox.entries, by_name(outbox.entries)["a"]),
    "requeue": lambda outbox, _: requeue(outbox, ("dead", (A,))),
    "restore": lambda outbox, _: outbox.entries.restore(everything(outbox.entries)),
}
"""Operations that change lanes."""

ELSEWHERE: dict[str, Callable[[Outbox, Entry], object]] = {
    "add": lambda outbox, _: outbox.add([arrival("another")]),
    "ack": lambda outbox, _: outbox.ack(outbox.claim("segment", 1, lease=MINUTE)),
    "dead letter": lambda outbox, _: outbox.dead_letter(
        outbox.claim("segment", 1, lease=MINUTE)[0], FAULT
    ),
    "requeue": lambda outbox, _: requeue_unordered(
        outbox.entries, *outbox.entries.find(Query(destination="segment"), 9)
    ),
    "claim": lambda outbox, _: claim(outbox),
    "release": lambda outbox, entry: outbox.release([entry], "503"),
    "postpone": lambda outbox, entry: outbox.postpone(
        entry, retry_at=datetime.now(UTC), answer="500", failing_since=datetime.now(UTC)
    ),
    "advance": lambda outbox, entry: outbox.advance(entry, 1),
    "purge": lambda outbox, _: outbox.purge(datetime.now(UTC) + MINUTE, 9),
    "find": lambda outbox, entry: [
        outbox.entries.find(Query(), 9),
        outbox.entries.blocked_by(entry.id),
    ],
}
"""Operations that change no lane."""


def some_in_lanes(outbox: Outbox) -> Entry:
    """Add entries with and without lanes; return the first of a lane, claimed."""
    outbox.add([call("a", A), call("b", A), call("dead", B, fault=FAULT)])
    outbox.add([arrival(str(number)) for number in range(3)])
    return head(outbox)


@pytest.mark.parametrize("operation", IN_LANES)
def test_the_lock_of_the_lanes_is_taken_before_any_row(
    url: str, outbox: Outbox, operation: str
) -> None:
    """Otherwise two of them could wait for each other."""
    entry = some_in_lanes(outbox)
    with psycopg.connect(url) as locking:
        locking.execute("SELECT relay.lock_lanes()")
        with waiting(url, lambda: IN_LANES[operation](outbox, entry)):
            rows = locking.execute("SELECT 1 FROM relay.entries FOR UPDATE NOWAIT").fetchall()
            locking.rollback()

    assert len(rows) == 6
    assert unsound(url) == []


@pytest.mark.parametrize("operation", ELSEWHERE)
def test_what_changes_no_lane_does_not_wait_for_the_lock(
    url: str, outbox: Outbox, operation: str
) -> None:
    entry = some_in_lanes(outbox)
    with psycopg.connect(url) as locking:
        locking.execute("SELECT relay.lock_lanes()")
        ELSEWHERE[operation](outbox, entry)


def test_another_level_of_isolation_is_refused(
    postgres: PostgresServer, url: str, outbox: Outbox
) -> None:
    """In it a trigger would not see what was committed while it waited for the lock."""
    name = database_of(url)
    postgres.administer(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    with closing(PostgresOutbox(url)) as other:
        with pytest.raises(OutboxError, match="read committed"):
            other.add([call("a", A)])

        assert other.add([arrival("a")]) == [True]
    assert outbox.add([call("b", A)]) == [True]


def test_a_freed_entry_is_noticed_at_once(outbox: Outbox) -> None:
    outbox.add([call("a", A), call("b", A)])
    a = head(outbox)
    assert within(10, lambda: not outbox.changed("vero"))
    assert within(10, lambda: not outbox.changed("segment"))
    outbox.ack([a])

    assert outbox.changed("vero", ordered=True)
    assert not outbox.changed("segment")


def test_several_forwarders_keep_every_order(url: str, times: Callable[[int, int], int]) -> None:
    for _ in range(times(1, 20)):
        assert_kept_by_a_crowd(url)
        query(url, "TRUNCATE relay.entries, relay.history, relay.keys")

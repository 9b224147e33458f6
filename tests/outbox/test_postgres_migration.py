"""The migration of a PostgreSQL outbox from the previous version loses nothing."""

import json
import subprocess
import sys
import time
from contextlib import closing

import psycopg
import pytest

from relay.outbox.counters import population
from relay.outbox.entries import State, total
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus
from tests.contracts.outbox import MINUTE, claim_all
from tests.harness.entries import everything
from tests.harness.postgres import query
from tests.harness.processes import within
from tests.harness.stores import PostgresStore
from tests.outbox.released import PENDING, load

_STUCK = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
_OPENS = "import sys; from relay.outbox import open_outbox; open_outbox(sys.argv[1])"
_TALLIES = """
    SELECT lane, slot, provider, 'segment', collection, change, reason, entries, latest
    FROM relay.tallies ORDER BY 1, 2, 3, 4, 5, 6, 7
"""
_NEW_WORDS = {"died": "dead_lettered", "revived": "requeued"}


@pytest.fixture
def released(postgres_store: PostgresStore) -> str:
    """The URL of a database with an outbox of the previous version."""
    load(postgres_store, 2)
    return postgres_store.url


def is_consistent(outbox: Outbox) -> bool:
    """Return whether as many entries are counted as there are."""
    return sum(population(outbox.counters()).values()) == len(everything(outbox.entries))


def test_counters_are_carried_over(released: str) -> None:
    before = query(released, _TALLIES)
    PostgresOutbox(released).close()
    after = query(released, "TABLE relay.counters")

    assert {row[5] for row in before} > _NEW_WORDS.keys()
    assert sorted(after) == sorted(
        (*row[:5], _NEW_WORDS.get(row[5], row[5]), *row[6:]) for row in before
    )


def test_a_hold_goes_on(released: str) -> None:
    held = {"hold": "401 Unauthorized", "era": 7, "next_at": time.time() + 60, "answer": "401"}
    with psycopg.connect(released, autocommit=True) as session:
        session.execute("UPDATE relay.pace SET pace = %s", (json.dumps(held).encode(),))
    with closing(PostgresOutbox(released)) as outbox:
        status = outbox.destination_status("segment")

        assert (status.hold, status.answer) == ("401 Unauthorized", "401")
        assert status.next_at
        assert outbox.destination_status("vero") == DestinationStatus()


def test_what_was_pending_is_claimed_and_settled(released: str) -> None:
    with closing(PostgresOutbox(released)) as outbox:
        before = total(outbox.counts())
        claimed = claim_all(outbox, 9)
        outbox.ack(claimed)
        after = total(outbox.counts())

        assert sorted(entry.body for entry in claimed) == sorted(PENDING)
        assert {entry.destination for entry in claimed} == {"segment"}
        assert (after.pending, after.delivered) == (0, before.delivered + len(PENDING))
        assert {entry.destination for entry in everything(outbox.entries)} == {"segment"}
        assert is_consistent(outbox)


def test_what_an_earlier_relay_commits_while_the_migration_waits_is_counted(released: str) -> None:
    with psycopg.connect(released) as earlier:
        earlier.execute(
            "UPDATE relay.entries SET state = 'delivered', delivered_at = now(), due_at = NULL,"
            " pending_since = NULL WHERE state = 'pending'"
        )
        with subprocess.Popen([sys.executable, "-c", _OPENS, released]) as migrating:  # noqa: S603 (its own Python)
            stuck = within(30, lambda: query(released, _STUCK) == [(1,)])
            earlier.commit()
            code = migrating.wait(30)
    with closing(PostgresOutbox(released)) as outbox:
        assert stuck
        assert code == 0
        assert total(outbox.counts()).pending == 0
        assert is_consistent(outbox)


def test_no_entry_is_written_again(released: str) -> None:
    where = "SELECT id, ctid::text, xmin::text FROM relay.entries ORDER BY id"
    before = query(released, where)
    PostgresOutbox(released).close()

    assert query(released, where) == before


def test_an_old_entry_can_be_erased(released: str) -> None:
    with closing(PostgresOutbox(released)) as outbox:
        (dead, *_) = [entry for entry in everything(outbox.entries) if entry.state is State.DEAD]
        operation = outbox.entries.begin("erase", "it")

        assert outbox.entries.erase([dead.id], operation) == 1
        assert is_consistent(outbox)
        assert outbox.claim("vero", 9, lease=MINUTE) == []


def test_a_replay_that_was_interrupted_is_continued_under_todays_words(released: str) -> None:
    with psycopg.connect(released, autocommit=True) as session:
        session.execute(
            "INSERT INTO relay.operations (kind, what, started_at) VALUES"
            " ('replay', 'state=delivered provider=vero message_id=provider=vero', 'epoch')"
        )
    with closing(PostgresOutbox(released)) as outbox:
        operation = outbox.entries.begin(
            "replay", "state=delivered source=vero message_id=provider=vero"
        )

    assert operation.started_at.timestamp() == 0

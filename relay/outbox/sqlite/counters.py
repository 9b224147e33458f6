"""Reads and aggregates the counters of a SQLite outbox; triggers of the schema update them."""

from datetime import datetime
from typing import Any, Final

import apsw

from relay.outbox import rows
from relay.outbox.counters import SLOT, CounterRow
from relay.outbox.entries import Counts
from relay.outbox.sqlite.migrations import SLOT_MILLISECONDS
from relay.outbox.sqlite.times import from_milliseconds, to_milliseconds

_EPOCH: Final = from_milliseconds(0)


def changes(connection: apsw.Connection) -> list[tuple[str, str, int]]:
    """Return triples of destination, change and number of entries, for `rows.states`."""
    counted: list[Any] = connection.execute(_CHANGES).fetchall()
    return counted


def counts(connection: apsw.Connection) -> dict[str, Counts]:
    """See `Outbox.counts`."""
    counted = {}
    for destination, in_state in rows.states(changes(connection)).items():
        since: int | None = connection.execute(_WAITING_SINCE, (destination,)).get
        waiting_since = None if since is None else from_milliseconds(since)
        counted[destination] = rows.counts(in_state, waiting_since)
    return counted


def counters(connection: apsw.Connection) -> list[CounterRow]:
    """See `Outbox.counters`."""
    found: list[Any] = connection.execute(_COUNTERS).fetchall()
    return [rows.counter_row(row, _slot_time, from_milliseconds) for row in found]


def aggregate(connection: apsw.Connection, before: datetime) -> None:
    """See `Outbox.aggregate_counters`. Call it in a transaction."""
    slot = (to_milliseconds(before) // SLOT_MILLISECONDS,)
    connection.execute(_AGGREGATE, slot)
    connection.execute("DELETE FROM counters WHERE slot BETWEEN 1 AND ? - 1", slot)


def _slot_time(slot: int) -> datetime | None:
    return _EPOCH + slot * SLOT if slot else None


_CHANGES: Final = """
    SELECT destination, change, sum(entries) FROM counters GROUP BY destination, change
"""

_WAITING_SINCE: Final = """
    SELECT min(pending_since) FROM entries WHERE state = 'pending' AND destination = ?
"""

_COUNTERS: Final = f"SELECT {rows.COUNTER} FROM counters ORDER BY slot DESC"  # noqa: S608 (nothing but a constant is put in)

_AGGREGATE: Final = """
    INSERT INTO counters
    SELECT 0, source, destination, collection, change, reason, sum(entries), max(latest)
    FROM counters WHERE slot BETWEEN 1 AND ? - 1
    GROUP BY source, destination, collection, change, reason
    ON CONFLICT DO UPDATE
    SET entries = entries + excluded.entries, latest = max(latest, excluded.latest)
"""

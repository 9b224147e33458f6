"""Reads and aggregates the counters of a PostgreSQL outbox; triggers of the schema update them."""

from datetime import datetime
from typing import Any, Final

from relay.outbox import rows
from relay.outbox.counters import SLOT, CounterRow
from relay.outbox.entries import Counts
from relay.outbox.postgres.rows import slot_time, utc
from relay.outbox.postgres.sessions import LONG_SECONDS, Session, Sessions


def changes(session: Session) -> list[tuple[str, str, int]]:
    """Return triples of destination, change and number of entries, for `rows.states`."""
    counted: list[Any] = session.execute(_CHANGES).fetchall()
    return counted


def counts(sessions: Sessions) -> dict[str, Counts]:
    """See `Outbox.counts`."""
    states = rows.states(sessions.run(_CHANGES, {}))
    oldest = dict(sessions.run(_OLDEST_PENDING, {"destinations": list(states)}))
    return {
        destination: rows.counts(in_state, (since := oldest[destination]) and utc(since))
        for destination, in_state in states.items()
    }


def counters(sessions: Sessions) -> list[CounterRow]:
    """See `Outbox.counters`."""
    return [rows.counter_row(row, slot_time, utc) for row in sessions.run(_COUNTERS, {})]


def aggregate(sessions: Sessions, before: datetime) -> None:
    """See `Outbox.aggregate_counters`."""
    sessions.run(_AGGREGATE, {"before": before, "slot": SLOT}, seconds=LONG_SECONDS)


_CHANGES: Final = """
    SELECT destination, change, sum(entries)::bigint
    FROM relay.counters GROUP BY destination, change
"""

# One look-up for each destination, however many entries are pending.
_OLDEST_PENDING: Final = """
    SELECT destination, (
        SELECT min(pending_since) FROM relay.entries
        WHERE state = 'pending' AND entries.destination = counted.destination
    )
    FROM unnest(%(destinations)s::text[]) AS counted (destination)
"""

_COUNTERS: Final = """
    SELECT
        slot, source, destination, collection, change, reason, sum(entries)::bigint, max(latest)
    FROM relay.counters
    GROUP BY slot, source, destination, collection, change, reason ORDER BY slot DESC
"""

# Always in the same order, so that two of these at once cannot deadlock.
_AGGREGATE: Final = """
    WITH past AS MATERIALIZED (
        SELECT ctid FROM relay.counters
        WHERE slot <= %(before)s::timestamptz - %(slot)s AND NOT (lane = 0 AND slot = 'epoch')
        FOR UPDATE SKIP LOCKED
    ), aggregated AS (
        DELETE FROM relay.counters WHERE ctid IN (SELECT ctid FROM past) RETURNING *
    )
    INSERT INTO relay.counters
    SELECT
        0, 'epoch', source, destination, collection, change, reason, sum(entries)::bigint,
        max(latest)
    FROM aggregated GROUP BY source, destination, collection, change, reason
    ORDER BY source, destination, collection, change, reason
    ON CONFLICT (lane, slot, source, destination, collection, change, reason) DO UPDATE
    SET entries = counters.entries + excluded.entries,
        latest = greatest(counters.latest, excluded.latest)
"""

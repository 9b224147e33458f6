"""The statements that read and aggregate the counters of a PostgreSQL outbox."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from relay.outbox.counters import Change, in_states
from relay.outbox.entries import State

COUNT: Final = """
    SELECT destination, change, sum(entries)::bigint
    FROM relay.counters GROUP BY destination, change
"""


def states_by_destination(rows: Iterable[Sequence[Any]]) -> dict[str, dict[State, int]]:
    """Return how many entries of each destination are in each state, by the rows of `COUNT`."""
    changes: defaultdict[str, dict[Change, int]] = defaultdict(dict)
    for destination, change, entries in rows:
        changes[destination][Change(change)] = entries
    return {destination: in_states(counted) for destination, counted in changes.items()}


COUNTERS: Final = """
    SELECT
        slot, source, destination, collection, change, reason, sum(entries)::bigint, max(latest)
    FROM relay.counters
    GROUP BY slot, source, destination, collection, change, reason ORDER BY slot DESC
"""


# In one order, so that two of these at once cannot deadlock.
AGGREGATE: Final = """
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

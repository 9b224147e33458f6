"""The SQL statements that add, claim and settle entries in SQLite."""

from datetime import timedelta
from functools import cache
from typing import Final

from relay.outbox.entries import CRASHES_BEFORE_ISOLATION, Arrival, State, StoredEntry
from relay.outbox.sqlite.times import to_milliseconds
from relay.throttle import LONGEST_WAIT

_ADDED: Final = (
    "source, destination, message_id, state, collection, received_at, pending_since, attempts,"
    " delivered_at, reason, detail, user_key, address_key, email_key, body"
)


@cache
def add(rows: int) -> str:
    """Return the statement that stores so many rows, except those with a stored `message_id`."""
    row = f"({', '.join('?' * len(_ADDED.split()))})"
    return f"""
        INSERT INTO entries ({_ADDED}) VALUES {", ".join([row] * rows)}
        ON CONFLICT (message_id) DO NOTHING
    """  # noqa: S608 (nothing but placeholders is put in)


def arrival_row(arrival: Arrival) -> tuple[str | int | bytes | None, ...]:
    """Return the row of a new entry."""
    received_at, fault, keys = to_milliseconds(arrival.received_at), arrival.fault, arrival.keys
    return (
        arrival.source,
        arrival.destination,
        arrival.message_id,
        State.DEAD if fault else State.PENDING,
        arrival.collection,
        received_at,
        None if fault else received_at,
        0,
        None,
        fault.reason if fault else None,
        fault.detail if fault else None,
        keys.user,
        keys.address,
        keys.email,
        arrival.body,
    )


def restored_row(entry: StoredEntry) -> tuple[str | int | bytes | None, ...]:
    """Return the row of an entry that is restored."""
    received_at, keys = to_milliseconds(entry.received_at), entry.keys
    return (
        entry.source,
        entry.destination,
        entry.message_id,
        entry.state,
        entry.collection,
        received_at,
        received_at if entry.state is State.PENDING else None,
        entry.attempts,
        None if entry.delivered_at is None else to_milliseconds(entry.delivered_at),
        entry.reason,
        entry.detail,
        keys.user,
        keys.address,
        keys.email,
        entry.body,
        entry.step,
    )


_RESTORED: Final = f"{_ADDED}, step"

RESTORE: Final = f"""
    INSERT INTO entries ({_RESTORED}) VALUES ({", ".join("?" * len(_RESTORED.split()))})
    ON CONFLICT (message_id) DO NOTHING RETURNING id
"""  # noqa: S608 (nothing but placeholders is put in)

NEW: Final = "SELECT message_id, id FROM entries WHERE :count > 0 AND id >= :first_id"

JOIN_LANES: Final = """
    INSERT INTO lanes (lane, entry)
    SELECT value ->> 0, value ->> 1 FROM json_each(:rows) ORDER BY key
"""

_CLAIMED: Final = "id, source, message_id, received_at, attempts, crashes, body"
_ORDER: Final = "blocked IS NOT NULL, step, failing_since"  # of entries that may be in lanes

_IS_DUE: Final = """
    state = 'pending' AND destination = :destination
    AND id NOT IN (SELECT value FROM json_each(:held))
"""

_IS_SUSPECT: Final = f"crashes >= {CRASHES_BEFORE_ISOLATION} AND blocked IS NOT 1"

CLAIM: Final = f"""
    SELECT {_CLAIMED} FROM entries WHERE {_IS_DUE} AND crashes < {CRASHES_BEFORE_ISOLATION}
    ORDER BY pending_since LIMIT :limit
"""  # noqa: S608 (nothing but constants is put in)

_LONGEST_WAIT: Final = LONGEST_WAIT // timedelta(milliseconds=1)


def _heads(when: str, order: str) -> str:
    return f"""
        SELECT * FROM (
            SELECT id, max(pending_since, retry_at) AS due_since FROM entries
            WHERE {_IS_DUE} AND crashes < {CRASHES_BEFORE_ISOLATION} AND blocked = 0 AND {when}
            ORDER BY {order} LIMIT :limit
        )
    """  # noqa: S608 (nothing but constants is put in)


# Three ranges of one index, so that no entry is looked at that is not due. The third is of times
# that were set before the clock was set back.
CLAIM_ORDERED: Final = f"""
    WITH due AS (
        {_heads("retry_at = 0", "pending_since")}
        UNION ALL {_heads("retry_at > 0 AND retry_at <= :now", "retry_at")}
        UNION ALL {_heads(f"retry_at > :now + {_LONGEST_WAIT}", "retry_at")}
    ), oldest AS MATERIALIZED (
        SELECT id, due_since FROM due ORDER BY due_since LIMIT :limit
    )
    SELECT {_CLAIMED}, {_ORDER} FROM oldest CROSS JOIN entries USING (id) ORDER BY due_since
"""  # noqa: S608 (as above)

# A random one: the same innocent suspect must not be claimed at every crash.
CLAIM_SUSPECT: Final = f"""
    SELECT {_CLAIMED}, {_ORDER} FROM entries WHERE {_IS_DUE} AND {_IS_SUSPECT}
    ORDER BY random() LIMIT :limit
"""  # noqa: S608 (as above)

ANY_SUSPECT: Final = f"""
    SELECT EXISTS (SELECT 1 FROM entries WHERE {_IS_DUE} AND {_IS_SUSPECT})
"""  # noqa: S608 (nothing but constants is put in)

# An entry that was released, or settled and requeued, has its attempts in its row by then.
COUNT_CRASHES: Final = """
    UPDATE entries SET attempts = claim.value ->> 1,
        crashes = crashes + (coalesce(claim.value ->> 2, :no_lineage) IN (:no_lineage, :crashed))
    FROM json_each(:claims) AS claim
    WHERE entries.id = claim.value ->> 0 AND entries.state = 'pending'
        AND entries.attempts < claim.value ->> 1
"""

# Compares the message id, too: once the latest entry is erased, SQLite gives its id to the next.
SETTLE: Final = """
    UPDATE entries
    SET state = :state, delivered_at = :delivered_at,
        pending_since = CASE WHEN :state = 'pending' THEN pending_since END,
        reason = :reason, detail = :detail, attempts = held.value ->> 1, crashes = 0
    FROM json_each(:held) AS held
    WHERE entries.id = held.value ->> 0 AND entries.message_id = held.value ->> 2
        AND entries.state = 'pending'
"""

NOTE_HISTORY: Final = """
    INSERT INTO history (entry, at, what, detail)
    SELECT entries.id, :at, :what, :happened
    FROM json_each(:held) AS held JOIN entries ON entries.id = held.value ->> 0
    WHERE entries.message_id = held.value ->> 2 AND entries.state = 'pending'
"""

POSTPONE: Final = """
    UPDATE entries SET retry_at = :retry_at, failing_since = :failing_since
    FROM json_each(:held) AS held
    WHERE entries.id = held.value ->> 0 AND entries.message_id = held.value ->> 2
        AND entries.state = 'pending'
"""

ADVANCE: Final = """
    UPDATE entries SET step = :step
    WHERE id = :id AND message_id = :message_id AND state = 'pending'
"""

PURGE: Final = """
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE state = 'delivered' AND delivered_at < ?
        ORDER BY delivered_at LIMIT ?
    )
"""

PENDING_EXCEED: Final = (
    "SELECT EXISTS (SELECT 1 FROM entries WHERE state = 'pending' LIMIT 1 OFFSET ?)"
)

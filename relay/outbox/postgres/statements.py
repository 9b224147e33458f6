"""The SQL statements that add, claim and settle entries in PostgreSQL."""

from datetime import timedelta
from typing import Final

from psycopg import sql

from relay.outbox.entries import CRASHES_BEFORE_ISOLATION
from relay.throttle import LONGEST_WAIT

_LONGEST_LEASE: Final = timedelta(minutes=2)
_SUSPECT_CRASHES: Final = sql.Literal(CRASHES_BEFORE_ISOLATION)
_LOCKED: Final = sql.SQL("FOR UPDATE SKIP LOCKED")

# A lease that ends further ahead than any lease can was given before the clock was set back.
_IS_DUE: Final = sql.SQL("""(
    due_at <= coalesce(%(now)s::timestamptz, now())
    OR due_at > coalesce(%(now)s::timestamptz, now()) + {longest_lease}
)""").format(longest_lease=sql.Literal(_LONGEST_LEASE))

_ADD: Final = """
    WITH arrival AS (
        SELECT * FROM unnest(
            %(sources)s::text[], %(destinations)s::text[], %(message_ids)s::text[],
            %(received_at)s::timestamptz[], %(reasons)s::text[], %(details)s::text[],
            %(collections)s::text[], %(user_keys)s::bigint[], %(address_keys)s::bigint[],
            %(email_keys)s::bigint[], %(bodies)b::bytea[]
        ) AS arrival (
            source, destination, message_id, received_at, reason, detail, collection,
            user_key, address_key, email_key, body
        )
    ), added AS (
        INSERT INTO relay.entries (
            source, destination, message_id, state, collection, received_at, pending_since, due_at,
            claim, reason, detail, body, blocked
        )
        SELECT
            source, destination, message_id,
            CASE WHEN reason IS NULL THEN 'pending' ELSE 'dead' END,
            collection, received_at, CASE WHEN reason IS NULL THEN received_at END,
            CASE WHEN reason IS NULL THEN
                least(received_at, coalesce(%(now)s::timestamptz, now()))
            END,
            %(claim)s::bigint, reason, detail, body,
            CASE WHEN message_id = ANY (%(laned)s::text[]) THEN 0 END
        FROM arrival
        ON CONFLICT (message_id) DO NOTHING
        RETURNING id, message_id
    ), keyed AS (
        INSERT INTO relay.keys (entry, user_key, address_key, email_key)
        SELECT id, user_key, address_key, email_key FROM added JOIN arrival USING (message_id)
        WHERE coalesce(user_key, address_key, email_key) IS NOT NULL
        ON CONFLICT (entry) DO NOTHING  -- copies in one group
    ), confirmed AS (
        -- Entries that are there already may not have reached the standby yet: the transaction
        -- that added them may have been cancelled while it waited. This update waits for it.
        UPDATE relay.status SET beat = beat + 1
        WHERE current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (TABLE added)
    )
"""

_ADDED: Final = "SELECT message_id FROM added"

ADD: Final = _ADD + _ADDED

ADD_IN_LANES: Final = (
    _ADD  # noqa: S608 (all parts are constants)
    + """
    , laned AS (
        INSERT INTO relay.lanes (lane, entry)
        SELECT lane, id
        FROM unnest(%(laned)s::text[], %(lanes)s::bigint[])
            WITH ORDINALITY AS place (message_id, lane, number)
        JOIN added USING (message_id)
        ORDER BY number
    )
    """
    + _ADDED
)

NOTIFY: Final = ", (SELECT pg_notify('relay', '')) AS notification"
"""Added to a statement that adds, it notifies those who listen."""

ADDED: Final = """
    SELECT message_id FROM relay.entries
    WHERE message_id = ANY (%(message_ids)s) AND claim = %(claim)s
"""

# In the order of the index, so that the planner does not read the table from its beginning.
ANY_DUE: Final = sql.SQL("""
    SELECT 1 FROM relay.entries
    WHERE state = 'pending' AND destination = %(destination)s AND {is_due}
    ORDER BY pending_since LIMIT 1
""").format(is_due=_IS_DUE)

_CLAIMED: Final = sql.SQL("""
    UPDATE relay.entries AS entry
    SET due_at = coalesce(%(now)s::timestamptz, now()) + %(lease)s,
        attempts = attempts + 1, crashes = crashes + 1, claim = %(claim)s
    FROM summed WHERE entry.id = summed.id AND total - summed.size < %(bytes)s
    RETURNING
        entry.id, source, destination, message_id, received_at, attempts, claim, body, crashes - 1,
        blocked IS NOT NULL, step, failing_since
""")

CLAIM: Final = sql.SQL("""
    WITH due AS MATERIALIZED (
        SELECT id, pending_since, octet_length(body) AS size FROM relay.entries
        WHERE state = 'pending' AND destination = %(destination)s
            AND crashes < {suspect_crashes} AND {is_due}
        ORDER BY pending_since LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ), summed AS (
        SELECT id, size, sum(size) OVER (ORDER BY pending_since, id) AS total FROM due
    )
    {claimed}
""").format(suspect_crashes=_SUSPECT_CRASHES, is_due=_IS_DUE, claimed=_CLAIMED)


def _heads(when: sql.SQL | sql.Composed, end: sql.SQL) -> sql.Composed:
    """Return a query for due entries that head their lanes, oldest first."""
    return sql.SQL("""
        SELECT
            id, greatest(pending_since, retry_at) AS pending_since, octet_length(body) AS size
        FROM relay.entries
        WHERE state = 'pending' AND destination = %(destination)s AND blocked = 0 AND {when}
            AND crashes < {suspect_crashes} AND {is_due}
        ORDER BY retry_at, entries.pending_since LIMIT %(limit)s {end}
    """).format(when=when, suspect_crashes=_SUSPECT_CRASHES, is_due=_IS_DUE, end=end)


# Three ranges of one index, so that no entry is looked at that is not due. The third is of times
# that were set before the clock was set back.
_NEW: Final = sql.SQL("retry_at = '-infinity'")
_RETRIED: Final = sql.SQL(
    "retry_at > '-infinity' AND retry_at <= coalesce(%(now)s::timestamptz, now())"
)
_FROM_THE_FUTURE: Final = sql.SQL(
    "retry_at > coalesce(%(now)s::timestamptz, now()) + {longest_wait}"
).format(longest_wait=sql.Literal(LONGEST_WAIT))

ANY_HEAD_DUE: Final = sql.SQL("({}) UNION ALL ({}) UNION ALL ({}) LIMIT 1").format(
    *(_heads(when, sql.SQL("")) for when in (_NEW, _RETRIED, _FROM_THE_FUTURE))
)

CLAIM_ORDERED: Final = sql.SQL("""
    WITH new AS MATERIALIZED ({new}), retried AS MATERIALIZED ({retried}),
    from_the_future AS MATERIALIZED ({from_the_future}),
    due AS (
        SELECT * FROM (TABLE new UNION ALL TABLE retried UNION ALL TABLE from_the_future) AS due
        ORDER BY pending_since LIMIT %(limit)s
    ), summed AS (
        SELECT id, size, sum(size) OVER (ORDER BY pending_since, id) AS total FROM due
    )
    {claimed}
""").format(
    new=_heads(_NEW, _LOCKED),
    retried=_heads(_RETRIED, _LOCKED),
    from_the_future=_heads(_FROM_THE_FUTURE, _LOCKED),
    claimed=_CLAIMED,
)

# A random one: the same innocent suspect must not be claimed first after each crash.
CLAIM_SUSPECT: Final = sql.SQL("""
    WITH due AS MATERIALIZED (
        SELECT id FROM relay.entries
        WHERE state = 'pending' AND destination = %(destination)s
            AND crashes >= {suspect_crashes} AND blocked IS DISTINCT FROM 1 AND {is_due}
        ORDER BY random() LIMIT %(limit)s
    ), summed AS MATERIALIZED (
        SELECT id, 0 AS size, 0 AS total FROM relay.entries
        WHERE id IN (SELECT id FROM due) AND state = 'pending' AND {is_due}
        FOR UPDATE SKIP LOCKED
    )
    {claimed}
""").format(suspect_crashes=_SUSPECT_CRASHES, is_due=_IS_DUE, claimed=_CLAIMED)

BEGIN_POST: Final = """
    UPDATE relay.entries SET crashes = crashes - 1, claim = %(claim)s
    WHERE id = %(id)s AND claim = %(held)s AND state = 'pending' RETURNING id
"""

# The claim changes, too, so that the crash is counted once.
COUNT_CRASH: Final = sql.SQL("""
    UPDATE relay.entries SET crashes = crashes + 1, claim = -claim
    WHERE state = 'pending' AND crashes >= {suspect_crashes}
        AND claim >= %(first)s AND claim < %(end)s
    RETURNING id
""").format(suspect_crashes=_SUSPECT_CRASHES)

ANY_SUSPECT: Final = sql.SQL("""
    SELECT 1 FROM relay.entries
    WHERE state = 'pending' AND destination = %(destination)s
        AND crashes >= {suspect_crashes} AND blocked IS DISTINCT FROM 1 AND {is_due}
    LIMIT 1
""").format(suspect_crashes=_SUSPECT_CRASHES, is_due=_IS_DUE)

# In the order of an index, as above.
PENDING_EXCEED: Final = """
    SELECT 1 FROM relay.entries WHERE state = 'pending'
    ORDER BY destination, pending_since LIMIT 1 OFFSET %(limit)s
"""

SETTLE: Final = """
    UPDATE relay.entries AS entry
    SET state = %(state)s, reason = %(reason)s, detail = %(detail)s, crashes = 0,
        pending_since = CASE WHEN %(state)s = 'pending' THEN pending_since END,
        due_at = CASE WHEN %(state)s = 'pending' THEN coalesce(%(now)s::timestamptz, now()) END,
        delivered_at =
            CASE WHEN %(state)s = 'delivered' THEN coalesce(%(now)s::timestamptz, now()) END
    FROM unnest(%(ids)s::bigint[], %(claims)s::bigint[]) AS held (id, claim)
    WHERE entry.id = held.id AND entry.claim = held.claim AND entry.state = 'pending'
"""

SETTLE_WITH_HISTORY: Final = (
    "WITH settled AS ("  # noqa: S608 (both parts are constants)
    + SETTLE
    + """
    RETURNING entry.id)
    INSERT INTO relay.history (entry, at, what, detail)
    SELECT id, coalesce(%(now)s::timestamptz, now()), %(what)s, %(event_detail)s FROM settled
    """
)

POSTPONE: Final = """
    WITH postponed AS (
        UPDATE relay.entries
        SET crashes = 0, due_at = coalesce(%(now)s::timestamptz, now()), retry_at = %(retry_at)s,
            failing_since = %(failing_since)s
        WHERE id = %(id)s AND claim = %(claim)s AND state = 'pending' RETURNING id
    )
    INSERT INTO relay.history (entry, at, what, detail)
    SELECT id, coalesce(%(now)s::timestamptz, now()), 'posted', %(answer)s FROM postponed
"""

ADVANCE: Final = """
    UPDATE relay.entries SET step = %(step)s
    WHERE id = %(id)s AND claim = %(claim)s AND state = 'pending'
"""

PURGE: Final = """
    WITH gone AS (
        DELETE FROM relay.entries WHERE id IN (
            SELECT id FROM relay.entries WHERE state = 'delivered' AND delivered_at < %(before)s
            ORDER BY delivered_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ) RETURNING id
    ), unkeyed AS (
        DELETE FROM relay.keys USING gone WHERE entry = gone.id
    )
    SELECT id FROM gone
"""

"""Finds, counts and changes the entries of a PostgreSQL outbox for an operator."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any, Final, LiteralString

from msgspec import structs
from psycopg import sql

from relay.outbox import rows
from relay.outbox.entries import Operation, Query, Requeue, State, StoredEntry
from relay.outbox.postgres import counters, queries
from relay.outbox.postgres.rows import as_text, stored_entry_from_row, utc, values_of
from relay.outbox.postgres.sessions import LOCK_LANES, LONG_SECONDS, Session, Sessions

_MOST_BYTES: Final = 8 * 2**20  # of bodies returned at a time


class PostgresEntryStore:
    """See `relay.outbox.protocol.EntryStore`."""

    def __init__(self, sessions: Sessions, now: Callable[[], datetime | None]) -> None:
        self._sessions = sessions
        self._now = now

    def find(
        self,
        query: Query,
        limit: int,
        *,
        start: int | None = None,
        end: int | None = None,
        newest_first: bool = True,
        with_history: bool = False,
    ) -> list[StoredEntry]:
        """See `EntryStore.find`."""
        condition, values = queries.where(query)
        if start is not None:
            condition += sql.SQL(" AND id < %(start)s" if newest_first else " AND id > %(start)s")
            values["start"] = start
        if end is not None:
            condition += sql.SQL(" AND id >= %(end)s" if newest_first else " AND id <= %(end)s")
            values["end"] = end
        direction = sql.SQL("DESC" if newest_first else "ASC")
        with self._transaction() as session:
            few = rows.are_few(query, partial(counters.changes, session))
            # An expression keeps the planner from walking the whole table in the order of its ids.
            order = sql.SQL("id + 0" if few else "id")
            statement = queries.FIND.format(
                columns=queries.COLUMNS,
                table=queries.table(query),
                condition=condition,
                direction=direction,
                order=order,
            )
            values |= {"limit": limit, "bytes": _MOST_BYTES}
            cursor = session.execute(statement, values, binary=True)
            found = [stored_entry_from_row(row) for row in cursor]
            if with_history and found:
                lines = session.execute(_HISTORIES, ([entry.id for entry in found],))
                histories = rows.histories(lines, utc)
                found = [
                    structs.replace(entry, history=histories.get(entry.id, ())) for entry in found
                ]
        return found

    def count(self, query: Query) -> int:
        """See `EntryStore.count`."""
        condition, values = queries.where(query)
        statement = queries.COUNT.format(table=queries.table(query), condition=condition)
        ((count,),) = self._run(statement, values)
        return int(count)

    def begin(self, kind: str, what: str) -> Operation:
        """See `EntryStore.begin`."""
        (row,) = self._run(_BEGIN, {"kind": kind, "what": what, "now": self._now()})
        return rows.operation(row, utc)

    def requeue(self, requeues: Sequence[Requeue], operation: Operation) -> int:
        """See `EntryStore.requeue`."""
        requeued = {
            "now": self._now(),
            "claim": secrets.randbits(62),
            "ids": [requeue.id for requeue in requeues],
            "collections": [requeue.collection for requeue in requeues],
            "user_keys": [requeue.keys.user for requeue in requeues],
            "address_keys": [requeue.keys.address for requeue in requeues],
            "email_keys": [requeue.keys.email for requeue in requeues],
        }
        places = [(lane, each.id) for each in requeues for lane in dict.fromkeys(each.lanes)]
        with self._transaction() as session:
            if places:
                session.execute(LOCK_LANES)
            changed = session.execute(_REQUEUE, requeued).rowcount
            if places:
                lanes, ids = map(list, zip(*places, strict=True))
                session.execute(_JOIN_LANES, requeued | {"lanes": lanes, "ids": ids})
            session.execute(_NOTIFY)
            _advance(session, operation, changed)
        return changed

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """See `EntryStore.erase`. What was erased leaves the disk when the server vacuums."""
        gone = {"ids": list(ids)}
        with self._transaction() as session:
            session.execute(LOCK_LANES)  # some may be in lanes
            # Entries before their keys, as everywhere, so that two transactions cannot deadlock.
            deletion = "DELETE FROM relay.entries WHERE id = ANY (%(ids)s)"
            changed = session.execute(deletion, gone).rowcount
            session.execute("DELETE FROM relay.keys WHERE entry = ANY (%(ids)s)", gone)
            _advance(session, operation, changed)
        return changed

    def blocked_by(self, id_: int) -> int | None:
        """See `EntryStore.blocked_by`."""
        ahead = self._run(_AHEAD, {"id": id_})
        return ahead[0][0] if ahead else None

    def finish(self, operation: Operation) -> None:
        """See `EntryStore.finish`."""
        self._run(_FINISH, {"id": operation.id, "now": self._now()})

    def operations(self, limit: int) -> list[Operation]:
        """See `EntryStore.operations`."""
        return [rows.operation(row, utc) for row in self._run(_OPERATIONS, {"limit": limit})]

    def restore(self, entries: Sequence[StoredEntry]) -> int:
        """See `EntryStore.restore`."""
        restored = 0
        with self._transaction() as session:
            if any(entry.lanes for entry in entries):
                session.execute(LOCK_LANES)
            for entry in entries:
                values = values_of(entry) | {"now": self._now()}
                row = session.execute(_RESTORE, values).fetchone()
                if row is None:
                    continue
                restored += 1
                if entry.lanes and entry.state is State.PENDING:
                    lanes = {"ids": [*row] * len(entry.lanes), "lanes": [*entry.lanes], "claim": 0}
                    session.execute(_JOIN_LANES, lanes)
                for event in entry.history:
                    session.execute(
                        _RESTORE_HISTORY, (*row, event.at, event.what, as_text(event.detail))
                    )
            session.execute(_NOTIFY)
        return restored

    def _transaction(self) -> AbstractContextManager[Session]:
        """Enter a transaction that is on disk when it ends, whatever the server's default is."""
        return self._sessions.transaction(flushed=True, seconds=LONG_SECONDS)

    def _run(self, statement: LiteralString | sql.Composed, values: dict[str, Any]) -> list[Any]:
        return self._sessions.run(statement, values, flushed=True, seconds=LONG_SECONDS)


_NOTIFY: Final = "SELECT pg_notify('relay', '')"

_HISTORIES: Final = sql.SQL("""
    SELECT {columns} FROM relay.history WHERE entry = ANY (%s) ORDER BY id
""").format(columns=sql.SQL(rows.HISTORY))

_OPERATION: Final = sql.SQL(rows.OPERATION)

_BEGIN: Final = sql.SQL("""
    WITH unfinished AS (
        SELECT * FROM relay.operations
        WHERE kind = %(kind)s AND what = %(what)s AND finished_at IS NULL
        ORDER BY id DESC LIMIT 1
    ), begun AS (
        INSERT INTO relay.operations (kind, what, started_at)
        SELECT %(kind)s, %(what)s, coalesce(%(now)s::timestamptz, now())
        WHERE NOT EXISTS (SELECT 1 FROM unfinished)
        RETURNING *
    )
    SELECT {columns} FROM (SELECT * FROM unfinished UNION ALL SELECT * FROM begun) AS operation
""").format(columns=_OPERATION)

_ADVANCE: Final = """
    UPDATE relay.operations SET entries = entries + %s WHERE id = %s
"""

_FINISH: Final = """
    UPDATE relay.operations SET finished_at = coalesce(%(now)s::timestamptz, now())
    WHERE id = %(id)s
"""

_OPERATIONS: Final = sql.SQL("""
    SELECT {columns} FROM relay.operations ORDER BY id DESC LIMIT %(limit)s
""").format(columns=_OPERATION)

# One statement, so that exactly the entries that change get a line of history. They get a new
# claim, so that a worker with an earlier claim cannot settle them. A dead letter that has never
# been claimed was one on receipt, and its history does not say so yet.
_REQUEUE: Final = """
    WITH requeued AS MATERIALIZED (
        SELECT wanted.*, state, attempts, received_at, delivered_at, reason
        FROM relay.entries JOIN unnest(
            %(ids)s::bigint[], %(collections)s::text[],
            %(user_keys)s::bigint[], %(address_keys)s::bigint[], %(email_keys)s::bigint[]
        ) AS wanted (id, collection, user_key, address_key, email_key) USING (id)
        WHERE state <> 'pending' ORDER BY id FOR UPDATE OF entries
    ), noted AS (
        INSERT INTO relay.history (entry, at, what, detail)
        SELECT id, at, what, detail FROM (
            SELECT id, received_at AS at, 'dead' AS what, coalesce(reason, '') AS detail
            FROM requeued WHERE state = 'dead' AND attempts = 0
            UNION ALL
            SELECT id, delivered_at, 'delivered', '' FROM requeued WHERE state = 'delivered'
            UNION ALL
            SELECT id, coalesce(%(now)s::timestamptz, now()), 'replayed', '' FROM requeued
        ) AS happened ORDER BY id, what
    ), keyed AS (
        INSERT INTO relay.keys (entry, user_key, address_key, email_key)
        SELECT id, user_key, address_key, email_key FROM requeued
        ON CONFLICT (entry) DO UPDATE
        SET user_key = excluded.user_key, address_key = excluded.address_key,
            email_key = excluded.email_key
    )
    UPDATE relay.entries AS entry
    SET state = 'pending', pending_since = coalesce(%(now)s::timestamptz, now()),
        due_at = coalesce(%(now)s::timestamptz, now()), delivered_at = NULL, reason = NULL,
        detail = NULL, crashes = 0, claim = %(claim)s, collection = requeued.collection,
        step = CASE requeued.state WHEN 'delivered' THEN 0 ELSE step END
    FROM requeued WHERE entry.id = requeued.id
"""

# Only of the entries that have just become pending, by the claim that they got.
_JOIN_LANES: Final = """
    INSERT INTO relay.lanes (lane, entry)
    SELECT lane, id
    FROM unnest(%(lanes)s::bigint[], %(ids)s::bigint[]) WITH ORDINALITY AS place (lane, id, number)
    JOIN relay.entries USING (id)
    WHERE state = 'pending' AND claim = %(claim)s
    ORDER BY number
"""

_AHEAD: Final = """
    SELECT entry FROM (
        SELECT head.entry FROM relay.lanes AS own CROSS JOIN LATERAL (
            SELECT entry, seq FROM relay.lanes WHERE lanes.lane = own.lane ORDER BY seq LIMIT 1
        ) AS head
        WHERE own.entry = %(id)s ORDER BY head.seq LIMIT 1
    ) AS ahead WHERE entry <> %(id)s
"""

_RESTORE_HISTORY: Final = """
    INSERT INTO relay.history (entry, at, what, detail) VALUES (%s, %s, %s, %s)
"""

_RESTORE: Final = """
    WITH restored AS (
        INSERT INTO relay.entries (
            source, destination, message_id, state, collection, received_at, pending_since, due_at,
            attempts, delivered_at, reason, detail, claim, body, step
        ) VALUES (
            %(source)s, %(destination)s, %(message_id)s, %(state)s, %(collection)s, %(received_at)s,
            CASE WHEN %(state)s = 'pending' THEN %(received_at)s::timestamptz END,
            CASE WHEN %(state)s = 'pending' THEN
                least(%(received_at)s, coalesce(%(now)s::timestamptz, now()))
            END,
            %(attempts)s, %(delivered_at)s, %(reason)s, %(detail)s, 0, %(body)b, %(step)s
        )
        ON CONFLICT (message_id) DO NOTHING RETURNING id
    ), keyed AS (
        INSERT INTO relay.keys (entry, user_key, address_key, email_key)
        SELECT id, %(user)s::bigint, %(address)s::bigint, %(email)s::bigint FROM restored
    )
    SELECT id FROM restored
"""


def _advance(session: Session, operation: Operation, changed: int) -> None:
    session.execute(_ADVANCE, (changed, operation.id))

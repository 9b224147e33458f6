"""Finds, counts and changes the entries of a SQLite outbox for an operator."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any, Final

import apsw
from msgspec import structs

from relay.errors import OutboxError
from relay.outbox import rows
from relay.outbox.entries import (
    Clock,
    HistoryEvent,
    Operation,
    Query,
    Requeue,
    State,
    StoredEntry,
)
from relay.outbox.sqlite import counters, queries, statements
from relay.outbox.sqlite.adding import join_lanes
from relay.outbox.sqlite.connection import translated
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.times import from_milliseconds, to_milliseconds

_MOST_BYTES: Final = 8 * 2**20  # of bodies returned at a time
_EMPTYING_SECONDS: Final = 10
_EMPTYING_PAUSE_SECONDS: Final = 0.02


class SqliteEntryStore:
    """See `relay.outbox.protocol.EntryStore`.

    It has its own connection, and writes in small transactions, so that a running relay never waits
    long for one of them.
    """

    def __init__(self, connection: apsw.Connection, clock: Clock, disk: Disk) -> None:
        self._connection = connection
        self._disk = disk
        self._clock = clock
        self._using = threading.Lock()

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
        source, condition, values = queries.where(query)
        behind, up_to = ("<", ">=") if newest_first else (">", "<=")
        if start is not None:
            condition, values["start"] = f"{condition} AND entries.id {behind} :start", start
        if end is not None:
            condition, values["end"] = f"{condition} AND entries.id {up_to} :end", end
        found: list[StoredEntry] = []
        size = 0
        with self._disk.used(), self._using, self._snapshot():
            # A plus keeps SQLite from walking the whole table in the order of its ids.
            order = "+entries.id" if self._are_few(query) else "entries.id"
            statement = f"""
                SELECT {rows.STORED_ENTRY}, nullif(retry_at, 0) FROM {source} WHERE {condition}
                ORDER BY {order} {"DESC" if newest_first else "ASC"} LIMIT :limit
            """  # noqa: S608 (values are bound)
            for row in self._connection.execute(statement, {**values, "limit": limit}):
                found.append(_stored_entry(row))
                size += len(found[-1].body)
                if size >= _MOST_BYTES:
                    break
            pending = [entry.id for entry in found if entry.state is State.PENDING]
            lanes = self._lanes(pending) if pending else {}
            histories = self._histories([entry.id for entry in found]) if with_history else {}
        return [
            structs.replace(
                entry, lanes=lanes.get(entry.id, ()), history=histories.get(entry.id, ())
            )
            for entry in found
        ]

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Have all that is read meanwhile be of one moment."""
        self._connection.execute("BEGIN DEFERRED")
        try:
            yield
        finally:
            if self._connection.in_transaction:  # an error may have ended it
                self._connection.execute("COMMIT")

    def _lanes(self, ids: Sequence[int]) -> dict[int, tuple[int, ...]]:
        return rows.lanes(self._connection.execute(_LANES, {"ids": queries.as_json(ids)}))

    def _are_few(self, query: Query) -> bool:
        return rows.are_few(query, lambda: counters.changes(self._connection))

    def _histories(self, ids: Sequence[int]) -> dict[int, tuple[HistoryEvent, ...]]:
        found = self._connection.execute(_HISTORIES, {"ids": queries.as_json(ids)})
        return rows.histories(found, from_milliseconds)

    def count(self, query: Query) -> int:
        """See `EntryStore.count`."""
        source, condition, values = queries.where(query)
        statement = f"SELECT count(*) FROM {source} WHERE {condition}"  # noqa: S608 (as above)
        with self._disk.used(), self._using:
            counted: int = self._connection.execute(statement, values).get
        return counted

    def begin(self, kind: str, what: str) -> Operation:
        """See `EntryStore.begin`."""
        new = {"kind": kind, "what": what, "now": to_milliseconds(self._clock())}
        with self._disk.used(), self._using, self._connection:
            row: Any = self._connection.execute(_UNFINISHED, new).fetchone()
            if row is None:
                row = self._connection.execute(_BEGIN, new).fetchone()
        return rows.operation(row, from_milliseconds)

    def requeue(self, requeues: Sequence[Requeue], operation: Operation) -> int:
        """See `EntryStore.requeue`."""
        values = [
            (each.id, each.collection, each.keys.user, each.keys.address, each.keys.email)
            for each in requeues
        ]
        requeued = {"requeues": queries.as_json(values), "now": to_milliseconds(self._clock())}
        with self._disk.used(), self._using, self._connection:
            self._connection.execute(_NOTE_REQUEUED, requeued)
            changed = {id_ for (id_,) in self._connection.execute(_REQUEUE, requeued)}
            lanes = ((each.id, each.lanes) for each in requeues if each.id in changed)
            join_lanes(self._connection, lanes)
            self._advance(operation, len(changed))
        return len(changed)

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """See `EntryStore.erase`."""
        with self._disk.used(), self._using, self._connection:
            self._connection.execute(_ERASE, {"ids": queries.as_json(ids)})
            changed = self._connection.changes()
            self._advance(operation, changed)
        return changed

    def blocked_by(self, id_: int) -> int | None:
        """See `EntryStore.blocked_by`."""
        with self._disk.used(), self._using:
            ahead: int | None = self._connection.execute(_AHEAD, {"id": id_}).get
        return ahead

    def _advance(self, operation: Operation, changed: int) -> None:
        self._connection.execute(_ADVANCE, (changed, operation.id))

    def finish(self, operation: Operation) -> None:
        """See `EntryStore.finish`."""
        with self._disk.used(), self._using:
            if operation.kind == "erase":
                self._empty_log()
            now = to_milliseconds(self._clock())
            self._connection.execute(_FINISH, (now, operation.id))

    def _empty_log(self) -> None:
        """Empty the log of writes as soon as nobody reads it: it may hold what was erased."""
        give_up_at = time.monotonic() + _EMPTYING_SECONDS
        while not self._log_emptied():
            if time.monotonic() >= give_up_at:
                raise OutboxError(
                    f"{self._connection.filename_wal} may still hold what was erased, because"
                    " someone reads from it; erase again when they are done"
                )
            time.sleep(_EMPTYING_PAUSE_SECONDS)

    def _log_emptied(self) -> bool:
        patience = self._connection.pragma("busy_timeout")
        self._connection.set_busy_timeout(0)  # while it waits for readers, no one can write
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        finally:
            self._connection.set_busy_timeout(patience)
        return True

    def operations(self, limit: int) -> list[Operation]:
        """See `EntryStore.operations`."""
        with self._disk.used(), self._using:
            found: list[Any] = self._connection.execute(_OPERATIONS, (limit,)).fetchall()
        return [rows.operation(row, from_milliseconds) for row in found]

    def restore(self, entries: Sequence[StoredEntry]) -> int:
        """See `EntryStore.restore`."""
        restored = 0
        with self._disk.used(), self._using, self._connection:
            for entry in entries:
                values = statements.restored_row(entry)
                row: Any = self._connection.execute(statements.RESTORE, values).fetchone()
                if row is not None:
                    restored += 1
                    if entry.state is State.PENDING:
                        join_lanes(self._connection, [(*row, entry.lanes)])
                    self._connection.executemany(
                        _RESTORE_HISTORY,
                        [(*row, to_milliseconds(h.at), h.what, h.detail) for h in entry.history],
                    )
        return restored

    def close(self) -> None:
        """Close the connection; nothing else may be called afterwards."""
        with translated(), self._using:
            self._disk.leave(self._connection)


_TEXT: Final = (str, NoneType)
_NUMBER: Final = (int, NoneType)
_TYPES: Final[tuple[Any, ...]] = (
    *(int, str, str, str, str, _TEXT, int, int, _NUMBER),
    *(_TEXT, _TEXT, _NUMBER, _NUMBER, _NUMBER, bytes, int, _NUMBER),
)
"""Of the columns of an entry."""
_STATE: Final = 4  # the place of that column
_STATES: Final = frozenset(State)

_HISTORIES: Final = f"""
    SELECT {rows.HISTORY} FROM history WHERE entry IN ({queries.IDS}) ORDER BY rowid
"""  # noqa: S608 (this and those below: nothing but constants is put in)

_LANES: Final = f"SELECT entry, lane FROM lanes WHERE entry IN ({queries.IDS}) ORDER BY seq"  # noqa: S608

_AHEAD: Final = """
    SELECT entry FROM lanes
    WHERE entry <> :id AND seq = (
        SELECT min((SELECT min(seq) FROM lanes WHERE lane = own.lane)) FROM lanes AS own
        WHERE entry = :id
    )
"""

_ERASE: Final = f"DELETE FROM entries WHERE id IN ({queries.IDS})"  # noqa: S608

_UNFINISHED: Final = f"""
    SELECT {rows.OPERATION} FROM operations
    WHERE kind = :kind AND what = :what AND finished_at IS NULL ORDER BY id DESC LIMIT 1
"""  # noqa: S608

_BEGIN: Final = f"""
    INSERT INTO operations (kind, what, started_at) VALUES (:kind, :what, :now)
    RETURNING {rows.OPERATION}
"""  # noqa: S608

_ADVANCE: Final = "UPDATE operations SET entries = entries + ? WHERE id = ?"

_FINISH: Final = "UPDATE operations SET finished_at = ? WHERE id = ?"

_OPERATIONS: Final = f"SELECT {rows.OPERATION} FROM operations ORDER BY id DESC LIMIT ?"  # noqa: S608

# An entry that was dead when it came has never been claimed, and has no history yet.
_NOTE_REQUEUED: Final = """
    INSERT INTO history (entry, at, what, detail)
    SELECT entries.id, received_at, 'dead', coalesce(reason, '')
    FROM json_each(:requeues) AS requeue JOIN entries ON entries.id = requeue.value ->> 0
    WHERE state = 'dead' AND attempts = 0
    UNION ALL
    SELECT entries.id, delivered_at, 'delivered', ''
    FROM json_each(:requeues) AS requeue JOIN entries ON entries.id = requeue.value ->> 0
    WHERE state = 'delivered'
    UNION ALL
    SELECT entries.id, :now, 'replayed', ''
    FROM json_each(:requeues) AS requeue JOIN entries ON entries.id = requeue.value ->> 0
    WHERE state <> 'pending'
"""

_REQUEUE: Final = """
    UPDATE entries
    SET state = 'pending', pending_since = :now, delivered_at = NULL, reason = NULL, detail = NULL,
        crashes = 0, step = CASE state WHEN 'delivered' THEN 0 ELSE step END,
        collection = requeue.value ->> 1, user_key = requeue.value ->> 2,
        address_key = requeue.value ->> 3, email_key = requeue.value ->> 4
    FROM json_each(:requeues) AS requeue
    WHERE entries.id = requeue.value ->> 0 AND state <> 'pending'
    RETURNING id
"""

_RESTORE_HISTORY: Final = f"INSERT INTO history ({rows.HISTORY}) VALUES (?, ?, ?, ?)"  # noqa: S608


def _stored_entry(row: Sequence[Any]) -> StoredEntry:
    """Return the entry of the row.

    Raises:
        OutboxError: the row is not as relay writes it; SQLite does not check what it reads.
    """
    typed = zip(row, _TYPES, strict=True)
    if not all(isinstance(*each) for each in typed) or row[_STATE] not in _STATES:
        raise OutboxError(f"entry {row[0]} is damaged")
    try:
        return rows.stored_entry(row, from_milliseconds)
    except OutboxError as error:
        raise OutboxError(f"entry {row[0]} has {error}") from None

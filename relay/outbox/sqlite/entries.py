"""Finds, counts and changes the entries of a SQLite outbox for an operator."""

import threading
import time
from collections.abc import Sequence
from types import NoneType
from typing import Any, Final

import apsw
from msgspec import json, structs

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
from relay.outbox.protocol import RARE_COLLECTIONS
from relay.outbox.sqlite import counters, statements
from relay.outbox.sqlite.connection import translated
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.migrations import BLOCK_BITS, IS_RARE
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
        source, condition, values = _where(query)
        behind, up_to = ("<", ">=") if newest_first else (">", "<=")
        if start is not None:
            condition, values["start"] = f"{condition} AND entries.id {behind} :start", start
        if end is not None:
            condition, values["end"] = f"{condition} AND entries.id {up_to} :end", end
        found: list[StoredEntry] = []
        size = 0
        with self._disk.used(), self._using:
            # A plus keeps SQLite from walking the whole table in the order of its ids.
            order = "+entries.id" if self._are_few(query) else "entries.id"
            statement = f"""
                SELECT {rows.STORED_ENTRY} FROM {source} WHERE {condition}
                ORDER BY {order} {"DESC" if newest_first else "ASC"} LIMIT :limit
            """  # noqa: S608 (values are bound)
            for row in self._connection.execute(statement, {**values, "limit": limit}):
                found.append(_stored_entry(row))
                size += len(found[-1].body)
                if size >= _MOST_BYTES:
                    break
            histories = self._histories([entry.id for entry in found]) if with_history else {}
        if with_history:
            return [structs.replace(entry, history=histories.get(entry.id, ())) for entry in found]
        return found

    def _are_few(self, query: Query) -> bool:
        return rows.are_few(query, lambda: counters.changes(self._connection))

    def _histories(self, ids: Sequence[int]) -> dict[int, tuple[HistoryEvent, ...]]:
        found = self._connection.execute(_HISTORIES, {"ids": _json(ids)})
        return rows.histories(found, from_milliseconds)

    def count(self, query: Query) -> int:
        """See `EntryStore.count`."""
        source, condition, values = _where(query)
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
        requeued = {"requeues": _json(values), "now": to_milliseconds(self._clock())}
        with self._disk.used(), self._using, self._connection:
            self._connection.execute(_NOTE_REQUEUED, requeued)
            self._connection.execute(_REQUEUE, requeued)
            changed = self._connection.changes()
            self._advance(operation, changed)
        return changed

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """See `EntryStore.erase`."""
        with self._disk.used(), self._using, self._connection:
            self._connection.execute(_ERASE, {"ids": _json(ids)})
            changed = self._connection.changes()
            self._advance(operation, changed)
        return changed

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
                row: Any = self._connection.execute(_RESTORE, values).fetchone()
                if row is not None:
                    restored += 1
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
    *(_TEXT, _TEXT, _NUMBER, _NUMBER, _NUMBER, bytes),
)
"""Of the columns of an entry."""
_STATE: Final = 4  # the place of that column
_STATES: Final = frozenset(State)

_IDS: Final = "SELECT value FROM json_each(:ids)"

_BLOCKS: Final = f"""
    (
        WITH RECURSIVE blocks (block) AS (
            SELECT max(id) >> {BLOCK_BITS} FROM entries
            UNION ALL SELECT block - 1 FROM blocks WHERE block > 0
        )
        SELECT block FROM blocks
    ) CROSS JOIN entries
"""  # noqa: S608 (nothing but a constant is put in)

_HISTORIES: Final = f"SELECT {rows.HISTORY} FROM history WHERE entry IN ({_IDS}) ORDER BY rowid"  # noqa: S608 (this and those below: nothing but constants is put in)

_ERASE: Final = f"DELETE FROM entries WHERE id IN ({_IDS})"  # noqa: S608

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
        crashes = 0, collection = requeue.value ->> 1, user_key = requeue.value ->> 2,
        address_key = requeue.value ->> 3, email_key = requeue.value ->> 4
    FROM json_each(:requeues) AS requeue
    WHERE entries.id = requeue.value ->> 0 AND state <> 'pending'
"""

_RESTORE: Final = f"{statements.add(1)} RETURNING id"

_RESTORE_HISTORY: Final = f"INSERT INTO history ({rows.HISTORY}) VALUES (?, ?, ?, ?)"  # noqa: S608


_EQUALS: Final = {
    "source": "source = :source",
    "destination": "destination = :destination",
    "collection": "collection = :collection",
    "reason": "reason = :reason AND state = 'dead'",  # the index is of these
    "message_id": "message_id = :message_id",
}


def _where(query: Query) -> tuple[str, str, dict[str, Any]]:
    """Return the tables to select from, the conditions as SQL, and the values in them."""
    source = "entries"
    conditions = ["TRUE"]
    values: dict[str, Any] = {}
    if query.ids:
        conditions.append(f"entries.id IN ({_IDS})")
        values["ids"] = _json(query.ids)
    if query.states:
        # Literals, so that SQLite uses the index of a single state.
        states = ", ".join(f"'{State(state).value}'" for state in query.states)
        conditions.append(f"state IN ({states})" if len(query.states) > 1 else f"state = {states}")
    if query.key:
        name, values["key"] = query.key
        source = _BLOCKS
        conditions += [f"id >> {BLOCK_BITS} = block", f"{name}_key = :key"]
    if query.keyless:
        conditions.append("user_key IS NULL AND address_key IS NULL AND email_key IS NULL")
    for column, condition in _EQUALS.items():
        if (value := getattr(query, column)) is not None:
            conditions.append(condition)
            values[column] = value
    if query.collection in RARE_COLLECTIONS:
        conditions.append(IS_RARE)
    if query.since:
        conditions.append("received_at >= :since")
        values["since"] = to_milliseconds(query.since)
    if query.until:
        conditions.append("received_at < :until")
        values["until"] = to_milliseconds(query.until)
    return source, " AND ".join(conditions), values


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


def _json(value: object) -> str:
    return json.encode(value).decode()

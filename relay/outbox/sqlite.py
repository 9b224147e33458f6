"""The outbox as one SQLite file, for one machine. The only importer of apsw."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import apsw
from msgspec import json

from relay.errors import OutboxError
from relay.events import Unusable
from relay.outbox import Arrival, Clock, Counts, Entry, State, utc_now

_MARK: Final = 0x52_4C_41_59  # "RLAY", as the file's application_id

# One script a version; a file at version n has had the first n.
_MIGRATIONS: Final = (
    """
    CREATE TABLE entries (
        id           INTEGER PRIMARY KEY,
        provider     TEXT NOT NULL,
        message_id   TEXT NOT NULL UNIQUE,
        state        TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
        received_at  INTEGER NOT NULL,  -- this and the other times in epoch milliseconds
        due_at       INTEGER,           -- of pending entries only
        attempts     INTEGER NOT NULL DEFAULT 0,
        claim        INTEGER,           -- who claimed it last
        delivered_at INTEGER,
        reason       TEXT,              -- this and detail of dead entries only
        detail       TEXT,
        body         BLOB NOT NULL
    ) STRICT;
    CREATE INDEX entries_due ON entries (due_at) WHERE state = 'pending';
    CREATE TABLE status (
        beat INTEGER NOT NULL,  -- counts checks of whether a write reaches the disk
        hold TEXT
    ) STRICT;
    INSERT INTO status VALUES (0, NULL);
    """,
)

_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_MOST_ROWS: Final = 2_000  # a statement; SQLite takes 32,766 variables
_BUSY_MILLISECONDS: Final = 5_000
_CHECKPOINT_PAGES: Final = 1_000  # 4 MB of WAL, as SQLite's own default
_TRUNCATE_PAGES: Final = 32_000  # 128 MB: under steady load a passive checkpoint never ends


def open_url(url: str) -> "SqliteOutbox":
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(":"):
        raise OutboxError(
            "a SQLite outbox is named sqlite:///file.db or sqlite:////path/to/file.db"
        )
    return SqliteOutbox(Path(path))


class SqliteOutbox:
    """See `relay.outbox.Outbox`.

    What `add` stores is synced before it returns. What claims and settles is not: lost in a power
    cut, it is done again, under the same `messageId`. All of a process's writes go through one
    lock, because SQLite makes waiting writers of one file sleep, and sleeping is slow.

    A statement gives up Python's global lock and must win it back, so each that writes does its
    work for a whole batch in a single step.
    """

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self._path = path
        self._clock = clock
        self._seen_version: int | None = None
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        with _translated():
            self._adder = self._connect()
            self._check_mark()
            self._adder.pragma("journal_mode", "wal")
            self._migrate()
            self._settler = self._connect()
            self._settler.pragma("synchronous", "normal")
            self._reader = self._connect()
            self._reader.pragma("query_only", "on")
            self._checkpointer = _Checkpointer(self._connect(), self._writing)
        for connection in (self._adder, self._settler):
            connection.set_wal_hook(self._checkpointer.committed)
        self._checkpointer.start()

    def _connect(self) -> apsw.Connection:
        try:
            connection = apsw.Connection(str(self._path))
        except apsw.CantOpenError:
            raise OutboxError(f"{self._path} cannot be opened") from None
        connection.transaction_mode = "IMMEDIATE"
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        connection.pragma("synchronous", "full")
        # The hook on commits, which checkpoints elsewhere, replaces the automatic checkpoint.
        connection.pragma("wal_autocheckpoint", 0)
        return connection

    def _check_mark(self) -> None:
        """Refuse another program's file before anything is written to it."""
        tables = self._adder.execute("SELECT count(*) FROM sqlite_schema").get
        if tables and self._adder.pragma("application_id") != _MARK:
            raise OutboxError(f"{self._path} is a SQLite file of some other program")
        if self._adder.pragma("user_version") > len(_MIGRATIONS):
            raise OutboxError(f"{self._path} was written by a newer relay")

    def _migrate(self) -> None:
        with self._adder:
            version: int = self._adder.pragma("user_version")
            for migration in _MIGRATIONS[version:]:
                self._adder.execute(migration)
            self._adder.pragma("application_id", _MARK)
            self._adder.pragma("user_version", len(_MIGRATIONS))

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        new: list[bool] = []
        with _translated(), self._writing:
            for start in range(0, len(arrivals), _MOST_ROWS):
                new += self._insert(arrivals[start : start + _MOST_ROWS])
        return new

    def _insert(self, arrivals: Sequence[Arrival]) -> list[bool]:
        values = [value for arrival in arrivals for value in _row(arrival)]
        self._adder.execute(_insertion(len(arrivals)), values)  # a transaction by itself
        count = self._adder.changes()
        if count == len(arrivals):
            return [True] * count
        # SQLite numbers the rows of one statement in sequence.
        first_id = self._adder.last_insert_rowid() - count + 1
        rows: list[Any] = self._adder.execute(_INSERTED, (count, first_id)).fetchall()
        inserted = {message_id for (message_id,) in rows}
        new = []
        for arrival in arrivals:
            new.append(arrival.message_id in inserted)
            inserted.discard(arrival.message_id)  # its copies in the same group are not new
        return new

    def changed(self) -> bool:
        """See `Outbox.changed`."""
        with _translated(), self._reading:
            version: int = self._reader.pragma("data_version")
        changed, self._seen_version = version != self._seen_version, version
        return changed

    def claim(self, limit: int, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim`."""
        now = self._clock()
        due = {"now": _milliseconds(now), "until": _milliseconds(now + lease), "limit": limit}
        due["bytes"] = _MOST_BYTES
        with _translated():
            with self._reading:
                ids = self._reader.execute(_DUE, due).get
            if ids == "[]":
                return []
            claim = secrets.randbits(62)
            with self._writing:
                self._settler.execute(_CLAIM, {**due, "ids": ids, "claim": claim})
            with self._reading:
                rows: list[Any] = self._reader.execute(
                    _CLAIMED, {"ids": ids, "claim": claim}
                ).fetchall()
        return [
            Entry(id_, provider, message_id, _moment(received_at), attempts, claim, body)
            for id_, provider, message_id, received_at, attempts, body in rows
        ]

    def deliver(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.deliver`."""
        self._settle(entries, state=State.DELIVERED, delivered_at=_milliseconds(self._clock()))

    def bury(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.bury`."""
        self._settle([entry], state=State.DEAD, reason=fault.reason, detail=fault.detail)

    def release(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.release`."""
        self._settle(entries, state=State.PENDING, due_at=_milliseconds(self._clock()))

    def _settle(self, entries: Sequence[Entry], **changed: str | int) -> None:
        held = json.encode([(entry.id, entry.claim) for entry in entries]).decode()
        with _translated(), self._writing:
            self._settler.execute(_SETTLE, _CLEARED | changed | {"held": held})

    def set_hold(self, answer: str | None) -> None:
        """See `Outbox.set_hold`."""
        with _translated(), self._writing:
            self._settler.execute("UPDATE status SET hold = ?", (answer,))

    def hold(self) -> str | None:
        """See `Outbox.hold`."""
        with _translated(), self._reading:
            hold: str | None = self._reader.execute("SELECT hold FROM status").get
        return hold

    def counts(self) -> Counts:
        """See `Outbox.counts`."""
        with _translated(), self._reading:
            rows: list[Any] = self._reader.execute(_COUNT).fetchall()
            oldest = self._reader.execute(_OLDEST).get
        counted = dict(rows)
        return Counts(
            pending=counted.get(State.PENDING, 0),
            delivered=counted.get(State.DELIVERED, 0),
            dead=counted.get(State.DEAD, 0),
            oldest_pending_at=None if oldest is None else _moment(oldest),
        )

    def check(self) -> None:
        """See `Outbox.check`."""
        with _translated(), self._writing:
            self._adder.execute("UPDATE status SET beat = beat + 1")

    def close(self) -> None:
        """See `Outbox.close`."""
        self._checkpointer.stop()
        with _translated(), self._writing, self._reading:
            for connection in (self._reader, self._settler, self._adder):
                connection.close()


class _Checkpointer(threading.Thread):
    """Moves committed pages from the WAL into the file, outside the committing threads.

    Inside them, as SQLite would do it, these moments were the slowest answers by far.
    """

    def __init__(self, connection: apsw.Connection, writing: threading.Lock) -> None:
        super().__init__(name="checkpointer", daemon=True)
        self._connection = connection
        self._writing = writing
        self._due = threading.Event()
        self._stopping = False
        self._pages = 0

    def committed(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        """SQLite calls this after each commit, with the WAL's length in pages."""
        self._pages = pages
        if pages >= _CHECKPOINT_PAGES:
            self._due.set()
        return apsw.SQLITE_OK

    def run(self) -> None:
        """Checkpoint whenever enough has been committed."""
        while True:
            self._due.wait()
            if self._stopping:
                return
            self._due.clear()
            with suppress(apsw.BusyError, OutboxError):  # the next commit asks again
                self._checkpoint()

    def _checkpoint(self) -> None:
        with _translated():
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if self._pages >= _TRUNCATE_PAGES:
                with self._writing:
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def stop(self) -> None:
        """End the thread; a checkpoint under way is finished first."""
        self._stopping = True
        self._due.set()
        self.join()
        self._connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise OutboxError(f"SQLite: {type(error).__name__}: {error}") from error


def _row(arrival: Arrival) -> tuple[str | int | bytes | None, ...]:
    received_at, fault = _milliseconds(arrival.received_at), arrival.fault
    state, due_at = (State.DEAD, None) if fault else (State.PENDING, received_at)
    reason, detail = (fault.reason, fault.detail) if fault else (None, None)
    known = (arrival.provider, arrival.message_id, state, received_at, due_at, reason, detail)
    return (*known, arrival.body)


@cache
def _insertion(rows: int) -> str:
    row = "(?, ?, ?, ?, ?, ?, ?, ?)"
    return f"""
        INSERT INTO entries
            (provider, message_id, state, received_at, due_at, reason, detail, body)
        VALUES {", ".join([row] * rows)}
        ON CONFLICT (message_id) DO NOTHING
    """  # noqa: S608 (nothing but placeholders is put in)


_INSERTED: Final = "SELECT message_id FROM entries WHERE :count > 0 AND id >= :first_id"

_DUE: Final = """
    SELECT json_group_array(id) FROM (
        SELECT id, size, sum(size) OVER (ROWS UNBOUNDED PRECEDING) AS total FROM (
            SELECT id, length(body) AS size FROM entries WHERE state = 'pending' AND due_at <= :now
            ORDER BY due_at LIMIT :limit
        )
    ) WHERE total - size < :bytes
"""

_CLAIM: Final = """
    UPDATE entries SET due_at = :until, attempts = attempts + 1, claim = :claim
    WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 'pending' AND due_at <= :now
"""

_CLAIMED: Final = """
    SELECT id, provider, message_id, received_at, attempts, body FROM entries
    WHERE id IN (SELECT value FROM json_each(:ids)) AND claim = :claim
"""

_SETTLE: Final = """
    UPDATE entries
    SET state = :state, due_at = :due_at, delivered_at = :delivered_at,
        reason = :reason, detail = :detail
    FROM json_each(:held) AS held
    WHERE entries.id = held.value ->> 0 AND entries.claim = held.value ->> 1
        AND entries.state = 'pending'
"""

_CLEARED: Final = {"due_at": None, "delivered_at": None, "reason": None, "detail": None}

_COUNT: Final = "SELECT state, count(*) FROM entries GROUP BY state"

_OLDEST: Final = "SELECT min(received_at) FROM entries WHERE state = 'pending'"


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

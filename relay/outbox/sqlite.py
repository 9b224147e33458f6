"""The outbox as one SQLite file, for one machine. The only importer of apsw."""

import fcntl
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import apsw
from msgspec import Struct, json

from relay.errors import OutboxError
from relay.events import Unusable
from relay.outbox import Arrival, Clock, Counts, Entry, State, T, utc_now
from relay.pacing import Pace

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
        due_at       INTEGER,           -- of pending entries only: their order, never a wait
        attempts     INTEGER NOT NULL DEFAULT 0,
        delivered_at INTEGER,
        reason       TEXT,              -- this and detail of dead entries only
        detail       TEXT,
        body         BLOB NOT NULL
    ) STRICT;
    CREATE INDEX entries_due ON entries (due_at) WHERE state = 'pending';
    CREATE INDEX entries_delivered ON entries (delivered_at) WHERE state = 'delivered';
    CREATE TABLE status (
        beat   INTEGER NOT NULL,  -- counts checks of whether a write reaches the disk
        hold   TEXT,
        claims TEXT NOT NULL      -- what was last in hand: [[id, attempts], ...]
    ) STRICT;
    INSERT INTO status VALUES (0, NULL, '[]');
    """,
)

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_MOST_ROWS: Final = 2_000  # a statement; SQLite takes 32,766 variables
_BUSY_MILLISECONDS: Final = 5_000
_CHECKPOINT_PAGES: Final = 1_000  # 4 MB of WAL, as SQLite's own default
_TRUNCATE_PAGES: Final = 32_000  # 128 MB: under steady load a passive checkpoint never ends


def open_url(url: str, *, allow_ephemeral: bool) -> "SqliteOutbox":
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(":"):
        raise OutboxError(
            "a SQLite outbox is named sqlite:///file.db or sqlite:////path/to/file.db"
        )
    if not allow_ephemeral and _file_system(Path(path).parent) in _IN_MEMORY:
        raise OutboxError(
            f"{path} would lie in memory (tmpfs), which a restart of the machine wipes; name a file"
            " on a disk, or set RELAY_ALLOW_EPHEMERAL=1 to lose events"
        )
    return SqliteOutbox(Path(path))


def _file_system(directory: Path) -> str:
    """The type of the file system that the directory is on; empty where that is not known."""
    mounts: dict[Path, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted_on, kind, *_ = line.split(" ")
            mounts[Path(mounted_on.replace("\\040", " "))] = kind
    here = directory.resolve()
    return next((mounts[place] for place in (here, *here.parents) if place in mounts), "")


class _Claim(Struct, frozen=True):
    """On one entry: the claim's number, its end, and how many there have been.

    The end is in seconds elapsed, not by the clock, which may be put right meanwhile.
    """

    number: int
    until: float
    attempts: int


_ENDED: Final = float("-inf")


class SqliteOutbox:
    """See `relay.outbox.Outbox`.

    What `add` stores is synced before it returns. What is settled is not: lost in a power cut, it
    is done again, under the same `messageId`. All of a process's writes go through one lock,
    because SQLite makes waiting writers of one file sleep, and sleeping is slow.

    Claims are kept in memory, by the one process that may claim: marking each claimed row cost as
    much as all else that forwarding asks of the disk. What a killed process had claimed is due
    again as soon as the next one begins.

    A statement gives up Python's global lock and must win it back, so each that writes does its
    work for a whole batch in a single step.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = utc_now,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._elapsed = elapsed
        self._seen_version: int | None = None
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._claiming = threading.Lock()
        self._claims: dict[int, _Claim] = {}
        self._sole_claimer: BinaryIO | None = None
        self._pacing = threading.Lock()
        self._pace = Pace()
        self._noted_hold: str | None = "whatever an earlier process noted"
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
        if self._adder.pragma("user_version") == len(_MIGRATIONS):
            return  # nothing is written, so that a full disk does not keep a file from being opened
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
        with _translated(), self._claiming:
            if self._sole_claimer is None:
                self._become_sole_claimer()
            now = self._elapsed()
            held = [id_ for id_, claim in self._claims.items() if claim.until > now]
            due = {"held": _json(held), "limit": limit}
            with self._reading:
                rows = _at_most(_MOST_BYTES, self._reader.execute(_DUE, due))
            claim = secrets.randbits(62)
            entries, taken = [], {}
            for id_, provider, message_id, received_at, attempts, body in rows:
                before = self._claims.get(id_)
                attempt = (before.attempts if before else attempts) + 1
                taken[id_] = _Claim(claim, now + lease.total_seconds(), attempt)
                moment = _moment(received_at)
                entries.append(Entry(id_, provider, message_id, moment, attempt, claim, body))
            if entries:
                self._note(self._claims | taken)
                self._claims |= taken
        return entries

    def _become_sole_claimer(self) -> None:
        """Keep all other processes from claiming, and count what the last one died over.

        Raises:
            OutboxError: another process claims.
        """
        with ExitStack() as held:
            try:
                lock = held.enter_context(Path(f"{self._path}-forwarder").open("ab"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutboxError(f"another process forwards from {self._path}") from None
            except OSError as error:
                raise OutboxError(f"{self._path} cannot be locked: {error.strerror}") from None
            with self._writing:
                self._settler.execute(_COUNT_UNSETTLED)
            self._sole_claimer = lock
            held.pop_all()

    def _note(self, claims: Mapping[int, _Claim]) -> None:
        noted = _json([(i, c.attempts) for i, c in claims.items() if c.until != _ENDED])
        with self._writing:
            self._settler.execute("UPDATE status SET claims = ?", (noted,))

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
        with _translated(), self._claiming:
            own = [entry for entry in entries if self._holds(entry)]
            held = _json([(entry.id, entry.attempts) for entry in own])
            if changed["state"] is State.PENDING:
                # Even if that cannot be written. Whoever held an entry may still learn that it was
                # delivered after all, so the claim is kept.
                ended = {entry.id: _Claim(entry.claim, _ENDED, entry.attempts) for entry in own}
                self._claims |= ended
            with self._writing:
                self._settler.execute(_SETTLE, _CLEARED | changed | {"held": held})
            if changed["state"] is not State.PENDING:
                for entry in own:
                    del self._claims[entry.id]

    def _holds(self, entry: Entry) -> bool:
        claim = self._claims.get(entry.id)
        return claim is not None and claim.number == entry.claim

    def pace(self, change: Callable[[Pace, float], T]) -> T:
        """See `Outbox.pace`. It is kept in memory, as claims are; of it, others need the hold."""
        with _translated(), self._pacing:
            result = change(self._pace, self._elapsed())
            if self._pace.hold != self._noted_hold:
                with self._writing:
                    self._settler.execute("UPDATE status SET hold = ?", (self._pace.hold,))
                self._noted_hold = self._pace.hold
        return result

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

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        with _translated(), self._writing:
            self._settler.execute(_PURGE, (_milliseconds(before), limit))
            return self._settler.changes()

    def check(self) -> None:
        """See `Outbox.check`."""
        with _translated(), self._writing:
            self._adder.execute("UPDATE status SET beat = beat + 1")

    def close(self) -> None:
        """See `Outbox.close`."""
        self._checkpointer.stop()
        with _translated(), self._claiming:
            if self._sole_claimer is not None:
                self._note(self._claims)
                self._sole_claimer.close()
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
    SELECT id, provider, message_id, received_at, attempts, body FROM entries
    WHERE state = 'pending' AND id NOT IN (SELECT value FROM json_each(:held))
    ORDER BY due_at LIMIT :limit
"""

_COUNT_UNSETTLED: Final = """
    UPDATE entries SET attempts = claim.value ->> 1
    FROM status, json_each(status.claims) AS claim
    WHERE entries.id = claim.value ->> 0 AND entries.state = 'pending'
"""

_SETTLE: Final = """
    UPDATE entries
    SET state = :state, due_at = :due_at, delivered_at = :delivered_at,
        reason = :reason, detail = :detail, attempts = held.value ->> 1
    FROM json_each(:held) AS held
    WHERE entries.id = held.value ->> 0 AND entries.state = 'pending'
"""

_PURGE: Final = """
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE state = 'delivered' AND delivered_at < ?
        ORDER BY delivered_at LIMIT ?
    )
"""

_CLEARED: Final = {"due_at": None, "delivered_at": None, "reason": None, "detail": None}

_COUNT: Final = "SELECT state, count(*) FROM entries GROUP BY state"

_OLDEST: Final = "SELECT min(received_at) FROM entries WHERE state = 'pending'"


def _json(value: object) -> str:
    return json.encode(value).decode()


def _at_most(most_bytes: int, rows: Iterable[Any]) -> list[Any]:
    """The first rows, up to the one whose body, their last value, exceeds the bytes."""
    taken, total = [], 0
    for row in rows:
        taken.append(row)
        total += len(row[-1])
        if total >= most_bytes:
            break
    return taken


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

"""The outbox as one SQLite file, for one machine. The only importer of apsw."""

import fcntl
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final

import apsw
import structlog
from msgspec import Struct, json, structs

from relay.errors import OutboxBrokenError, OutboxError, OutboxUnusableError
from relay.events import Unusable
from relay.outbox.counters import SLOT, Change, CounterRow, in_states
from relay.outbox.entries import (
    CRASHES_BEFORE_ISOLATION,
    Arrival,
    Clock,
    Counts,
    Entry,
    LogState,
    Role,
    State,
    utc_now,
)
from relay.outbox.protocol import T
from relay.outbox.sqlite.checkpointer import LONG_BYTES, Checkpointer
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.entries import SqliteEntryStore
from relay.outbox.sqlite.fileformat import beside, log_of, size_on_disk
from relay.outbox.sqlite.migrations import SLOT_MILLISECONDS
from relay.outbox.sqlite.place import Place, exposed, kept, rescue
from relay.outbox.sqlite.schema import (
    connect,
    is_in_use,
    migrate,
    milliseconds,
    moment,
    refuse_damage,
    sync_directory,
    translated,
)
from relay.throttle import DestinationStatus, Throttle

_EPOCH: Final = moment(0)
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_MOST_ROWS: Final = 2_000  # a statement; SQLite takes 32,766 variables
_LOCK_LOOK_SECONDS: Final = 0.1

_log = structlog.get_logger()


def open_url(url: str, *, allow_ephemeral: bool, create: bool) -> "SqliteOutbox":
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(":"):
        raise OutboxUnusableError(
            "a SQLite outbox is named sqlite:///file.db or sqlite:////path/to/file.db"
        )
    if not allow_ephemeral and _file_system(Path(path).parent) in _IN_MEMORY:
        raise OutboxUnusableError(
            f"{path} would lie in memory (tmpfs), which a restart of the machine wipes; name a file"
            " on a disk, or set RELAY_ALLOW_EPHEMERAL=1 to lose events"
        )
    return SqliteOutbox(Path(path), create=create)


def _file_system(directory: Path) -> str:
    """The type of the file system that the directory is on; empty where that is not known."""
    mounts: dict[Path, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted_on, kind, *_ = line.split(" ")
            mounts[Path(mounted_on.replace("\\040", " "))] = kind
    here = directory.resolve()
    return next((mounts[place] for place in (here, *here.parents) if place in mounts), "")


_TAKEN: Final = {
    Role.RECEIVER: "another process receives into {}: one can; PostgreSQL takes any number",
    Role.FORWARDER: "another process forwards from {}: one can; PostgreSQL takes any number",
}


_NOBODY: Final = 0  # is no lineage


class _Claim(Struct, frozen=True):
    """On one entry: the claim's number, its end, and how many there have been with this one.

    The end is in seconds elapsed, not by the clock, which may be put right meanwhile. Beside them
    stands whose lineage posts it, where it is a suspect's that has been mapped.
    """

    number: int
    until: float
    attempts: int
    lineage: int = _NOBODY


class _Noted(Struct, frozen=True):
    """What other processes know of a throttle, and since when, in seconds elapsed."""

    generation: int
    hold: str | None
    answered_at: float
    at: float

    def is_news_after(self, earlier: "_Noted") -> bool:
        """Return whether it is to be noted, too."""
        if (self.generation, self.hold) != (earlier.generation, earlier.hold):
            return True
        return self.answered_at != earlier.answered_at and self.at >= earlier.at + 1


_MOST_ENDED: Final = 5_000  # claims remembered after their release


class SqliteOutbox:
    """See `relay.outbox.protocol.Outbox`.

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
        create: bool = True,
        clock: Clock = utc_now,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._elapsed = elapsed
        self._seen_versions: dict[str, int] = {}
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._claiming = threading.Lock()
        self._claims: dict[int, _Claim] = {}
        self._ended: dict[int, _Claim] = {}  # the latest released last
        self._roles: dict[Role, BinaryIO] = {}
        self._counted = False
        self._throttling = threading.Lock()
        self._throttles: dict[str, Throttle] = {}
        self._noted: dict[str, _Noted] = {}
        self._disk = Disk()
        with self._disk.used():
            self._adder = connect(path, create=create)
            in_use = is_in_use(path)  # and who uses it has done what is to be done first
            if not in_use:
                refuse_damage(self._adder, path)
            self._set_up(self._adder)
            migrate(self._adder, path, create=create)
            self._disk.watch(Place(path, self._adder))
            self._settler = self._connect()
            self._settler.pragma("synchronous", "normal")
            self._reader = self._connect()
            self._reader.pragma("query_only", "on")
            self._checkpointer = Checkpointer(self._connect(), self._writing, self._disk)
            operators = self._connect()
            self._entries = SqliteEntryStore(operators, clock, self._disk)
        for connection in (self._adder, self._settler, operators):
            connection.set_wal_hook(self._checkpointer.committed)
        if not in_use:
            self._checkpointer.write_log_anew()
        sync_directory(path.parent)  # whoever has made the log
        self._checkpointer.start()

    def _connect(self) -> apsw.Connection:
        return self._set_up(connect(self._path))

    @staticmethod
    def _set_up(connection: apsw.Connection) -> apsw.Connection:
        connection.transaction_mode = "IMMEDIATE"
        connection.pragma("synchronous", "full")
        # The hook on commits, which checkpoints elsewhere, replaces the automatic checkpoint.
        connection.pragma("wal_autocheckpoint", 0)
        # Zeros in place of what was there: an update, too, may move a row, and what is erased later
        # must not have left a copy.
        connection.pragma("secure_delete", "on")
        return connection

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        new: list[bool] = []
        with self._disk.used(), self._writing:
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

    def changed(self, destination: str) -> bool:
        """See `Outbox.changed`. SQLite tells that anything has been written, not for whom."""
        with self._disk.used(), self._reading:
            version: int = self._reader.pragma("data_version")
            seen = self._seen_versions.get(destination)
            self._seen_versions[destination] = version
        return version != seen

    def claim(self, destination: str, limit: int, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim`."""
        return self._claim(_DUE, destination, limit, lease)

    def claim_suspect(self, destination: str, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim_suspect`."""
        return self._claim(_SUSPECT, destination, 1, lease)

    def _claim(self, which: str, destination: str, limit: int, lease: timedelta) -> list[Entry]:
        self.lock_role(Role.FORWARDER)
        with self._disk.used(), self._claiming:
            if not self._counted:
                self._count_unsettled()
            now = self._elapsed()
            due = {"destination": destination, "held": self._held(), "limit": limit}
            with self._reading:
                rows = _at_most(_MOST_BYTES, self._reader.execute(which, due))
            claim = secrets.randbits(62)
            entries, taken = [], {}
            for id_, source, message_id, received_at, attempts, crashes, body in rows:
                before = self._last_claim(id_)
                attempt = (before.attempts if before else attempts) + 1
                taken[id_] = _Claim(claim, now + lease.total_seconds(), attempt)
                received = moment(received_at)
                entries.append(
                    Entry(
                        id=id_,
                        source=source,
                        destination=destination,
                        message_id=message_id,
                        received_at=received,
                        attempts=attempt,
                        claim=claim,
                        body=body,
                        crashes=crashes,
                    )
                )
            if entries:
                self._note(self._claims | taken)
                self._claims |= taken
                for id_ in taken:
                    self._ended.pop(id_, None)
        return entries

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """See `Outbox.begin_post`."""
        with self._disk.used(), self._claiming:
            if self._holds(suspect):
                claim = self._claims[suspect.id]
                self._claims[suspect.id] = structs.replace(claim, lineage=lineage)
                self._note(self._claims)
        return suspect

    def count_crash(self, lineage: int) -> None:
        """See `Outbox.count_crash`."""
        self.lock_role(Role.FORWARDER)
        with self._disk.used(), self._claiming:
            if not self._counted:
                self._count_unsettled(lineage)

    def has_suspects(self, destination: str) -> bool:
        """See `Outbox.has_suspects`."""
        with self._disk.used(), self._claiming, self._reading:
            due = {"destination": destination, "held": self._held()}
            return bool(self._reader.execute(_ANY_SUSPECT, due).get)

    def _held(self) -> str:
        now = self._elapsed()
        return _json([id_ for id_, claim in self._claims.items() if claim.until > now])

    def lock_role(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """See `Outbox.lock_role`. A file beside the outbox's is locked, until this is closed."""
        if role in self._roles:
            return
        give_up_at = self._elapsed() + patience.total_seconds()
        with self._disk.used(), self._claiming, ExitStack() as held:
            lock = None
            while role not in self._roles:
                try:
                    lock = lock or held.enter_context(beside(self._path, role).open("ab"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if self._elapsed() >= give_up_at:
                        raise OutboxUnusableError(_TAKEN[role].format(self._path)) from None
                    time.sleep(_LOCK_LOOK_SECONDS)
                except OSError as error:
                    raise OutboxError(f"{self._path} cannot be locked: {error.strerror}") from None
                else:
                    self._roles[role] = lock
            held.pop_all()

    def _count_unsettled(self, crashed: int = _NOBODY) -> None:
        """Count what the last one to forward died over; it is due again now."""
        with self._writing, self._settler:
            claims: str = self._settler.execute("SELECT claims FROM status").get
            self._settler.execute(_COUNT_UNSETTLED, {"claims": claims, "crashed": crashed})
            self._settler.execute("UPDATE status SET claims = '[]'")
        self._counted = True

    def _note(self, claims: Mapping[int, _Claim]) -> None:
        noted = _json([(id_, claim.attempts, claim.lineage) for id_, claim in claims.items()])
        with self._writing:
            self._settler.execute("UPDATE status SET claims = ?", (noted,))

    def ack(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.ack`."""
        self._settle(entries, state=State.DELIVERED, delivered_at=milliseconds(self._clock()))

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.dead_letter`."""
        self._settle(
            [entry],
            happened=("dead", fault.reason),
            state=State.DEAD,
            reason=fault.reason,
            detail=fault.detail,
        )

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """See `Outbox.release`."""
        happened = None if answer is None else ("posted", answer)
        self._settle(entries, happened=happened, state=State.PENDING)

    def _settle(
        self,
        entries: Sequence[Entry],
        *,
        happened: tuple[str, str] | None = None,
        **changed: str | int,
    ) -> None:
        with self._disk.used(), self._claiming:
            own = [entry for entry in entries if self._holds(entry)]
            held = _json([(entry.id, entry.attempts, entry.message_id) for entry in own])
            if changed["state"] is State.PENDING:
                self._end(own)  # even if that cannot be written
            with self._writing:
                if happened is None:
                    self._settler.execute(_SETTLE, _CLEARED | changed | {"held": held})
                else:
                    what, detail = happened
                    at = milliseconds(self._clock())
                    with self._settler:
                        # First, while those that are pending can still be told from the others.
                        values = {"held": held, "at": at, "what": what, "detail": detail}
                        self._settler.execute(_HAPPENED, values)
                        self._settler.execute(_SETTLE, _CLEARED | changed | {"held": held})
            if changed["state"] is not State.PENDING:
                for entry in own:
                    self._claims.pop(entry.id, None)
                    self._ended.pop(entry.id, None)

    def _end(self, released: Iterable[Entry]) -> None:
        """Hold them no longer.

        Whoever held an entry may still learn that it was delivered after all, so its claim is
        remembered for a while; an outage releases more entries than memory should hold.
        """
        for entry in released:
            claim = self._claims.pop(entry.id, None) or self._ended.pop(entry.id)
            self._ended[entry.id] = claim
        while len(self._ended) > _MOST_ENDED:
            del self._ended[next(iter(self._ended))]

    def _last_claim(self, id_: int) -> _Claim | None:
        return self._claims.get(id_) or self._ended.get(id_)

    def _holds(self, entry: Entry) -> bool:
        claim = self._last_claim(entry.id)
        return claim is not None and claim.number == entry.claim

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """See `Outbox.throttle`. It is kept in memory, as claims are."""
        with self._disk.used(), self._throttling:
            now = self._elapsed()
            throttle = self._throttles.setdefault(destination, Throttle())
            result = change(throttle, now)
            self._note_throttle(destination, throttle, now)
        return result

    def _note_throttle(self, destination: str, throttle: Throttle, now: float) -> None:
        """Note it for other processes: a change of state at once, an answer once a second."""
        noted = self._noted.get(destination)
        due = _Noted(throttle.generation, throttle.hold, throttle.answered_at, now)
        if noted and not due.is_news_after(noted):
            return
        state = _json(structs.replace(throttle, taken_at=[]))
        with self._writing:
            self._settler.execute(_NOTE_THROTTLE, (destination, state))
        self._noted[destination] = due

    def destination_status(self, destination: str) -> DestinationStatus:
        """See `Outbox.destination_status`. All processes of a machine count the same seconds."""
        with self._disk.used(), self._reading:
            state: str | None = self._reader.execute(_NOTED_THROTTLE, (destination,)).get
        throttle = Throttle() if state is None else json.decode(state, type=Throttle)
        return throttle.status(self._elapsed(), self._clock())

    def counts(self) -> dict[str, Counts]:
        """See `Outbox.counts`."""
        changes: dict[str, dict[Change, int]] = {}
        waiting_since: dict[str, int | None] = {}
        with self._disk.used(), self._reading:
            for destination, change, entries in self._reader.execute(_COUNT):
                changes.setdefault(destination, {})[Change(change)] = entries
            for destination in changes:
                oldest = self._reader.execute(_LONGEST_PENDING, (destination,))
                waiting_since[destination] = oldest.get
        return {
            destination: _counts(in_states(changes[destination]), since)
            for destination, since in waiting_since.items()
        }

    def counters(self) -> list[CounterRow]:
        """See `Outbox.counters`."""
        with self._disk.used(), self._reading:
            rows: list[Any] = self._reader.execute(_COUNTERS).fetchall()
        return [_counter_row(row) for row in rows]

    def aggregate_counters(self, before: datetime) -> None:
        """See `Outbox.aggregate_counters`."""
        past = (milliseconds(before) // SLOT_MILLISECONDS,)
        with self._disk.used(), self._writing, self._settler:
            self._settler.execute(_FOLD, past)
            self._settler.execute("DELETE FROM counters WHERE slot BETWEEN 1 AND ? - 1", past)

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        with self._disk.used(), self._writing:
            self._settler.execute(_PURGE, (milliseconds(before), limit))
            return self._settler.changes()

    def check(self) -> None:
        """See `Outbox.check`."""
        with self._disk.used(), self._writing:
            self._adder.execute("UPDATE status SET beat = beat + 1")

    def pending_exceed(self, limit: int) -> bool:
        """See `Outbox.pending_exceed`."""
        with self._disk.used(), self._reading:
            return bool(self._reader.execute(_PENDING_AFTER, (limit,)).get)

    def free_bytes(self) -> int | None:
        """See `Outbox.free_bytes`."""
        with self._disk.used():
            try:
                return shutil.disk_usage(self._path.parent).free
            except OSError as error:
                raise OutboxError(f"{self._path.parent}: {error.strerror}") from None

    def warnings(self) -> list[str]:
        """See `Outbox.warnings`."""
        return [*exposed(self._path), *kept(self._path)]

    def log_state(self) -> LogState:
        """See `Outbox.log_state`."""
        size = size_on_disk(log_of(self._path))  # the other process may have emptied it
        return LogState(size, is_held=size >= LONG_BYTES and self._checkpointer.is_held)

    @property
    def entries(self) -> SqliteEntryStore:
        """See `Outbox.entries`."""
        return self._entries

    def close(self) -> None:
        """See `Outbox.close`."""
        self._checkpointer.stop()
        with suppress(OutboxBrokenError), self._disk.used(), self._claiming:
            if self._counted:
                self._note(self._claims)
        if self._disk.lost and Role.RECEIVER in self._roles:
            self._rescue()
        for lock in self._roles.values():
            lock.close()
        self._entries.close()
        with translated(), self._writing, self._reading:
            for connection in (self._reader, self._settler, self._adder):
                self._disk.leave(connection)

    def _rescue(self) -> None:
        """Keep what only this process can still read: it is gone when the process ends."""
        try:
            with self._writing:
                rescued = rescue(self._adder, self._path)
            _log.error("outbox.rescued", file=str(rescued), next=f"relay restore {rescued}")
        except (OSError, apsw.Error) as error:
            _log.critical("outbox.not_rescued", error=f"{type(error).__name__}: {error}")


def _row(arrival: Arrival) -> tuple[str | int | bytes | None, ...]:
    received_at, fault = milliseconds(arrival.received_at), arrival.fault
    state, pending_since = (State.DEAD, None) if fault else (State.PENDING, received_at)
    reason, detail = (fault.reason, fault.detail) if fault else (None, None)
    keys = arrival.keys
    return (
        arrival.source,
        arrival.destination,
        arrival.message_id,
        state,
        arrival.collection,
        received_at,
        pending_since,
        reason,
        detail,
        keys.user,
        keys.address,
        keys.email,
        arrival.body,
    )


@cache
def _insertion(rows: int) -> str:
    row = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    return f"""
        INSERT INTO entries (
            source, destination, message_id, state, collection, received_at, pending_since,
            reason, detail, user_key, address_key, email_key, body
        )
        VALUES {", ".join([row] * rows)}
        ON CONFLICT (message_id) DO NOTHING
    """  # noqa: S608 (nothing but placeholders is put in)


_INSERTED: Final = "SELECT message_id FROM entries WHERE :count > 0 AND id >= :first_id"

_CLAIMED: Final = "SELECT id, source, message_id, received_at, attempts, crashes, body"

_DUE: Final = f"""
    {_CLAIMED} FROM entries
    WHERE state = 'pending' AND destination = :destination
        AND id NOT IN (SELECT value FROM json_each(:held)) AND crashes < {CRASHES_BEFORE_ISOLATION}
    ORDER BY pending_since LIMIT :limit
"""  # noqa: S608 (this and the next two: nothing but constants is put in)

# Not the same one each time: one that is innocent must not be in hand at every death.
_SUSPECT: Final = f"""
    {_CLAIMED} FROM entries
    WHERE state = 'pending' AND destination = :destination
        AND id NOT IN (SELECT value FROM json_each(:held)) AND crashes >= {CRASHES_BEFORE_ISOLATION}
    ORDER BY random() LIMIT :limit
"""  # noqa: S608

_ANY_SUSPECT: Final = f"""
    SELECT EXISTS (
        SELECT 1 FROM entries
        WHERE state = 'pending' AND destination = :destination
        AND id NOT IN (SELECT value FROM json_each(:held)) AND crashes >= {CRASHES_BEFORE_ISOLATION}
    )
"""  # noqa: S608

_PENDING_AFTER: Final = (
    "SELECT EXISTS (SELECT 1 FROM entries WHERE state = 'pending' LIMIT 1 OFFSET ?)"
)

# What has been given back, or settled and replayed, has its attempts in its row by then.
_COUNT_UNSETTLED: Final = """
    UPDATE entries SET attempts = claim.value ->> 1,
        crashes = crashes + (coalesce(claim.value ->> 2, 0) IN (0, :crashed))
    FROM json_each(:claims) AS claim
    WHERE entries.id = claim.value ->> 0 AND entries.state = 'pending'
        AND entries.attempts < claim.value ->> 1
"""

# By the message id, too: SQLite gives the id of the latest entry, once erased, to the next one.
_SETTLE: Final = """
    UPDATE entries
    SET state = :state, delivered_at = :delivered_at,
        pending_since = CASE WHEN :state = 'pending' THEN pending_since END,
        reason = :reason, detail = :detail, attempts = held.value ->> 1, crashes = 0
    FROM json_each(:held) AS held
    WHERE entries.id = held.value ->> 0 AND entries.message_id = held.value ->> 2
        AND entries.state = 'pending'
"""

_HAPPENED: Final = """
    INSERT INTO history (entry, at, what, detail)
    SELECT entries.id, :at, :what, :detail
    FROM json_each(:held) AS held JOIN entries ON entries.id = held.value ->> 0
    WHERE entries.message_id = held.value ->> 2 AND entries.state = 'pending'
"""

_PURGE: Final = """
    DELETE FROM entries WHERE id IN (
        SELECT id FROM entries WHERE state = 'delivered' AND delivered_at < ?
        ORDER BY delivered_at LIMIT ?
    )
"""

_CLEARED: Final = {"delivered_at": None, "reason": None, "detail": None}

_COUNT: Final = (
    "SELECT destination, change, sum(entries) FROM counters GROUP BY destination, change"
)

_LONGEST_PENDING: Final = """
    SELECT min(pending_since) FROM entries WHERE state = 'pending' AND destination = ?
"""

_NOTE_THROTTLE: Final = """
    INSERT INTO throttles VALUES (?, ?)
    ON CONFLICT (destination) DO UPDATE SET state = excluded.state
"""

_NOTED_THROTTLE: Final = "SELECT state FROM throttles WHERE destination = ?"

_COUNTERS: Final = """
    SELECT slot, source, destination, collection, change, reason, entries, latest FROM counters
    ORDER BY slot DESC
"""

_FOLD: Final = """
    INSERT INTO counters
    SELECT 0, source, destination, collection, change, reason, sum(entries), max(latest)
    FROM counters WHERE slot BETWEEN 1 AND ? - 1
    GROUP BY source, destination, collection, change, reason
    ON CONFLICT DO UPDATE
    SET entries = entries + excluded.entries, latest = max(latest, excluded.latest)
"""


def _counter_row(row: Sequence[Any]) -> CounterRow:
    slot, source, destination, collection, change, reason, entries, latest = row
    return CounterRow(
        since=_EPOCH + slot * SLOT if slot else None,
        source=source,
        destination=destination,
        collection=collection or None,
        change=Change(change),
        reason=reason or None,
        entries=entries,
        latest=moment(latest),
    )


def _counts(in_state: Mapping[State, int], waiting_since: int | None) -> Counts:
    return Counts(
        pending=in_state[State.PENDING],
        delivered=in_state[State.DELIVERED],
        dead=in_state[State.DEAD],
        waiting_since=None if waiting_since is None else moment(waiting_since),
    )


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

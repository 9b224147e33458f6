"""Implements `relay.outbox.protocol.Outbox` in one SQLite file, for one machine.

Only the modules of this folder know apsw.
"""

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import apsw
import structlog

from relay.errors import OutboxBrokenError, OutboxError, OutboxUnusableError
from relay.events import Unusable
from relay.outbox.counters import CounterRow
from relay.outbox.entries import Arrival, Clock, Counts, Entry, LogState, Role, State, utc_now
from relay.outbox.protocol import T
from relay.outbox.sqlite import adding, counters, statements, throttles
from relay.outbox.sqlite.checkpointer import LONG_BYTES, Checkpointer
from relay.outbox.sqlite.claims import NO_LINEAGE, Claims, Prepared
from relay.outbox.sqlite.connection import (
    configure,
    connect,
    refuse_damage,
    sync_directory,
    translated,
)
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.entries import SqliteEntryStore
from relay.outbox.sqlite.fileformat import log_of, size_on_disk
from relay.outbox.sqlite.files import OutboxFiles, exposed, is_in_memory, kept, rescue
from relay.outbox.sqlite.locks import RoleLocks, is_in_use
from relay.outbox.sqlite.queries import as_json
from relay.outbox.sqlite.schema import migrate
from relay.outbox.sqlite.times import to_milliseconds
from relay.throttle import DestinationStatus, Throttle

_log = structlog.get_logger()


def open_url(url: str, *, allow_ephemeral: bool, create: bool) -> "SqliteOutbox":
    """Open `sqlite:///relative.db` or `sqlite:////absolute.db`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path or path.startswith(":"):
        raise OutboxUnusableError(
            "a SQLite outbox is named sqlite:///file.db or sqlite:////path/to/file.db"
        )
    if not allow_ephemeral and is_in_memory(Path(path).parent):
        raise OutboxUnusableError(
            f"{path} would lie in memory (tmpfs), which a restart of the machine wipes; name a file"
            " on a disk, or set RELAY_ALLOW_EPHEMERAL=1 to lose events"
        )
    return SqliteOutbox(Path(path), create=create)


class SqliteOutbox:
    """An outbox in a SQLite file: see `relay.outbox.protocol.Outbox`.

    What `add` stores is synced before it returns. Settlements are not: if a power cut undoes one,
    the entry is sent again under the same `messageId`. All of a process's writes go through one
    lock, because SQLite makes waiting writers of one file sleep, and sleeping is slow.

    One process claims, for all destinations, and keeps claims and throttles in its memory.

    A statement releases Python's global lock and must get it back. So each statement that writes
    handles a whole batch.
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
        self._claims = Claims(elapsed)
        self._crashes_counted = False
        self._throttling = threading.Lock()
        self._throttles = throttles.Throttles()
        self._locks = RoleLocks(path, elapsed)
        self._disk = Disk()
        with self._disk.used():
            self._adder = connect(path, create=create)
            in_use = is_in_use(path)  # a process that uses it has done what is to be done first
            if not in_use:
                refuse_damage(self._adder, path)
            configure(self._adder)
            migrate(self._adder, path, create=create)
            self._disk.watch(OutboxFiles(path, self._adder))
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
            self._checkpointer.rewrite_log()
        sync_directory(path.parent)  # even if another process has created the log
        self._checkpointer.start()

    def _connect(self) -> apsw.Connection:
        return configure(connect(self._path))

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        with self._disk.used(), self._writing:
            return adding.add(self._adder, arrivals)

    def changed(
        self,
        destination: str,
        *,
        ordered: bool = False,  # noqa: ARG002 (as every store)
    ) -> bool:
        """See `Outbox.changed`. SQLite knows that something was written, but not for which one."""
        with self._disk.used(), self._reading:
            version: int = self._reader.pragma("data_version")
            seen = self._seen_versions.get(destination)
            self._seen_versions[destination] = version
        return version != seen

    def claim(
        self, destination: str, limit: int, *, lease: timedelta, ordered: bool = False
    ) -> list[Entry]:
        """See `Outbox.claim`."""
        statement = statements.CLAIM_ORDERED if ordered else statements.CLAIM
        return self._claim(statement, destination, limit, lease)

    def claim_suspect(self, destination: str, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim_suspect`."""
        return self._claim(statements.CLAIM_SUSPECT, destination, 1, lease)

    def _claim(self, statement: str, destination: str, limit: int, lease: timedelta) -> list[Entry]:
        self.lock_role(Role.FORWARDER)
        with self._disk.used(), self._claiming:
            self._count_crashes()
            due = {
                "destination": destination,
                "held": self._claims.held(),
                "limit": limit,
                "now": to_milliseconds(self._clock()),
            }
            with self._reading:
                rows = self._reader.execute(statement, due)
                prepared = self._claims.prepare(rows, destination, lease)
            if prepared.entries:
                self._note_claims(prepared)
                self._claims.take(prepared)
        return prepared.entries

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """See `Outbox.begin_post`."""
        with self._disk.used(), self._claiming:
            if self._claims.holds(suspect):
                self._claims.begin_post(suspect, lineage)
                self._note_claims()
        return suspect

    def count_crash(self, lineage: int) -> None:
        """See `Outbox.count_crash`."""
        self.lock_role(Role.FORWARDER)
        with self._disk.used(), self._claiming:
            self._count_crashes(lineage)

    def has_suspects(self, destination: str) -> bool:
        """See `Outbox.has_suspects`."""
        with self._disk.used(), self._claiming, self._reading:
            due = {"destination": destination, "held": self._claims.held()}
            return bool(self._reader.execute(statements.ANY_SUSPECT, due).get)

    def lock_role(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """See `Outbox.lock_role`."""
        if role not in self._locks:
            with self._disk.used(), self._claiming:
                self._locks.acquire(role, patience)

    def _count_crashes(self, crashed: int = NO_LINEAGE) -> None:
        """Count crashes, once, for the entries that the last forwarder held when it ended."""
        if self._crashes_counted:
            return
        with self._writing, self._settler:
            claims: str = self._settler.execute("SELECT claims FROM status").get
            self._settler.execute(
                statements.COUNT_CRASHES,
                {"claims": claims, "crashed": crashed, "no_lineage": NO_LINEAGE},
            )
            self._settler.execute("UPDATE status SET claims = '[]'")
        self._crashes_counted = True

    def _note_claims(self, prepared: Prepared | None = None) -> None:
        claims = self._claims.note(prepared)
        with self._writing:
            self._settler.execute("UPDATE status SET claims = ?", (claims,))

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        """See `Outbox.ack`."""
        event = None if note is None else ("posted", note)
        self._settle(entries, State.DELIVERED, event=event)

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.dead_letter`."""
        self._settle([entry], State.DEAD, fault=fault, event=("dead", fault.reason))

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """See `Outbox.release`."""
        event = None if answer is None else ("posted", answer)
        self._settle(entries, State.PENDING, event=event)

    def postpone(
        self, entry: Entry, *, retry_at: datetime, answer: str, failing_since: datetime
    ) -> None:
        """See `Outbox.postpone`."""
        retry = (to_milliseconds(retry_at), to_milliseconds(failing_since))
        self._settle([entry], State.PENDING, event=("posted", answer), retry=retry)

    def _settle(
        self,
        entries: Sequence[Entry],
        state: State,
        *,
        fault: Unusable | None = None,
        event: tuple[str, str] | None = None,
        retry: tuple[int, int] | None = None,
    ) -> None:
        """Bring entries into the state.

        Args:
            entries: the entries, of which those are left alone that another worker has claimed.
            state: their new state.
            fault: why they are dead letters.
            event: what happened, and its detail, for their histories.
            retry: when they are due again, and since when they fail.
        """
        with self._disk.used(), self._claiming:
            own = [entry for entry in entries if self._claims.holds(entry)]
            now = to_milliseconds(self._clock())
            settled: dict[str, int | str | None] = {
                "held": as_json([(entry.id, entry.attempts, entry.message_id) for entry in own]),
                "state": state,
                "delivered_at": now if state is State.DELIVERED else None,
                "reason": fault.reason if fault else None,
                "detail": fault.detail if fault else None,
            }
            if state is State.PENDING:
                self._claims.release(own)  # even if that cannot be written
            with self._writing:
                if event is None:
                    self._settler.execute(statements.SETTLE, settled)
                else:
                    what, happened = event
                    settled |= {"at": now, "what": what, "happened": happened}
                    with self._settler:
                        # Before the update: it needs to know which entries are still pending.
                        self._settler.execute(statements.NOTE_HISTORY, settled)
                        self._settler.execute(statements.SETTLE, settled)
                        if retry:
                            settled |= {"retry_at": retry[0], "failing_since": retry[1]}
                            self._settler.execute(statements.POSTPONE, settled)
            if state is not State.PENDING:
                self._claims.forget(own)

    def advance(self, entry: Entry, step: int) -> None:
        """See `Outbox.advance`."""
        with self._disk.used(), self._claiming:
            if self._claims.holds(entry):
                advanced = {"id": entry.id, "message_id": entry.message_id, "step": step}
                with self._writing:
                    self._settler.execute(statements.ADVANCE, advanced)

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """See `Outbox.throttle`."""
        with self._disk.used(), self._throttling:
            now = self._elapsed()
            result = self._throttles.change(destination, change, now)
            if self._throttles.is_news(destination, now):
                with self._writing:
                    self._throttles.note(destination, now, self._settler)
        return result

    def destination_status(self, destination: str) -> DestinationStatus:
        """See `Outbox.destination_status`. All processes of a machine count the same seconds."""
        with self._disk.used(), self._reading:
            throttle = throttles.noted(destination, self._reader)
        return throttle.status(self._elapsed(), self._clock())

    def counts(self) -> dict[str, Counts]:
        """See `Outbox.counts`."""
        with self._disk.used(), self._reading:
            return counters.counts(self._reader)

    def counters(self) -> list[CounterRow]:
        """See `Outbox.counters`."""
        with self._disk.used(), self._reading:
            return counters.counters(self._reader)

    def aggregate_counters(self, before: datetime) -> None:
        """See `Outbox.aggregate_counters`."""
        with self._disk.used(), self._writing, self._settler:
            counters.aggregate(self._settler, before)

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        with self._disk.used(), self._writing:
            self._settler.execute(statements.PURGE, (to_milliseconds(before), limit))
            return self._settler.changes()

    def check(self) -> None:
        """See `Outbox.check`."""
        with self._disk.used(), self._writing:
            self._adder.execute("UPDATE status SET beat = beat + 1")

    def pending_exceed(self, limit: int) -> bool:
        """See `Outbox.pending_exceed`."""
        with self._disk.used(), self._reading:
            return bool(self._reader.execute(statements.PENDING_EXCEED, (limit,)).get)

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
            if self._crashes_counted:
                self._note_claims()
        if self._disk.lost and Role.RECEIVER in self._locks:
            self._rescue()
        self._locks.release()
        self._entries.close()
        with translated(), self._writing, self._reading:
            for connection in (self._reader, self._settler, self._adder):
                self._disk.leave(connection)

    def _rescue(self) -> None:
        """Copy the lost files, which only this process can still read, into a new file."""
        try:
            with self._writing:
                rescued = rescue(self._adder, self._path)
            _log.error("outbox.rescued", file=str(rescued), next=f"relay restore {rescued}")
        except (OSError, apsw.Error) as error:
            _log.critical("outbox.not_rescued", error=f"{type(error).__name__}: {error}")

"""The tables of a SQLite outbox, and what several of its modules need."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw

from relay.errors import OutboxError, OutboxMissingError, OutboxUnusableError
from relay.outbox.entries import Role
from relay.outbox.sqlite.fileformat import beside, log_fault, size_on_disk
from relay.outbox.sqlite.migrations import MIGRATIONS
from relay.outbox.sqlite.place import kept, open_file
from relay.outbox.sqlite.shape import differences

MARK: Final = 0x52_4C_41_59
"""The file's application_id: "RLAY"."""

MOMENTS: Final = range(253_402_300_800_000)
"""The times that a file may hold, in milliseconds: up to the year 9999."""

_BUSY_MILLISECONDS: Final = 5_000
_CHECK_STEPS: Final = 100  # between looks at the time; about as many pages


@contextmanager
def translated() -> Iterator[None]:
    """Raise SQLite's errors as relay's."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise _damage(str(error)) from error
    except apsw.ReadOnlyError as error:
        raise OutboxUnusableError(f"SQLite: {type(error).__name__}: {error}") from error
    except apsw.Error as error:
        raise OutboxError(f"SQLite: {type(error).__name__}: {error}") from error


def _damage(said: str, path: Path | None = None) -> OutboxUnusableError:
    return OutboxUnusableError(
        f"{path or 'the outbox'} is damaged ({said}); stop relay, run `relay salvage"
        f" {path or 'DAMAGED'} NEW`, and start it on the new file; the damaged one is left as it is"
    )


def connect(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open the file, or make it; see `open_file`."""
    connection = open_file(path, create=create)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    return connection


def refuse_damage(connection: apsw.Connection, path: Path, *, seconds: float = 1.0) -> None:
    """Have SQLite look the file over for so long, which is enough for a small one.

    Of a large one, where the oldest entries are looked at first, the rest is found when it is used.

    Args:
        connection: the one that writes what must not be lost. It makes the log if there is none,
            and only who makes a file syncs the directory with it.
        path: of its file.
        seconds: how long at the most.

    Raises:
        OutboxUnusableError: it is damaged; nothing has been written to it, and the connection is
            closed.
    """
    fault = log_fault(path)
    if fault is None and size_on_disk(path):
        give_up_at = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _CHECK_STEPS)
        try:
            said = connection.execute("PRAGMA quick_check(1)").get
            fault = None if said == "ok" else said.splitlines()[-1]
        except apsw.InterruptError:
            pass
        except (apsw.CorruptError, apsw.NotADBError) as error:
            fault = str(error)
        connection.set_progress_handler(None)
    if fault is not None:
        # Whoever closes a file last moves the log into it.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()
        raise OutboxUnusableError(". ".join([str(_damage(fault, path)), *kept(path)]))


def sync_directory(directory: Path) -> None:
    """Have the disk know the names of the files in it."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether a relay receives into the file or forwards from it; see `Outbox.lock_role`."""
    for role in Role:
        with suppress(OSError), beside(path, role).open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def migrate(connection: apsw.Connection, path: Path, *, create: bool) -> None:
    """Bring the file up to date.

    Args:
        connection: to the file.
        path: of the file.
        create: make an outbox of a file that has nothing in it.

    Raises:
        OutboxMissingError: it has nothing in it, and is not to become an outbox.
        OutboxError: an older relay, which knows the old tables only, is at work on it.
        OutboxUnusableError: it is another program's, a newer relay's, or its tables are not those
            of its version; nothing has been written to it.
    """
    _refuse_others(connection, path, create=create)
    connection.pragma("journal_mode", "wal")
    if connection.pragma("user_version") == len(MIGRATIONS):
        return  # nothing is written, so that a full disk does not keep a file from being opened
    with connection:
        version: int = connection.pragma("user_version")
        if 0 < version < len(MIGRATIONS) and is_in_use(path):  # by one that knows the old tables
            raise OutboxError(f"an older relay is at work on {path}; stop it first")
        for migration in MIGRATIONS[version:]:
            connection.execute(migration)
        connection.pragma("application_id", MARK)
        connection.pragma("user_version", len(MIGRATIONS))


def _refuse_others(connection: apsw.Connection, path: Path, *, create: bool) -> None:
    connection.execute("BEGIN DEFERRED")  # another process may be about to migrate the file
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if tables and connection.pragma("application_id") != MARK:
            raise OutboxUnusableError(f"{path} is a SQLite file of some other program")
        if not tables and not create:
            raise OutboxMissingError(f"{path} is empty")
        version: int = connection.pragma("user_version")
        if version > len(MIGRATIONS):
            raise OutboxUnusableError(f"{path} was written by a newer relay")
        if differing := differences(connection, MIGRATIONS[:version]):
            raise OutboxUnusableError(
                f"{path} does not have the tables of version {version}, which it claims to have"
                f" ({', '.join(differing)}); another build of relay has made it, or someone has"
                " changed it. It is left as it is: have the relay that wrote it forward what"
                f" waits, or run `relay salvage {path} NEW`, and start this one on a new file"
            )
    finally:
        connection.execute("ROLLBACK")


def milliseconds(moment: datetime) -> int:
    """The moment as the file holds it."""
    return int(moment.timestamp() * 1000)


def moment(milliseconds: int) -> datetime:
    """The moment that the file holds, aware UTC.

    Raises:
        OutboxError: there is no such moment, or not one that relay could have seen.
    """
    if milliseconds not in MOMENTS:
        raise OutboxError(f"a time that cannot be: {milliseconds} ms after 1970")
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

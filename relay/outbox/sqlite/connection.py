"""Opens connections to a SQLite outbox, and refuses a damaged file."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import apsw

from relay.errors import OutboxError, OutboxUnusableError
from relay.outbox.sqlite.fileformat import log_fault, size_on_disk
from relay.outbox.sqlite.files import kept, open_file

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


def _damage(fault: str, path: Path | None = None) -> OutboxUnusableError:
    return OutboxUnusableError(
        f"{path or 'the outbox'} is damaged ({fault}); stop relay, run `relay salvage"
        f" {path or 'DAMAGED'} NEW`, and start it on the new file; the damaged one is left as it is"
    )


def connect(path: Path, *, create: bool = False) -> apsw.Connection:
    """Open the file, or create it; see `open_file`. Nothing is read or written yet."""
    connection = open_file(path, create=create)
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    return connection


def configure(connection: apsw.Connection) -> apsw.Connection:
    """Set how the connection writes, and return it.

    Each commit is synced. Transactions take the writers' lock when they begin.
    """
    connection.transaction_mode = "IMMEDIATE"
    connection.pragma("synchronous", "full")
    # The hook on commits, which checkpoints elsewhere, replaces the automatic checkpoint.
    connection.pragma("wal_autocheckpoint", 0)
    # Zeros replace what was there: an update, too, may move a row, and what is erased later must
    # not have left a copy.
    connection.pragma("secure_delete", "on")
    return connection


def refuse_damage(connection: apsw.Connection, path: Path, *, seconds: float = 1.0) -> None:
    """Check the file for damage, for so many seconds; that is enough for a small file.

    In a large file only the oldest entries are checked. Other damage is found when it is read.

    Args:
        connection: the connection that writes what must not be lost. It creates the log if there
            is none, and only the connection that creates a file syncs the directory with it.
        path: path of the file.
        seconds: the longest that the check takes.

    Raises:
        OutboxUnusableError: the file is damaged; nothing has been written to it, and the connection
            is closed.
    """
    fault = log_fault(path)
    if fault is None and size_on_disk(path):
        give_up_at = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _CHECK_STEPS)
        try:
            result = connection.execute("PRAGMA quick_check(1)").get
            fault = None if result == "ok" else result.splitlines()[-1]
        except apsw.InterruptError:
            pass
        except (apsw.CorruptError, apsw.NotADBError) as error:
            fault = str(error)
        connection.set_progress_handler(None)
    if fault is not None:
        # The last connection to close a file moves the log into it.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()
        raise OutboxUnusableError(". ".join([str(_damage(fault, path)), *kept(path)]))


def sync_directory(directory: Path) -> None:
    """Sync the directory, so that the names of its files are on disk."""
    with suppress(OSError):  # not every file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

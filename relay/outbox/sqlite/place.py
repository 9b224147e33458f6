"""The files of a SQLite outbox on their disk: made, and watched while they are open.

A file that is deleted, moved or replaced can still be written to by who has it open, and what is
written is gone when they close it.
"""

import ctypes
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw

from relay.errors import OutboxMissingError, OutboxUnusableError
from relay.outbox import Role
from relay.outbox.sqlite.fileformat import beside

_FILE_DESCRIPTORS: Final = Path("/proc/self/fd")
_OTHERS: Final = 0o077  # the bits of a mode that let in anyone but its owner

Identity = tuple[int, int]
"""Of a file, whatever it is called: its device and inode. No other has them while it is open."""


def open_file(path: Path, *, create: bool) -> apsw.Connection:
    """Open the file; one that relay makes is nobody's to read but its owner's.

    Args:
        path: where it is.
        create: make it if there is none.

    Raises:
        OutboxMissingError: there is none, and it is not to be made.
        OutboxUnusableError: it cannot be opened or made.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # SQLite would read from a pipe or a device
            raise OutboxUnusableError(f"{path} cannot be opened: it is no file")
    except (FileNotFoundError, NotADirectoryError):
        if not create:
            raise OutboxMissingError(f"{path} does not exist") from None
    except OSError as error:
        raise OutboxUnusableError(f"{path} cannot be opened: {error.strerror}") from None
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    try:
        return apsw.Connection(str(path), flags=flags)
    except apsw.CantOpenError:
        raise OutboxUnusableError(f"{path} cannot be opened") from None


def exposed(path: Path) -> Iterator[str]:
    """Tell of each of the outbox's files that others than its owner may read or write."""
    for file in _files(path):
        with suppress(OSError):
            mode = file.stat().st_mode & 0o777
            if mode & _OTHERS:
                yield f"{file} has mode {mode:04o}: others than its owner can open it (chmod 600)"


def kept(path: Path) -> Iterator[str]:
    """Tell of each file that keeps what lost files held; see `rescue`."""
    for file in sorted(path.parent.glob(f"{path.name}.rescued-*")):
        yield f"{file} has what a lost outbox held: `relay restore {file}`, then delete it"


def _files(path: Path) -> list[Path]:
    return [path, *(beside(path, name) for name in ("wal", "shm", *Role))]


def rescue(connection: apsw.Connection, path: Path) -> Path:
    """Copy what the connection can still read of the lost files into a new file beside the path.

    Raises:
        OSError: there is no room for it, or no such directory any more.
        apsw.Error: it could not be read or written.
    """
    rescued = Path(f"{path}.rescued-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    with tempfile.TemporaryDirectory(prefix=f"{rescued.name}.", dir=path.parent) as directory:
        partial = Path(directory) / path.name
        connection.execute("VACUUM INTO ?", (str(partial),))
        partial.chmod(0o600)
        partial.rename(rescued)
    return rescued


class Place:
    """Where the files are that a process has opened.

    Args:
        path: as the operator names it.
        connection: one that has read from it, so that its log is open, too.

    Raises:
        OutboxUnusableError: it has just been deleted, moved or replaced.
    """

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._path = path
        # SQLite puts the log beside the file itself, where the path may be a symbolic link.
        log, index = connection.filename_wal, f"{connection.filename}-shm"
        self._opened = {file: _identity(file) for file in (str(path), log, index)}
        moved = ctypes.c_int(0)
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        if moved.value or None in self._opened.values():
            raise OutboxUnusableError(f"{path} is being deleted, moved or replaced")

    def fault(self) -> str | None:
        """What has become of the files since; None while each is where it was opened.

        It takes 8 µs.
        """
        for file, identity in self._opened.items():
            if (now := _identity(file)) != identity:
                return self._told(file, identity, "replaced" if now else "deleted or moved")
        return None

    def _told(self, file: str, identity: Identity | None, what: str) -> str:
        where = next((name for name in _open_names() if name[1] == identity), (None,))[0]
        return (
            f"{file} has been {what} while relay had it open; what it took last is in"
            f" {where or 'a file without a name'}. Nothing more is stored in it"
        )


def _identity(file: str) -> Identity | None:
    try:
        found = os.stat(file)  # noqa: PTH116 (a Path would take as long again)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _open_names() -> Iterator[tuple[str, Identity]]:
    """What the files that this process has open are called by now."""
    with suppress(OSError):
        for descriptor in _FILE_DESCRIPTORS.iterdir():
            with suppress(OSError):
                found = descriptor.stat()
                yield str(descriptor.readlink()), (found.st_dev, found.st_ino)

"""Opens the files of a SQLite outbox, and notices when they are deleted, replaced or overwritten.

A process can still write to a file that was deleted, moved or replaced while it was open. What it
writes is gone when it closes the file. A file that was overwritten, as by `cp backup.db relay.db`,
keeps its name and inode. Each later write damages it.
"""

import ctypes
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import apsw

from relay.errors import OutboxMissingError, OutboxUnusableError
from relay.outbox.entries import Role
from relay.outbox.sqlite.fileformat import PAGE, beside, log_of, log_size, size_on_disk

_FILE_DESCRIPTORS: Final = Path("/proc/self/fd")
_LOOKS: Final = 3
_INDEX_HEAD: Final = 48
_INDEX_COUNTS: Final = 16  # their place in the head
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_OTHERS: Final = 0o077  # the bits of a mode for everyone but the owner

Identity = tuple[int, int]
"""The device and inode of a file. No other file has the same while it is open."""


def open_file(path: Path, *, create: bool) -> apsw.Connection:
    """Open the file. Only its owner can read a file that relay creates.

    Args:
        path: path of the file.
        create: create the file if there is none.

    Raises:
        OutboxMissingError: there is no file, and `create` is false.
        OutboxUnusableError: it cannot be opened or created, or only its log is there.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # SQLite would read from a pipe or a device
            raise OutboxUnusableError(f"{path} cannot be opened: it is not a regular file")
    except (FileNotFoundError, NotADirectoryError):
        log = log_of(path)
        if size_on_disk(log) >= log_size(1):
            gone = (
                f"{path} has been deleted or moved: it does not exist, but {log} does. Put it"
                f" back; or run `relay salvage {path} NEW`, which reads that, and start relay on"
                " the new file"
            )
            raise OutboxUnusableError(". ".join([gone, *kept(path)])) from None
        if not create:
            raise OutboxMissingError(f"{path} does not exist") from None
    except OSError as error:
        raise OutboxUnusableError(f"{path} cannot be opened: {error.strerror}") from None
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    try:
        return apsw.Connection(str(path), flags=flags)
    except apsw.CantOpenError:
        raise OutboxUnusableError(f"{path} cannot be opened") from None


def is_in_memory(directory: Path) -> bool:
    """Return whether the directory is known to be on a file system that a restart wipes."""
    kinds: dict[Path, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted_on, kind, *_ = line.split(" ")
            kinds[Path(mounted_on.replace("\\040", " "))] = kind
    real = directory.resolve()
    return (
        next((kinds[place] for place in (real, *real.parents) if place in kinds), "") in _IN_MEMORY
    )


def exposed(path: Path) -> Iterator[str]:
    """Return a sentence for each of the outbox's files that others may read or write."""
    for file in _files(path):
        with suppress(OSError):
            mode = file.stat().st_mode & 0o777
            if mode & _OTHERS:
                yield f"{file} has mode {mode:04o}: others than its owner can open it (chmod 600)"


def kept(path: Path) -> Iterator[str]:
    """Return a sentence for each rescued copy of lost files; see `rescue`."""
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


class OutboxFiles:
    """The outbox's files as this process has opened them.

    Args:
        path: path of the outbox, as the operator gave it.
        connection: a connection that has read from the outbox, so that its log is open, too.

    Raises:
        OutboxUnusableError: the outbox has just been deleted, moved or replaced.
    """

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self._path = path
        # SQLite puts the log beside the file itself, where the path may be a symbolic link.
        log, index = connection.filename_wal, f"{connection.filename}-shm"
        self._log, self._index = log, index
        opened = {file: _look(file) for file in (str(path), log, index)}
        self._opened = {file: found and found[0] for file, found in opened.items()}
        self._sizes = {file: found[1] if found else 0 for file, found in opened.items()}
        moved = ctypes.c_int(0)
        connection.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
        if moved.value or None in self._opened.values():
            raise OutboxUnusableError(f"{path} is being deleted, moved or replaced")

    def fault(self) -> str | None:
        """Return what has happened to the files; None while each is the one that was opened.

        It takes 8 µs.
        """
        for file, identity in self._opened.items():
            before = self._sizes[file]  # first: another thread may see the file grow meanwhile
            now = _look(file)
            if now is None or now[0] != identity:
                return self._loss(file, identity, "replaced" if now else "deleted or moved")
            if now[1] < before and not self._is_shortened(file, before):
                return (
                    f"{file} has been overwritten or cut off while relay had it open. Nothing more"
                    f" is stored in it; what was stored last is in {self._log}"
                )
            self._sizes[file] = now[1]
        return None

    def _is_shortened(self, file: str, before: int) -> bool:
        """Return whether SQLite itself has made the file shorter: by VACUUM, or emptying its log.

        Overwriting the file does not change what the log's index says about it.
        """
        if file == self._index:
            return False
        for _ in range(_LOOKS):  # it may be emptied or filled meanwhile
            frames, pages = self._counted()
            if file == self._log and size_on_disk(Path(file)) >= log_size(frames):
                return True
            if file != self._log and pages * PAGE < before:
                return True
        return False

    def _counted(self) -> tuple[int, int]:
        """Return the frames of the log, and the pages of the file with its log.

        Chapter "WAL-Index Header". They are read through SQLite's own descriptor: closing another
        one releases SQLite's locks. A connection cannot be used: if it finds an empty file, it
        deletes the log.
        """
        identity = self._opened[self._index]
        own = next((number for number, _, found in _open_files() if found == identity), None)
        head = b"" if own is None else os.pread(own, _INDEX_HEAD, 0)
        return struct.unpack_from("=II", head.ljust(_INDEX_HEAD, b"\0"), _INDEX_COUNTS)

    def _loss(self, file: str, identity: Identity | None, what: str) -> str:
        where = next((name for _, name, found in _open_files() if found == identity), None)
        return (
            f"{file} has been {what} while relay had it open; the latest events are in"
            f" {where or 'a file without a name'}. Nothing more is stored in it"
        )


def _look(file: str) -> tuple[Identity, int] | None:
    """Return the identity of the file and its bytes; None if it is not there."""
    try:
        found = os.stat(file)  # noqa: PTH116 (a Path would take as long again)
    except OSError:
        return None
    return (found.st_dev, found.st_ino), found.st_size


def _open_files() -> Iterator[tuple[int, str, Identity]]:
    """Return the descriptor, present name and identity of each file that this process has open."""
    with suppress(OSError):
        for descriptor in _FILE_DESCRIPTORS.iterdir():
            with suppress(OSError):
                found = descriptor.stat()
                name = str(descriptor.readlink())
                yield int(descriptor.name), name, (found.st_dev, found.st_ino)

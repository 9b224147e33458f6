"""A simulated disk, as a VFS of SQLite: whatever is asked of it is noted, and its power can be cut.

SQLite works on real files, as it does on the page cache. What a disk would hold of them once the
power is cut is made from the notes, at any point of them, so that one run is good for many cuts.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Self

import apsw

_SECTOR_BYTES = 512
_Name = str | apsw.URIFilename | None


class Deed(Enum):
    """What a file was asked to do."""

    CREATE = auto()
    WRITE = auto()
    TRUNCATE = auto()
    SYNC = auto()
    SYNC_FAILED = auto()
    DELETE = auto()


@dataclass(frozen=True)
class Operation:
    """What was asked of a file.

    Attributes:
        file: its name; all are in one directory.
        offset: where data is written, or the size that is left.
        directory: the directory is synced with it.
    """

    deed: Deed
    file: str
    offset: int = 0
    data: bytes = b""
    directory: bool = False


class Disk(apsw.VFS):
    """The disk on which SQLite opens its files meanwhile.

    A sync that has failed is told once to each who has the file open, as Linux does, and never
    again: what was written before it is not on the disk, although it can still be read.

    Args:
        operations: those that were done before, by a process that is gone.

    Attributes:
        operations: all that were done, oldest first.
        before: called before each; what it raises, SQLite is told.
    """

    def __init__(self, operations: Sequence[Operation] = ()) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__("disk", self.base)
        self.operations = [*operations]
        self.before: Callable[[Operation], object] = lambda _operation: None
        self.lock = threading.RLock()
        self.open: list[_File] = []

    def __enter__(self) -> Self:
        apsw.set_default_vfs("disk")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        apsw.set_default_vfs(self.base)
        self.unregister()

    @property
    def now(self) -> int:
        """The point that the notes have come to."""
        return len(self.operations)

    def xOpen(self, name: _Name, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 (SQLite's name)
        if name is None:  # a temporary file
            return apsw.VFSFile(self.base, name, flags)
        with self.lock:
            return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: FBT001, N802 (SQLite's)
        with self.lock:
            super().xDelete(filename, syncdir)
            name = Path(filename).name
            self.operations.append(Operation(Deed.DELETE, name, directory=syncdir))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename, flags: list[int]) -> None:
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        made = not path.exists()
        super().__init__(disk.base, name, flags)
        self.name = path.name
        self.failed = False  # a sync that another one was told of
        self._disk = disk
        # SQLite's own VFS syncs the directory with the first sync of such a file, by its maker.
        logs = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        self._entry_unsynced = made and bool(flags[0] & logs)
        if made:
            disk.operations.append(Operation(Deed.CREATE, self.name))
        disk.open.append(self)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 (SQLite's name)
        write = Operation(Deed.WRITE, self.name, offset, data)
        self._do(write, lambda: super(_File, self).xWrite(data, offset))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 (SQLite's name)
        truncate = Operation(Deed.TRUNCATE, self.name, newsize)
        self._do(truncate, lambda: super(_File, self).xTruncate(newsize))

    def xSync(self, _flags: int) -> None:  # noqa: N802 (SQLite's name)
        sync = Operation(Deed.SYNC, self.name, directory=self._entry_unsynced)
        with self._disk.lock:
            try:
                self._do(sync, lambda: None)
            except apsw.IOError:
                self._disk.operations.append(replace(sync, deed=Deed.SYNC_FAILED, directory=False))
                for file in self._disk.open:
                    file.failed |= file.name == self.name and file is not self
                raise
            self._entry_unsynced = False
            if self.failed:
                self.failed = False
                raise sync_error()

    def _do(self, operation: Operation, act: Callable[[], None]) -> None:
        with self._disk.lock:
            self._disk.before(operation)
            act()
            self._disk.operations.append(operation)

    def xClose(self) -> None:  # noqa: N802 (SQLite's name)
        with self._disk.lock:
            if self in self._disk.open:
                self._disk.open.remove(self)
        super().xClose()


def sync_error() -> Exception:
    """What SQLite is told when fsync fails."""
    return apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)


@dataclass
class _Content:
    """What a file holds for certain, and what has been asked of it since that was synced."""

    synced: bytearray = field(default_factory=bytearray)
    loose: list[Operation] = field(default_factory=list)

    def sync(self) -> None:
        for operation in self.loose:
            _perform(operation, self.synced)
        self.loose.clear()

    def lose(self, rng: Random) -> None:
        """Keep what is synced, and of the rest all, nothing, or anything.

        Of writes to one place that in effect is any order: whichever came last to the disk stays.
        """
        share = rng.choice([0, 1, rng.random()])
        self.loose = [operation for operation in self.loose if rng.random() < share]
        if self.loose and share < 1:
            torn = rng.randrange(len(self.loose))
            self.loose[torn] = _torn(self.loose[torn], rng)
        self.sync()


class Platter:
    """What is on the disk once the operations that it is shown have been done."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._files: dict[str, _Content] = {}
        self._synced_files: dict[str, _Content] = {}

    def show(self, operations: Sequence[Operation]) -> None:
        """Let it have them, oldest first."""
        for operation in operations:
            match operation.deed:
                case Deed.CREATE:
                    self._files[operation.file] = _Content()
                case Deed.DELETE:
                    del self._files[operation.file]
                case Deed.WRITE | Deed.TRUNCATE:
                    self._files[operation.file].loose.append(operation)
                case Deed.SYNC:
                    self._files[operation.file].sync()
                case Deed.SYNC_FAILED:
                    self._files[operation.file].lose(self._rng)
            if operation.directory:
                self._synced_files = dict(self._files)

    def cut_power(self, directory: Path) -> None:
        """Put what is left of the files into the directory."""
        for name in sorted({*self._files, *self._synced_files}):
            file = self._rng.choice([self._files.get(name), self._synced_files.get(name)])
            if file is not None:
                left = _Content(file.synced.copy(), file.loose.copy())
                left.lose(self._rng)
                (directory / name).write_bytes(left.synced)


def kill(operations: Sequence[Operation], directory: Path) -> None:
    """Put the files into the directory as they can be read once who did all this is killed."""
    files: dict[str, bytearray] = {}
    for operation in operations:
        if operation.deed is Deed.DELETE:
            del files[operation.file]
        else:
            _perform(operation, files.setdefault(operation.file, bytearray()))
    for name, content in files.items():
        (directory / name).write_bytes(content)


def _perform(operation: Operation, content: bytearray) -> None:
    start = operation.offset
    content.extend(bytes(max(0, start - len(content))))
    if operation.deed is Deed.TRUNCATE:
        del content[start:]
    elif operation.deed is Deed.WRITE:
        content[start : start + len(operation.data)] = operation.data


def _torn(write: Operation, rng: Random) -> Operation:
    """Either end of it, cut where a sector of the disk ends."""
    start, end = write.offset, write.offset + len(write.data)
    sectors = range(start - start % _SECTOR_BYTES + _SECTOR_BYTES, end, _SECTOR_BYTES)
    if not sectors:
        return write
    cut = rng.choice(sectors)
    if rng.random() < 0.5:
        return replace(write, data=write.data[: cut - start])
    return replace(write, offset=cut, data=write.data[cut - start :])

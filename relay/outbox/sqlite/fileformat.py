"""Reads rows out of SQLite's file format, even out of a damaged file.

The rules are those of https://sqlite.org/fileformat2.html; functions name the chapter they follow.
No damage of a page or log raises an error: fewer rows are found.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

from relay.errors import OutboxError, OutboxUnusableError

PAGE: Final = 4_096
"""The bytes of a page: SQLite's default, which relay keeps. The file's header may be damaged."""

INTERIOR: Final = b"\x05"  # the first byte of a table's page that leads to others
LEAF: Final = b"\x0d"  # and of one that has rows
OTHERS: Final = frozenset(b"\x00\x02\x05\x0aS")  # overflow, index, interior, index, the first page

_MAGIC: Final = b"SQLite format 3\0"
_LOG_HEAD: Final = 32
_FRAME_HEAD: Final = 24
_FRAME: Final = _FRAME_HEAD + PAGE
_LOG_ORDERS: Final = {0x377F0682: "<", 0x377F0683: ">"}  # of a checksum's bytes, by magic number
_LEAST_HERE: Final = (PAGE - 12) * 32 // 255 - 23  # bytes of a row on its page, and
_MOST_HERE: Final = PAGE - 35
_NUMBERS: Final = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}  # bytes by serial type
_TEXTS_AND_BLOBS: Final = 12  # the first serial type of these


class Cell(Struct, frozen=True):
    """A row as its leaf page has it.

    Attributes:
        start: where it begins on the page.
        end: where it ends.
        kinds: the serial types of its values.
        here: as much of the values as is on the page.
        size: the bytes of all the values.
        overflow: the page that has more of them; 0 for none.
    """

    start: int
    end: int
    id: int
    kinds: Sequence[int]
    here: bytes
    size: int
    overflow: int


class Pages(Struct, frozen=True):
    """Pages by their numbers: from the log if they are in it, otherwise from the file.

    A place is an offset in the file, or a negative offset in the log.
    """

    file: BinaryIO | None
    log: BinaryIO | None
    logged: Mapping[int, int]

    def place(self, number: int) -> int:
        """Return where the page is."""
        return self.logged.get(number, (number - 1) * PAGE)

    def read(self, place: int) -> bytes:
        """Return the page at the place, or the part of it that is there."""
        return _read(self.log if place < 0 else self.file, abs(place), PAGE)

    def __getitem__(self, number: int) -> bytes:
        return self.read(self.place(number)) if number > 0 else b""

    def count(self) -> int:
        """Return how many pages there are."""
        return max([-(-_length(self.file) // PAGE), *self.logged])

    def free(self) -> Iterator[int]:
        """Return the numbers of free pages, as far as the list is sound: "The Freelist"."""
        trunks: set[int] = set()
        trunk = integer(self[1], 32) if self[1].startswith(_MAGIC) else 0
        while trunk and trunk not in trunks:
            trunks.add(trunk)
            page = self[trunk]
            yield trunk
            for at in range(8, min(8 + 4 * integer(page, 4), len(page)), 4):
                yield integer(page, at)
            trunk = integer(page, 0)


def beside(path: Path, name: str) -> Path:
    """Return the path of a file beside the outbox; a symbolic link to the outbox is followed."""
    return Path(f"{path.resolve()}-{name}")


def log_of(path: Path) -> Path:
    """Return the path of the log, which holds what SQLite has not moved into the file yet."""
    return beside(path, "wal")


def opened(path: Path, files: ExitStack) -> BinaryIO | None:
    """Open the file until the stack is closed; return None if there is none.

    Raises:
        OutboxUnusableError: it is not a regular file.
        OutboxError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise OutboxUnusableError(f"{path} cannot be read: it is not a regular file")
    try:
        return files.enter_context(path.open("rb", buffering=0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutboxError(f"{path} cannot be read: {error.strerror}") from None


def size_on_disk(path: Path) -> int:
    """Return the bytes of the file; 0 if there is none.

    It is not opened: closing it again would release the locks that SQLite has on it.
    """
    with suppress(OSError):
        return path.stat().st_size
    return 0


def log_size(frames: int) -> int:
    """Return the smallest size in bytes of a log with so many frames."""
    return _LOG_HEAD + frames * _FRAME if frames else 0


def log_fault(path: Path) -> str | None:
    """Return what is wrong with the log as a whole, if SQLite would ignore or delete it."""
    with ExitStack() as files:
        log = opened(log_of(path), files)
        if _length(log) < _LOG_HEAD + _FRAME:
            return None
        if not size_on_disk(path):
            return "it is empty and its log is not"
        return None if _log_head(log) else "its log begins with something else"


def read_log(log: BinaryIO | None) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Return the place of each page's newest committed content: "WAL File Format".

    Return also the number and place of each page after the last sound commit, oldest first; an
    unknown number is 0. For SQLite the log ends at that commit: the next one was not finished, or
    damage has cut it off.
    """
    committed: dict[int, int] = {}
    written: dict[int, int] = {}
    behind: list[tuple[int, int]] = []
    strange: list[tuple[int, int]] = []
    head = _log_head(log)
    order, salts, sums = head or ("<", _salts(log), (0, 0))
    sound = head is not None
    for at in _frames(log):
        frame, place = _read(log, at, _FRAME), -(at + _FRAME_HEAD)
        if len(frame) < _FRAME or frame[8:16] != salts:
            strange.append((0, place))
            continue
        if sound:
            sums = _checksum(order, frame[:8] + frame[_FRAME_HEAD:], sums)
            sound = not strange and sums == (integer(frame, 16), integer(frame, 20))
        number = integer(frame, 0)
        if not sound:
            behind += [*strange, (number, place)]
            strange = []  # frames behind the last one are from an earlier log
            continue
        written[number] = place
        if integer(frame, 4):  # it ends a commit
            committed |= written
            written = {}
    return committed, [*written.items(), *behind]


def _frames(log: BinaryIO | None) -> range:
    return range(_LOG_HEAD, _length(log) - _FRAME + 1, _FRAME)


def _salts(log: BinaryIO | None) -> bytes:
    """Return the salts of a log with a damaged head; its frames precede those of older logs."""
    met: list[bytes] = []
    for at in _frames(log):
        salts = _read(log, at + 8, 8)
        if salts in met:
            return salts
        if any(salts):
            met.append(salts)
    return met[0] if met else b""


def _log_head(log: BinaryIO | None) -> tuple[str, bytes, tuple[int, int]] | None:
    """Return its order of bytes, salts and checksum; None if it is damaged."""
    head = _read(log, 0, _LOG_HEAD)
    order = _LOG_ORDERS.get(integer(head, 0))
    if len(head) < _LOG_HEAD or not order:
        return None
    sums = _checksum(order, head[:24], (0, 0))
    return (order, head[16:24], sums) if sums == (integer(head, 24), integer(head, 28)) else None


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    """Return the checksum of what came before and the data: "Checksum Algorithm"."""
    first, second = sums
    for one, another in struct.iter_unpack(f"{order}2I", data):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + another + first) & 0xFFFFFFFF
    return first, second


def children(page: bytes, low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Return the pages that an interior page leads to: "B-tree Pages".

    Each has its bounds: its ids are above the first, up to the second.
    """
    for pointer in range(12, 12 + 2 * _count(page), 2):
        at = integer(page, pointer, 2)
        with suppress(IndexError):
            key, _ = _varint(page, at + 4)
            yield integer(page, at), low, key
            low = key
    yield integer(page, 8), low, high


def _count(page: bytes) -> int:
    return min(integer(page, 3, 2), len(page) // 2)


def cells(page: bytes) -> list[Cell]:
    """Return the rows of a leaf page."""
    places = (integer(page, pointer, 2) for pointer in range(8, 8 + 2 * _count(page), 2))
    return [found for place in places if (found := cell(page, place))]


def first_cell(page: bytes) -> Cell | None:
    """Return the first readable row of a leaf page; None if there is none."""
    return cell(page, integer(page, 8, 2)) if _count(page) else None


def is_whole(page: bytes, rows: Iterable[Cell]) -> bool:
    """Return whether a leaf page has these rows and free space, and nothing else."""
    taken = integer(page, 5, 2) + integer(page, 7, 1) + sum(row.end - row.start for row in rows)
    block = integer(page, 1, 2)
    while block:
        taken += integer(page, block + 2, 2)
        following = integer(page, block, 2)
        block = following if following > block else 0
    return taken == PAGE


def cell(page: bytes, at: int) -> Cell | None:
    """Return the row at the place; None unless its sizes agree.

    Chapters "B-tree Pages" and "Record Format".
    """
    kinds: list[int] = []
    try:
        total, id_at = _varint(page, at)
        id_, start = _varint(page, id_at)
        head, values = _varint(page, start)
        while values < start + head:
            kind, values = _varint(page, values)
            kinds.append(kind)
        size = sum(map(size_of, kinds))
    except (IndexError, KeyError):
        return None
    here = _here(total)
    end = start + here
    if head + size != total or values != start + head or not values <= end <= len(page):
        return None
    if here == total:
        return Cell(at, end, id_, kinds, page[values:end], size, 0)
    return Cell(at, end + 4, id_, kinds, page[values:end], size, integer(page, end))


def _here(total: int) -> int:
    """Return how much of a row is on its page: "Cell Payload Overflow Pages"."""
    if total <= _MOST_HERE:
        return total
    here = _LEAST_HERE + (total - _LEAST_HERE) % (PAGE - 4)
    return here if here <= _MOST_HERE else _LEAST_HERE


def size_of(kind: int) -> int:
    """Return the bytes of a value of this serial type.

    Raises:
        KeyError: relay stores no value of this type.
    """
    if kind >= _TEXTS_AND_BLOBS:
        return (kind - _TEXTS_AND_BLOBS) // 2
    return _NUMBERS[kind]


def type_of(kind: int) -> type | None:
    """Return the type of a value of this serial type; None for NULL."""
    if kind == 0:
        return None
    if kind < _TEXTS_AND_BLOBS:
        return int
    return str if kind % 2 else bytes


def value_of(kind: int, data: bytes) -> int | str | bytes | None:
    """Return the value: "Record Format". Bytes of a text that are not UTF-8 are replaced."""
    type_ = type_of(kind)
    if type_ is int:
        return int.from_bytes(data, "big", signed=True) if size_of(kind) else kind - 8
    if type_ is str:
        return data.decode(errors="replace")
    return data if type_ else None


def integer(data: bytes, at: int, length: int = 4) -> int:
    """Return the integer at the place, in the format of all integers outside of rows."""
    return int.from_bytes(data[at : at + length], "big")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the value of the integer of variable length at the place, and where it ends."""
    value = 0
    for end in range(at, at + 8):
        value = value << 7 | data[end] & 0x7F
        if data[end] < 0x80:  # noqa: PLR2004 (the last one)
            return value, end + 1
    return value << 8 | data[at + 8], at + 9


def _length(file: BinaryIO | None) -> int:
    return os.fstat(file.fileno()).st_size if file else 0


def _read(file: BinaryIO | None, at: int, length: int) -> bytes:
    with suppress(OSError, OverflowError):  # what the disk cannot read counts as missing
        return os.pread(file.fileno(), length, at) if file else b""
    return b""

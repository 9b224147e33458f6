"""Reads the entries that are left in a damaged outbox.

It does without SQLite, which stops where something is wrong: each page is taken by itself. So an
entry may be met several times, for pages that are not in use any more, or cut off by the damage,
have old copies. They are told best first: the first of several with one `message_id` is to be kept,
which is what `EntryStore.restore` does.

1. Where the tree of the table leads, in the newest pages of the file and its log. The log is read
   to its end: SQLite would stop at a damaged frame.
2. Pages to which the tree does not lead any more.
3. What the pages behind the last sound commit of the log had been before.
4. If the tree is damaged: damaged pages, searched byte by byte, then pages that had been freed.

From the second on it cannot be told which copy is older. Pending ones come first then: what is
forwarded once more does no harm under its `messageId`; what was taken for delivered, and was not,
would be lost. Of what relay had forgotten some may come back, as delivered most likely, and is
forgotten again. What was erased does not, as far as erasing has overwritten it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

from relay.errors import OutboxError
from relay.outbox.entries import Keys, State, StoredEntry
from relay.outbox.sqlite import fileformat
from relay.outbox.sqlite.fileformat import (
    INTERIOR,
    LEAF,
    OTHERS,
    PAGE,
    Cell,
    Pages,
    log_of,
    opened,
)
from relay.outbox.sqlite.locks import refuse_use
from relay.outbox.sqlite.times import MILLISECONDS, from_milliseconds

_ROOT: Final = 2  # of `entries`, as it is the first table made

# The columns of `entries`, those in capitals never NULL. Its id is elsewhere, as the row's.
_COLUMNS: Final = "-TTStIiIIittiiiBT"
_OPTIONAL: Final = 1  # the last one: rows of version 1 do not have it
_DESTINATION: Final = "segment"  # of those
_TYPES: Final = {"T": str, "S": str, "I": int, "B": bytes}
_STATES: Final = {13 + 2 * len(state): state for state in State}  # by serial type: by their lengths

_ATTEMPTS: Final = range(2**31)
_DIGESTS: Final = range(2**32)

_ROW_HEAD: Final = re.compile(
    rb"(?=[\x11-\x1f]\x00[\x0f-\x7f](?:[\x81-\xff][\x00-\x7f]|[\x0f-\x7f])[\x15\x1b\x1f])",
    re.DOTALL,
)
"""Its length, then the serial types of an entry's id, source, `message_id` and state."""


class DamagedOutbox:
    """A SQLite outbox to be read as far as it can be. Nobody may be using it; it is left as it is.

    Attributes:
        pages: how many it has.
        seen: how many of them have been looked at.
        broken: the `message_id` of entries that were found, but not whole.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as files:
            file, log = opened(path, files), opened(log_of(path), files)
            if file is None and log is None:
                raise OutboxError(f"{path} does not exist")
            committed, behind = fileformat.read_log(log)
            refuse_use(path, files)
            self._files = files.pop_all()
        sound = Pages(file, log, committed)
        most = sound.count() + len(behind)  # a number may be damaged, too
        newest = {number: place for number, place in behind if 0 < number <= most}
        self._pages = Pages(file, log, committed | newest)
        replaced = [place for number, place in behind if newest.get(number) != place]
        self._older = [(self._pages, replaced), (sound, [*map(sound.place, newest)])]
        self.pages = self._pages.count()
        self.seen = 0
        self.broken: set[str] = set()
        self._sound = True
        self._torn: list[int] = []  # the places of damaged pages
        self._placed = bytearray(self.pages + 1)  # whether a page is in the tree, or free
        self._owners: dict[int, int] = {}  # the ids that overflow pages belong to, by their places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def torn(self) -> int:
        """How many pages are damaged, and may have had more than could be found."""
        return len(self._torn)

    def entries(self) -> Iterator[StoredEntry]:
        """Every entry that can be read, without its history. To be called once."""
        yield from self._in_tree()
        free = self._free()
        yield from self._doubtful(self._pages, self._cut_off(), _listed)
        for pages, places in self._older:
            yield from self._doubtful(pages, places, _listed)
        if not self._sound or self._torn:
            yield from self._doubtful(self._pages, self._torn, _carved)
            yield from self._doubtful(self._pages, free, _listed)

    def _in_tree(self) -> Iterator[StoredEntry]:
        left = [(_ROOT, -1, 2**63)]
        while left:
            number, low, high = left.pop()
            page = self._pages[number]
            if number > self.pages:
                self._torn.append(self._pages.place(number))  # it has been cut off
            elif number < 1 or self._placed[number]:
                self._sound = False
            elif page[:1] == INTERIOR:
                self._place(number)
                left += reversed([*fileformat.children(page, low, high)])
            elif page[:1] != LEAF:
                self._place(number, torn=True)
            else:
                cells = _listed(page)
                if all(low < cell.id <= high for cell in cells):
                    self._place(number, torn=not fileformat.is_whole(page, cells))
                    yield from self._whole(self._pages, cells, in_doubt=False)
                else:
                    self._sound = False  # it is another page's place

    def _free(self) -> list[int]:
        free = []
        for number in self._pages.free():
            if 0 < number <= self.pages and not self._placed[number]:
                self._place(number)
                free.append(self._pages.place(number))
        return free

    def _cut_off(self) -> list[int]:
        """Where the leaf pages are that are in use, and to which the tree does not lead."""
        places = []
        for number in range(1, self.pages + 1):
            if self._placed[number]:
                continue
            page = self._pages[number]
            if page[:1] != LEAF:
                self._place(number, torn=page != b"" and page[0] not in OTHERS)
                continue
            cells = _listed(page)
            # Without an entry it is another table's, as long as it is whole.
            self._place(number, torn=not fileformat.is_whole(page, cells or fileformat.cells(page)))
            if cells:
                self._sound = False
                places.append(self._pages.place(number))
        return places

    def _place(self, number: int, *, torn: bool = False) -> None:
        self._placed[number] = True
        self.seen += 1
        if torn:
            self._torn.append(self._pages.place(number))

    def _doubtful(
        self, pages: Pages, places: Iterable[int], find: Callable[[bytes], Iterable[Cell]]
    ) -> Iterator[StoredEntry]:
        for state in (State.PENDING, State.DEAD, State.DELIVERED):
            for place in places:
                cells = [cell for cell in find(pages.read(place)) if _state(cell) is state]
                yield from self._whole(pages, cells)

    def _whole(
        self, pages: Pages, cells: Iterable[Cell], *, in_doubt: bool = True
    ) -> Iterator[StoredEntry]:
        for cell in cells:
            data, places = _data(pages, cell)
            entry = None if data is None else _stored_entry(cell, data)
            # A page has one owner. Of an old copy and an entry, the entry is likely to be younger.
            lost = in_doubt and any(self._owners.get(place, -1) > cell.id for place in places)
            if entry is None or lost:
                self.broken.add(_values(cell, cell.here)[2])
            else:
                self._owners.update(dict.fromkeys(places, cell.id))
                yield entry


def _listed(page: bytes) -> list[Cell]:
    """The entries on a leaf page."""
    if page[:1] != LEAF:
        return []
    return [cell for cell in fileformat.cells(page) if _is_entry(cell)]


def _carved(page: bytes) -> list[Cell]:
    """The entries that there are by the looks of it, but for those written over in part."""
    found: dict[int, Cell] = {}
    for head in _ROW_HEAD.finditer(page):
        for start in range(max(head.start() - 12, 0), head.start() - 1):
            if (cell := fileformat.cell(page, start)) and _is_entry(cell):
                found[start] = cell
    starts = sorted(found)
    limits = dict(pairwise(starts))
    return [found[start] for start in starts if found[start].end <= limits.get(start, PAGE)]


def _data(pages: Pages, cell: Cell) -> tuple[bytes | None, list[int]]:
    """All its values, None if pages are missing that had more of them; and where those are."""
    parts, places = [cell.here], []
    missing, number = cell.size - len(cell.here), cell.overflow
    while missing > 0:
        page = pages[number][: 4 + missing]
        if len(page) < min(4 + missing, PAGE):
            return None, []
        places.append(pages.place(number))
        parts.append(page[4:])
        missing -= len(page) - 4
        number = fileformat.integer(page, 0)
    return None if number else b"".join(parts), places  # the last page names no other


def _is_entry(cell: Cell) -> bool:
    return (
        0 <= len(_COLUMNS) - len(cell.kinds) <= _OPTIONAL
        and all(map(_fits, _COLUMNS, cell.kinds))
        and cell.id < 2**63  # relay's are positive
    )


@lru_cache(10_000)
def _fits(column: str, kind: int) -> bool:
    type_ = fileformat.type_of(kind)
    if type_ is None:
        return not column.isupper()
    return type_ is _TYPES.get(column.upper()) and (column != "S" or kind in _STATES)


def _state(cell: Cell) -> State:
    return _STATES[cell.kinds[_COLUMNS.index("S")]]


def _values(cell: Cell, data: bytes) -> list[Any]:
    values, start = [], 0
    for kind in cell.kinds:
        end = start + fileformat.size_of(kind)
        values.append(fileformat.value_of(kind, data[start:end]))
        start = end
    return values


def _stored_entry(cell: Cell, data: bytes) -> StoredEntry | None:
    """None if there is no telling when it came; other numbers that cannot be are left out."""
    _, source, message_id, _, collection, received_at, _, attempts, *rest = _values(cell, data)
    _, delivered_at, reason, detail, user, address, email, body, *added = rest
    (destination,) = added or [_DESTINATION]
    if received_at not in MILLISECONDS:
        return None
    if delivered_at is not None and delivered_at not in MILLISECONDS:
        delivered_at = received_at
    return StoredEntry(
        id=cell.id,
        source=source,
        destination=destination,
        message_id=message_id,
        state=_state(cell),
        collection=collection,
        received_at=from_milliseconds(received_at),
        attempts=attempts if attempts in _ATTEMPTS else 0,
        delivered_at=None if delivered_at is None else from_milliseconds(delivered_at),
        reason=reason,
        detail=detail,
        keys=Keys(
            *(None if key is None or key not in _DIGESTS else key for key in (user, address, email))
        ),
        body=body,
    )

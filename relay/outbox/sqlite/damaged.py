"""Reads the entries that are left in a damaged outbox.

SQLite would stop at the first fault, so relay reads each page by itself. An entry may be found
several times, because pages that are free, or cut off by the damage, contain old copies. The best
copy comes first. `EntryStore.restore` keeps the first of several with one `message_id`. The order:

1. The pages of the table's tree, each in its latest version in the file or its log. The log is read
   to its end, although SQLite would stop at a damaged frame.
2. Pages to which the tree does not lead any more.
3. The earlier contents of pages that were written after the last sound commit of the log.
4. If the tree is damaged: damaged pages, searched byte by byte, then free pages.

From step 2 on the age of a copy is not known, so pending copies come first. An event that is sent
twice under its `messageId` does no harm; a pending entry taken for a delivered one would be lost.
Entries that were purged may come back, mostly as delivered, and are purged again. Erased entries do
not come back, as far as erasing has overwritten them.

Pending entries come with all lanes of which any row is left. Their order is that of their ids, as
far as pages are in order: replayed ones are not at the end.
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

_ROOT: Final = 2  # of `entries`, which is the first table made

# The types of the columns of `entries`; a capital is never NULL. The id is not among the values.
_COLUMNS: Final = "-TTStIiIIittiiiBTiIiI"
_LENGTHS: Final = frozenset({16, 17, len(_COLUMNS)})  # of rows by version
_ADDED: Final = ["segment", None, 0, None, 0]  # the values of columns that older rows lack
_LANE_COLUMNS: Final = "-II"  # likewise, of `lanes`
_TYPES: Final = {"T": str, "S": str, "I": int, "B": bytes}
_STATES: Final = {13 + 2 * len(state): state for state in State}  # by serial type: by their lengths

_COUNTS: Final = range(2**31)
_DIGESTS: Final = range(2**32)

_ROW_HEAD: Final = re.compile(
    rb"(?=[\x11-\x23]\x00[\x0f-\x7f](?:[\x81-\xff][\x00-\x7f]|[\x0f-\x7f])[\x15\x1b\x1f])",
    re.DOTALL,
)
"""Its length, then the serial types of an entry's id, source, `message_id` and state."""


class DamagedOutbox:
    """A damaged SQLite outbox, read as far as possible. No relay may use it; it is not changed.

    Attributes:
        pages: how many pages it has.
        seen: how many of its pages have been read.
        broken: the `message_id` of each entry that was found, but not whole.

    Raises:
        OutboxError: it does not exist, cannot be read, or a relay uses it.
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
        self._lanes: dict[int, set[int]] = {}  # by the ids of entries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def torn(self) -> int:
        """The number of damaged pages, which may have held entries that were not found."""
        return len(self._torn)

    def entries(self) -> Iterator[StoredEntry]:
        """Return every entry that can be read, without its history. Call it once."""
        self._read_lanes()
        yield from self._in_tree()
        free = self._free()
        yield from self._doubtful(self._pages, self._cut_off(), _listed)
        for pages, places in self._older:
            yield from self._doubtful(pages, places, _listed)
        if not self._sound or self._torn:
            yield from self._doubtful(self._pages, self._torn, _carved)
            yield from self._doubtful(self._pages, free, _listed)

    def _read_lanes(self) -> None:
        for number in range(1, self.pages + 1):
            page = self._pages[number]
            # All rows of a page are of one table.
            if page[:1] == LEAF and (first := fileformat.first_cell(page)) and _is_lane(first):
                for cell in filter(_is_lane, fileformat.cells(page)):
                    _, lane, entry = _values(cell, cell.here)
                    self._lanes.setdefault(entry, set()).add(lane)

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
        """Return the places of leaf pages that are in use, but to which the tree does not lead."""
        places = []
        for number in range(1, self.pages + 1):
            if self._placed[number]:
                continue
            page = self._pages[number]
            if page[:1] != LEAF:
                self._place(number, torn=page != b"" and page[0] not in OTHERS)
                continue
            cells = _listed(page)
            # A whole page without an entry is another table's.
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
            entry = None if data is None else self._stored_entry(cell, data)
            # A page has one owner. The entry with the higher id is likely to be the younger.
            lost = in_doubt and any(self._owners.get(place, -1) > cell.id for place in places)
            if entry is None or lost:
                self.broken.add(_values(cell, cell.here)[2])
            else:
                self._owners.update(dict.fromkeys(places, cell.id))
                yield entry

    def _stored_entry(self, cell: Cell, data: bytes) -> StoredEntry | None:
        """Return the entry without damaged numbers; None if its time of receipt is damaged."""
        values = _values(cell, data)
        values += _ADDED[len(values) - len(_COLUMNS) :] if len(values) < len(_COLUMNS) else []
        _, source, message_id, _, collection, received_at, _, attempts, *rest = values
        _, delivered_at, reason, detail, user, address, email, body, destination, *order = rest
        blocked, _, _, step = order
        if received_at not in MILLISECONDS:
            return None
        if delivered_at is not None and delivered_at not in MILLISECONDS:
            delivered_at = received_at
        state = _state(cell)
        lanes: tuple[int, ...] = ()
        if state is State.PENDING and blocked is not None:
            # A lane of its own if nothing is left of them: without any it would never be claimed.
            lanes = tuple(sorted(self._lanes.get(cell.id, {-cell.id})))
        return StoredEntry(
            id=cell.id,
            source=source,
            destination=destination,
            message_id=message_id,
            state=state,
            collection=collection,
            received_at=from_milliseconds(received_at),
            attempts=attempts if attempts in _COUNTS else 0,
            delivered_at=None if delivered_at is None else from_milliseconds(delivered_at),
            reason=reason,
            detail=detail,
            keys=Keys(
                *(
                    None if key is None or key not in _DIGESTS else key
                    for key in (user, address, email)
                )
            ),
            body=body,
            lanes=lanes,
            step=step if step in _COUNTS else 0,
        )


def _listed(page: bytes) -> list[Cell]:
    """Return the entries on a leaf page."""
    if page[:1] != LEAF:
        return []
    return [cell for cell in fileformat.cells(page) if _is_entry(cell)]


def _carved(page: bytes) -> list[Cell]:
    """Return whatever on the page looks like an entry and is not overwritten in part."""
    found: dict[int, Cell] = {}
    for head in _ROW_HEAD.finditer(page):
        for start in range(max(head.start() - 12, 0), head.start() - 1):
            if (cell := fileformat.cell(page, start)) and _is_entry(cell):
                found[start] = cell
    starts = sorted(found)
    limits = dict(pairwise(starts))
    return [found[start] for start in starts if found[start].end <= limits.get(start, PAGE)]


def _data(pages: Pages, cell: Cell) -> tuple[bytes | None, list[int]]:
    """Return the bytes of all its values, None if pages of them are missing; and their places."""
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
        len(cell.kinds) in _LENGTHS
        and all(map(_fits, _COLUMNS, cell.kinds))
        and cell.id < 2**63  # relay's are positive
    )


def _is_lane(cell: Cell) -> bool:
    return len(cell.kinds) == len(_LANE_COLUMNS) and all(map(_fits, _LANE_COLUMNS, cell.kinds))


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

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.outbox import Keys, State
from relay.outbox.records import Query, Record
from relay.outbox.sqlite import SqliteOutbox
from relay.outbox.sqlite.salvage import DamagedOutbox
from tests.contracts import FAULT, MINUTE, NOON, arrival

PAGE = 4096
FRAME = PAGE + 24
SIZES = [0, 1, 700, 2_500, 2_500, 3_000, 3_900, 3_990, 4_100, 4_100, 9_000, 20_000]

_LEAVES = "SELECT path, pageno, ncell FROM dbstat WHERE name = 'entries' AND pagetype = 'leaf'"
_OVERFLOW = "SELECT path, pageno FROM dbstat WHERE name = 'entries' AND pagetype = 'overflow'"


@dataclass(frozen=True)
class Original:
    """An outbox before it is damaged, at rest.

    Attributes:
        records: what is in it, by `message_id`.
        forgotten: what was in it and has been purged since, likewise.
        pages: the numbers of the pages that each of them is on.
        freed: whether pages of it are free.
    """

    directory: Path
    records: dict[str, Record]
    forgotten: dict[str, Record]
    pages: dict[str, set[int]]

    def copy(self, directory: Path) -> Path:
        """The file in a directory of its own, with its log."""
        shutil.copytree(self.directory, directory)
        return directory / "relay.db"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Some hundreds of entries, a good part of which is in the log only."""
    path = tmp_path_factory.mktemp("original") / "relay.db"
    random = Random(1)  # noqa: S311 (no secret hangs on it)
    with closing(SqliteOutbox(path)) as outbox:
        _fill(outbox, "old", 900, random)
    with closing(SqliteOutbox(path)) as outbox:
        before = _records(outbox)
        outbox.purge(NOON + timedelta(days=9999), 60)
        _fill(outbox, "new", 80, random)
        records = _records(outbox)
        copy = path.parent / "at-rest"
        copy.mkdir()
        for file in (path, _log(path)):
            shutil.copy(file, copy)
        pages = _pages(path)
    forgotten = {id_: record for id_, record in before.items() if id_ not in records}

    assert len(_frames(_log(copy / path.name))) > 100
    assert {record.state for record in records.values()} == {*State}
    return Original(copy, records, forgotten, pages)


def _fill(outbox: SqliteOutbox, name: str, count: int, random: Random) -> None:
    outbox.add(
        [
            structs.replace(
                arrival(f"{name}-{number}", fault=random.choice([None] * 9 + [FAULT])),
                body=random.randbytes(200_000 if number == 5 else random.choice(SIZES)),
                collection=random.choice([None, "Email Opened"]),
                keys=Keys(*(random.choice([None, random.getrandbits(32)]) for _ in range(3))),
                received_at=NOON + timedelta(milliseconds=random.randrange(10**9)),
            )
            for number in range(count)
        ]
    )
    *entries, held, refused = outbox.claim(count, lease=MINUTE)
    outbox.deliver(random.sample(entries, len(entries) // 2))
    outbox.release([held])
    outbox.bury(refused, Unusable(DeadReason.REJECTED, "x" * 500))


def _records(outbox: SqliteOutbox) -> dict[str, Record]:
    found: list[Record] = []
    while batch := outbox.records.find(
        Query(), 100, start=found[-1].id if found else 0, newest_first=False
    ):
        found += batch
    return {record.message_id: record for record in found}


def _pages(path: Path) -> dict[str, set[int]]:
    """On which pages each entry is, as SQLite tells."""
    with closing(apsw.Connection(str(path))) as connection:
        ids: Iterator[Any] = iter(
            connection.execute("SELECT message_id FROM entries ORDER BY id").fetchall()
        )
        overflow: dict[str, set[int]] = {}
        for place, page in connection.execute(_OVERFLOW):
            overflow.setdefault(place.partition("+")[0], set()).add(page)
        return {
            next(ids)[0]: {page} | overflow.get(f"{place}{cell:03x}", set())
            for place, page, cells in sorted(connection.execute(_LEAVES))
            for cell in range(cells)
        }


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _frames(log: Path) -> list[int]:
    """The numbers of the pages in the log."""
    content = log.read_bytes()
    return [struct.unpack_from(">I", content, at)[0] for at in range(32, len(content), FRAME)]


def _salvaged(path: Path) -> list[Record]:
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with DamagedOutbox(path) as outbox:
        records = list(outbox.records())

        assert outbox.seen == outbox.pages
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    return records


def test_what_is_not_damaged_is_all_there(original: Original, tmp_path: Path) -> None:
    """What has been forgotten is not, though its pages are still in the file."""
    records = _salvaged(original.copy(tmp_path / "copy"))

    assert {record.message_id: record for record in records} == original.records
    assert len(records) == len(original.records)


Damage = Callable[[Path, Random], set[int]]
"""Does it to a file or its log, and tells which pages it has done it to."""


def _bits(path: Path, random: Random) -> set[int]:
    content = bytearray(path.read_bytes())
    places = [random.randrange(len(content)) for _ in range(random.choice([1, 1, 10, 100]))]
    for place in places:
        content[place] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return {1 + place // PAGE for place in places}


def _blocks(size: int, fill: Callable[[Random, int], bytes]) -> Damage:
    def damage(path: Path, random: Random) -> set[int]:
        content = bytearray(path.read_bytes())
        places = [
            random.randrange(len(content) // size) * size for _ in range(random.choice([1, 3, 30]))
        ]
        for place in places:
            content[place : place + size] = fill(random, size)
        path.write_bytes(content)
        return {1 + place // PAGE for place in places}

    return damage


def _zeros(_random: Random, size: int) -> bytes:
    return bytes(size)


def _noise(random: Random, size: int) -> bytes:
    return random.randbytes(size)


def _start(fill: Callable[[Random, int], bytes], size: int) -> Damage:
    def damage(path: Path, random: Random) -> set[int]:
        with path.open("r+b") as file:
            file.write(fill(random, size))
        return {*range(1, 1 + -(-size // PAGE))}

    return damage


def _branches(path: Path, random: Random) -> set[int]:
    """All pages that lead to others, but for the root or with it."""
    content = bytearray(path.read_bytes())
    places = range(PAGE * random.choice([1, 2]), len(content), PAGE)
    touched = {1 + place // PAGE for place in places if content[place] == 5}
    for number in touched:
        content[PAGE * (number - 1) : PAGE * number] = bytes(PAGE)
    path.write_bytes(content)
    return touched


def _swapped(path: Path, random: Random) -> set[int]:
    content = path.read_bytes()
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    numbers = random.sample(range(len(pages)), random.choice([2, 10]))
    for one, another in pairwise(numbers):
        pages[one], pages[another] = pages[another], pages[one]
    path.write_bytes(b"".join(pages))
    return {1 + number for number in numbers}


def _cut(path: Path, random: Random) -> set[int]:
    length, left = path.stat().st_size, random.choice([0, random.randrange(path.stat().st_size)])
    os.truncate(path, left)
    return {*range(1 + left // PAGE, 2 + length // PAGE)}


@pytest.mark.parametrize(
    "damage",
    [
        _bits,
        _blocks(PAGE, _zeros),
        _blocks(PAGE, _noise),
        _blocks(512, _zeros),
        _start(_zeros, 16),
        _start(_zeros, 100),
        _start(_noise, PAGE),
        _start(_noise, 2 * PAGE),
        _start(_noise, 4 * PAGE),
        _branches,
        _swapped,
        _cut,
    ],
)
def test_every_entry_whose_pages_are_not_damaged_is_recovered(
    original: Original, tmp_path: Path, times: Callable[[int, int], int], damage: Damage
) -> None:
    for seed in range(times(5, 200)):
        path = original.copy(tmp_path / str(seed))
        touched = damage(path, Random(seed))  # noqa: S311 (no secret hangs on it)
        _assert_recovered(original, _salvaged(path), touched)
        shutil.rmtree(path.parent)


@pytest.mark.parametrize(
    "damage",
    [
        _bits,
        _blocks(PAGE, _zeros),
        _blocks(PAGE, _noise),
        _blocks(512, _zeros),
        _start(_zeros, 32),
        _start(_noise, 32),
        _start(_noise, PAGE),
        _cut,
    ],
)
def test_a_damaged_log_is_read_on_behind_the_damage(
    original: Original, tmp_path: Path, times: Callable[[int, int], int], damage: Damage
) -> None:
    for seed in range(times(5, 200)):
        path = original.copy(tmp_path / str(seed))
        numbers = _frames(_log(path))
        before = _log(path).read_bytes()
        damage(_log(path), Random(seed))  # noqa: S311 (no secret hangs on it)
        after = _log(path).read_bytes().ljust(len(before))
        touched = {
            number
            for number, at in zip(numbers, range(32, len(before), FRAME), strict=True)
            if before[at : at + FRAME] != after[at : at + FRAME]
        }
        _assert_recovered(original, _salvaged(path), touched)
        shutil.rmtree(path.parent)


def _assert_recovered(original: Original, salvaged: Sequence[Record], touched: set[int]) -> None:
    recovered: dict[str, Record] = {}
    for record in salvaged:
        recovered.setdefault(record.message_id, record)
    damaged = {id_ for id_, pages in original.pages.items() if pages & touched}
    for id_, record in original.records.items():
        if id_ not in damaged:
            assert recovered.pop(id_) == record
    known = {**original.records, **original.forgotten}
    lengths = {len(original.records[id_].body) for id_ in damaged}
    for id_, record in recovered.items():
        if id_ in known and id_ not in damaged:
            assert record.body == known[id_].body
        else:
            assert len(record.body) in lengths

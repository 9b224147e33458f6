import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest
from msgspec import structs

from relay.errors import OutboxError
from relay.events import DeadReason, Unusable
from relay.outbox.entries import Keys, Query, Role, State, StoredEntry
from relay.outbox.sqlite.damaged import DamagedOutbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import FAULT, MINUTE, NOON, arrival
from tests.harness.stores import SqliteStore
from tests.outbox.released import load

pytestmark = pytest.mark.slow

PAGE = 4096
FRAME = PAGE + 24
SIZES = [0, 1, 700, 2_500, 2_500, 3_000, 3_900, 3_990, 4_100, 4_100, 9_000, 20_000]

_LEAVES = "SELECT path, pageno, ncell FROM dbstat WHERE name = 'entries' AND pagetype = 'leaf'"
_OVERFLOW = "SELECT path, pageno FROM dbstat WHERE name = 'entries' AND pagetype = 'overflow'"


@dataclass(frozen=True)
class Original:
    """An outbox before it is damaged, at rest.

    Attributes:
        entries: what is in it, by `message_id`.
        purged: what was in it and has been purged since, likewise.
        pages: the numbers of the pages that each of them is on.
    """

    directory: Path
    entries: dict[str, StoredEntry]
    purged: dict[str, StoredEntry]
    pages: dict[str, set[int]]

    def copy(self, directory: Path) -> Path:
        """Copy the file and its log into the directory; return the file's path."""
        shutil.copytree(self.directory, directory)
        return directory / "relay.db"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """Make an outbox of some hundreds of entries, many of which are in the log only."""
    path = tmp_path_factory.mktemp("original") / "relay.db"
    random = _random(1)
    with closing(SqliteOutbox(path)) as outbox:
        _fill(outbox, 900, random)
    with closing(SqliteOutbox(path)) as outbox:
        before = _entries(outbox)
        outbox.purge(NOON + timedelta(days=9999), 60)
        _fill(outbox, 80, random)
        entries = _entries(outbox)
        copy = path.parent / "at-rest"
        copy.mkdir()
        for file in (path, Path(f"{path}-wal")):
            shutil.copy(file, copy)
        pages = _pages(path)
    purged = {id_: entry for id_, entry in before.items() if id_ not in entries}

    assert (copy / "relay.db-wal").stat().st_size > 100 * FRAME
    assert {entry.state for entry in entries.values()} == {*State}
    return Original(copy, entries, purged, pages)


def _random(seed: int) -> Random:
    return Random(seed)  # noqa: S311 (the same in each run)


def _fill(outbox: SqliteOutbox, count: int, random: Random) -> None:
    outbox.add(
        [
            structs.replace(
                arrival(
                    f"{random.getrandbits(80):020x}", fault=random.choice([None] * 9 + [FAULT])
                ),
                body=random.randbytes(200_000 if number == 5 else random.choice(SIZES)),
                collection=random.choice([None, "Email Opened"]),
                keys=Keys(*(random.choice([None, random.getrandbits(32)]) for _ in range(3))),
                received_at=NOON + timedelta(milliseconds=random.randrange(10**9)),
            )
            for number in range(count)
        ]
    )
    *entries, held, refused = outbox.claim("segment", count, lease=MINUTE)
    outbox.ack(random.sample(entries, len(entries) // 2))
    outbox.release([held])
    outbox.dead_letter(refused, Unusable(DeadReason.REJECTED, "x" * 500))


def _entries(outbox: SqliteOutbox) -> dict[str, StoredEntry]:
    found: list[StoredEntry] = []
    while batch := outbox.entries.find(
        Query(), 100, start=found[-1].id if found else 0, newest_first=False
    ):
        found += batch
    return {entry.message_id: entry for entry in found}


def _pages(path: Path) -> dict[str, set[int]]:
    """Return the pages that each entry is on, as SQLite says."""
    with closing(apsw.Connection(str(path))) as connection:
        rows: list[Any] = connection.execute(
            "SELECT message_id FROM entries ORDER BY id"
        ).fetchall()
        ids = iter(rows)
        leaves: list[Any] = connection.execute(_LEAVES).fetchall()
        overflow: dict[str, set[int]] = {}
        for place, page in connection.execute(_OVERFLOW):
            overflow.setdefault(place.partition("+")[0], set()).add(page)
        return {
            next(ids)[0]: {page} | overflow.get(f"{place}{cell:03x}", set())
            for place, page, cells in sorted(leaves)
            for cell in range(cells)
        }


def _salvaged(path: Path) -> list[StoredEntry]:
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    with DamagedOutbox(path) as outbox:
        entries = list(outbox.entries())

        assert outbox.seen == outbox.pages
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before
    return entries


def test_an_undamaged_outbox_is_read_completely(original: Original, tmp_path: Path) -> None:
    """Purged entries are not read, though their pages are still in the file."""
    entries = _salvaged(original.copy(tmp_path / "copy"))

    assert {entry.message_id: entry for entry in entries} == original.entries
    assert len(entries) == len(original.entries)


Damage = Callable[[Path, Random], object]
Fill = Callable[[Random, int], bytes]


def _bits(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 10, 100])):
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _zeros(_random: Random, size: int) -> bytes:
    return bytes(size)


def _noise(random: Random, size: int) -> bytes:
    return random.randbytes(size)


def _blocks(fill: Fill, size: int) -> Damage:
    def damage(path: Path, random: Random) -> None:
        content = bytearray(path.read_bytes())
        for _ in range(random.choice([1, 3, 30])):
            place = random.randrange(len(content) // size) * size
            content[place : place + size] = fill(random, size)
        path.write_bytes(content)

    return damage


def _start(fill: Fill, size: int) -> Damage:
    def damage(path: Path, random: Random) -> None:
        path.write_bytes(fill(random, size) + path.read_bytes()[size:])

    return damage


def _branches(path: Path, random: Random) -> None:
    """Damage the pages that lead to others, with the root or without."""
    content = bytearray(path.read_bytes())
    for place in range(PAGE * random.choice([1, 2]), len(content), PAGE):
        if content[place] == 5:
            content[place : place + PAGE] = bytes(PAGE)
    path.write_bytes(content)


def _swap(path: Path, random: Random) -> None:
    pages = _cut_up(path.read_bytes(), 0, PAGE)
    for _ in range(random.choice([1, 10])):
        one, another = random.sample(range(len(pages)), 2)
        pages[one], pages[another] = pages[another], pages[one]
    path.write_bytes(b"".join(pages))


def _cut(path: Path, random: Random) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def _remove(path: Path, _random: Random) -> None:
    path.unlink()


def _cut_up(content: bytes, start: int, size: int) -> list[bytes]:
    return [content[at : at + size] for at in range(start, len(content), size)]


DAMAGE = {
    "bits": _bits,
    "pages of zeros": _blocks(_zeros, PAGE),
    "pages of noise": _blocks(_noise, PAGE),
    "sectors of zeros": _blocks(_zeros, 512),
    "no magic number": _start(_zeros, 16),
    "no head": _start(_zeros, 100),
    "another head": _start(_noise, 32),
    "another first page": _start(_noise, PAGE),
    "another root": _start(_noise, 2 * PAGE),
    "cut off": _cut,
    "gone": _remove,
}


@pytest.mark.parametrize("how", [*DAMAGE, "no branches", "swapped"])
def test_every_entry_whose_pages_are_not_damaged_is_recovered(
    original: Original, tmp_path: Path, times: Callable[[int, int], int], how: str
) -> None:
    damage = {**DAMAGE, "no branches": _branches, "swapped": _swap}[how]
    for seed in range(times(3, 200)):
        path = original.copy(tmp_path / str(seed))
        before = _cut_up(path.read_bytes(), 0, PAGE)
        damage(path, _random(seed))
        after = _cut_up(path.read_bytes(), 0, PAGE) if path.exists() else []
        after += [b""] * len(before)
        touched = {number for number, page in enumerate(before, 1) if after[number - 1] != page}
        _assert_recovered(original, _salvaged(path), touched)
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("how", DAMAGE)
def test_the_log_is_read_on_behind_damage(
    original: Original, tmp_path: Path, times: Callable[[int, int], int], how: str
) -> None:
    for seed in range(times(3, 200)):
        path = original.copy(tmp_path / str(seed))
        log = Path(f"{path}-wal")
        before = _cut_up(log.read_bytes(), 32, FRAME)
        DAMAGE[how](log, _random(seed))
        after = _cut_up(log.read_bytes(), 32, FRAME) if log.exists() else []
        after += [b""] * len(before)
        touched = {
            int.from_bytes(frame[:4], "big")
            for number, frame in enumerate(before)
            if after[number] != frame
        }
        _assert_recovered(original, _salvaged(path), touched)
        shutil.rmtree(path.parent)


def _assert_recovered(
    original: Original, salvaged: Sequence[StoredEntry], touched: set[int]
) -> None:
    recovered: dict[str, StoredEntry] = {}
    for entry in salvaged:
        recovered.setdefault(entry.message_id, entry)
    damaged = {id_: original.entries[id_] for id_, on in original.pages.items() if on & touched}
    unharmed = {id_: entry for id_, entry in original.entries.items() if id_ not in damaged}

    assert {id_: recovered.pop(id_, None) for id_ in unharmed} == unharmed
    # The rest is damaged, or was purged, but none of it is invented.
    lengths = {len(entry.body) for entry in damaged.values()}
    for id_, entry in recovered.items():
        if id_ in original.purged:
            # Its bytes may have been overwritten with zeros since.
            whole = original.purged[id_].body
            assert all(left in (byte, 0) for left, byte in zip(entry.body, whole, strict=True))
        else:
            assert len(entry.body) in lengths


def test_the_pending_one_of_old_copies_comes_first(tmp_path: Path) -> None:
    """Their age is not known. An event sent twice does no harm; one not sent would be lost."""
    path = tmp_path / "relay.db"
    copies = []
    for settled in (False, True):
        with closing(SqliteOutbox(path)) as outbox:
            outbox.add([arrival("a")])
            if settled:
                outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
        copies.append(path.read_bytes()[PAGE : 2 * PAGE])
    states = []
    for number, pages in enumerate((copies, copies[::-1])):
        damaged = tmp_path / str(number)
        damaged.write_bytes(bytes(2 * PAGE) + b"".join(pages))
        states.append([entry.state for entry in _salvaged(damaged)])

    assert states == [[State.PENDING, State.DELIVERED]] * 2


def test_a_flipped_bit_costs_one_entry_at_most_and_is_reported(
    tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival(name * 9, body=name.encode() * 500) for name in "abc"])
        originals = [*_entries(outbox).values()]
    content = path.read_bytes()
    bits = range(8 * PAGE, 16 * PAGE)  # of the one page that the entries are on
    for bit in _random(1).sample(bits, times(500, len(bits))):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with DamagedOutbox(path) as outbox_:
            entries = list(outbox_.entries())
            reported = outbox_.torn + len(outbox_.broken)

        assert sum(entry in entries for entry in originals) >= 2
        assert reported or len({entry.message_id for entry in entries}) == 3


def test_entries_are_recovered_from_pages_whose_heads_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival(f"{number}" * 9, body=bytes(300)) for number in range(100)])
        originals = _entries(outbox)
        pages = {page for pages in _pages(path).values() for page in pages}
    content = bytearray(path.read_bytes())
    for page in pages:
        content[PAGE * (page - 1) : PAGE * (page - 1) + 40] = bytes(40)
    path.write_bytes(content)

    assert {entry.message_id: entry for entry in _salvaged(path)} == originals


def test_an_entry_with_a_page_missing_is_named(original: Original, tmp_path: Path) -> None:
    (id_, pages) = max(original.pages.items(), key=lambda item: len(item[1]))
    path = original.copy(tmp_path / "copy")
    with closing(SqliteOutbox(path)):
        pass  # moves the log into the file
    content = bytearray(path.read_bytes())
    for page in sorted(pages)[5:10]:
        content[PAGE * (page - 1) : PAGE * page] = bytes(PAGE)
    path.write_bytes(content)
    with DamagedOutbox(path) as outbox:
        recovered = {entry.message_id for entry in outbox.entries()}

        assert outbox.broken == {id_}
    assert recovered == original.entries.keys() - {id_}


@pytest.mark.parametrize("carved", [False, True])
def test_the_destination_is_recovered_and_is_segment_in_rows_of_version_1(
    tmp_path: Path, *, carved: bool
) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    load(store, 1)
    old = {entry.message_id for entry in _salvaged(store.path)}
    with closing(SqliteOutbox(store.path)) as outbox:
        outbox.add(
            [
                structs.replace(arrival(name, body=bytes(size)), destination="vero")
                for name, size in (("short", 10), ("long", 30_000))
            ]
        )
        originals = _entries(outbox)
        pages = [min(on) for on in _pages(store.path).values()]
    if carved:  # the heads of their pages are gone
        content = bytearray(store.path.read_bytes())
        for page in pages:
            content[PAGE * (page - 1) : PAGE * (page - 1) + 40] = bytes(40)
        store.path.write_bytes(content)
    found = _salvaged(store.path)

    assert {entry.message_id: entry for entry in found} == originals
    assert {id_ for id_, entry in originals.items() if entry.destination == "segment"} == old
    assert {id_ for id_, entry in originals.items() if entry.destination == "vero"} == {
        "short",
        "long",
    }


@pytest.mark.parametrize("role", Role)
def test_an_outbox_in_use_is_refused(tmp_path: Path, role: Role) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        outbox.lock_role(role)
        with pytest.raises(OutboxError, match="stop it first"):
            DamagedOutbox(path)
    DamagedOutbox(path).__exit__()


def test_a_missing_outbox_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match="does not exist"):
        DamagedOutbox(tmp_path / "relay.db")

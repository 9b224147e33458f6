"""An outbox of version 1 becomes one of today's version: whole, or not at all."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from relay.errors import OutboxError
from relay.outbox.entries import Role, State, total
from relay.outbox.sqlite.migrations import MIGRATIONS
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import MINUTE, arrival, ids
from tests.harness.entries import erase, everything
from tests.harness.stores import SqliteStore
from tests.outbox.released import DELIVERED, PENDING, load

RENAMED = {"provider": "source", "deaths": "crashes", "said": "detail"}
CHANGES = {"died": "dead_lettered", "revived": "requeued"}
TABLES = ("entries", "history", "operations", "status")

UNORDERED = {"blocked": None, "retry_at": 0, "failing_since": None, "step": 0}
"""The columns of an entry that is sent in no lane."""

Rows = list[dict[str, Any]]


@pytest.fixture
def old(tmp_path: Path) -> SqliteStore:
    """Return an outbox of version 1, left by a relay that was killed."""
    store = SqliteStore(tmp_path / "relay.db")
    load(store, 1)
    return store


def rows(store: SqliteStore, table: str) -> Rows:
    """Return the rows of the table, in its order."""
    with closing(apsw.Connection(str(store.path))) as connection:
        names = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
        found: list[Any] = connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 (relay's own)
    return [dict(zip(names, row, strict=True)) for row in found]


def migrated(store: SqliteStore) -> SqliteStore:
    """Migrate the outbox; return it."""
    SqliteOutbox(store.path).close()
    return store


def today(row: dict[str, Any], **added: object) -> dict[str, Any]:
    """Return a row of version 1 as it must be today."""
    kept = {RENAMED.get(name, name): value for name, value in row.items() if name != "pace"}
    return kept | added


def test_every_row_is_kept(old: SqliteStore) -> None:
    before = {table: rows(old, table) for table in (*TABLES, "tallies")}
    migrated(old)
    after = {table: rows(old, table) for table in (*TABLES, "counters", "throttles", "lanes")}

    assert after["entries"] == [
        today(row, destination="segment", **UNORDERED) for row in before["entries"]
    ]
    for table in ("history", "operations", "status"):
        assert after[table] == [today(row) for row in before[table]]
    assert sorted(map(repr, after["counters"])) == sorted(
        repr(
            {
                "slot": row["slot"],
                "source": row["provider"],
                "destination": "segment",
                "collection": row["collection"],
                "change": CHANGES.get(row["change"], row["change"]),
                "reason": row["reason"],
                "entries": row["entries"],
                "latest": row["latest"],
            }
        )
        for row in before["tallies"]
    )
    assert after["throttles"] == after["lanes"] == []
    assert {row["state"] for row in before["entries"]} == {*State}
    assert CHANGES.keys() < {row["change"] for row in before["tallies"]}
    assert before["status"][0]["claims"] != "[]"


def test_its_pending_entries_can_be_delivered(old: SqliteStore) -> None:
    with closing(SqliteOutbox(old.path)) as outbox:
        before = total(outbox.counts())
        claimed = outbox.claim("segment", 99, lease=MINUTE)
        outbox.ack(claimed)
        after = total(outbox.counts())

    assert sorted(entry.body for entry in claimed) == sorted(PENDING)
    assert {entry.destination for entry in claimed} == {"segment"}
    assert (after.pending, after.dead) == (0, before.dead)
    assert after.delivered == before.delivered + len(PENDING)


def test_a_crash_counts_against_the_claims_of_the_killed_process(old: SqliteStore) -> None:
    with closing(apsw.Connection(str(old.path))) as connection:
        claims = "[" + ",".join(f"[{row['id']},9,0]" for row in rows(old, "entries")) + "]"
        connection.execute("UPDATE status SET claims = ?", (claims,))
    with closing(SqliteOutbox(old.path)) as outbox:
        claimed = outbox.claim("segment", 99, lease=MINUTE)

    assert [(entry.crashes, entry.attempts) for entry in claimed] == [(1, 10)] * len(PENDING)


class _CopyingDisk(apsw.VFS):
    """A disk that copies the outbox's files before each write, as a kill would leave them."""

    def __init__(self, path: Path, aside: Path) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__("copying", self.base)
        self._path = path
        self._aside = aside
        self.copies: list[Path] = []

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 (SQLite's name)
        return _CopyingFile(self, name, flags)

    def copy(self) -> None:
        directory = self._aside / str(len(self.copies))
        directory.mkdir(parents=True)
        for file in (self._path, Path(f"{self._path}-wal")):
            if file.exists():
                shutil.copy(file, directory)
        self.copies.append(directory / self._path.name)


class _CopyingFile(apsw.VFSFile):
    def __init__(
        self, disk: _CopyingDisk, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> None:
        super().__init__(disk.base, name, flags)
        self._disk = disk

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 (SQLite's name)
        self._disk.copy()
        super().xWrite(data, offset)


@pytest.fixture
def killed(old: SqliteStore, tmp_path: Path) -> Iterator[list[Path]]:
    """Return what a kill at each write of the migration would have left, oldest first."""
    disk = _CopyingDisk(old.path, tmp_path / "aside")
    apsw.set_default_vfs("copying")
    try:
        migrated(old)
    finally:
        apsw.set_default_vfs(disk.base)
        disk.unregister()
    yield disk.copies
    shutil.rmtree(tmp_path / "aside")


def test_a_kill_in_the_middle_leaves_the_one_version_or_the_other(killed: list[Path]) -> None:
    versions = []
    for path in killed:
        with closing(apsw.Connection(str(path))) as connection:
            versions.append(connection.pragma("user_version"))
        with closing(SqliteOutbox(path)) as outbox:
            found = everything(outbox.entries)
            outbox.ack(outbox.claim("segment", 99, lease=MINUTE))
            left = total(outbox.counts())
            new = outbox.add([arrival(entry.message_id) for entry in found])

        assert sum(entry.state is State.PENDING for entry in found) == len(PENDING)
        assert {entry.body for entry in found} > {*DELIVERED, *PENDING}
        assert left.pending == 0
        assert not any(new)

    assert {*versions} == {1, len(MIGRATIONS)}
    assert versions == sorted(versions)
    assert versions.count(1) > 10


def test_no_file_holds_what_the_migration_dropped_or_erasing_deleted(old: SqliteStore) -> None:
    """The migration leaves no copy behind of what is erased later."""
    with closing(apsw.Connection(str(old.path))) as connection:
        connection.execute("""UPDATE status SET pace = '{"answer": "a canary of the pace"}'""")
    migrated(old)
    raw = old.path.read_bytes()
    with closing(SqliteOutbox(old.path)) as outbox:
        erase(outbox.entries, *everything(outbox.entries))

    assert b"a canary of the pace" not in raw
    assert b"canary-dan@example.com" in raw
    assert b"canary-" not in old.path.read_bytes()


@pytest.mark.parametrize("role", Role)
def test_the_tables_are_not_changed_under_an_older_relay(old: SqliteStore, role: Role) -> None:
    before = rows(old, "entries")
    with Path(f"{old.path}-{role}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutboxError, match="older relay is using"):
            SqliteOutbox(old.path)

        assert rows(old, "entries") == before
    with closing(SqliteOutbox(old.path)) as outbox:
        assert len(ids(outbox.claim("segment", 99, lease=MINUTE))) == len(PENDING)


def test_a_view_of_the_old_columns_still_works(old: SqliteStore) -> None:
    old.run_sql("CREATE VIEW theirs AS SELECT provider, deaths FROM entries WHERE id > 1")
    before = old.run_sql("SELECT * FROM theirs")
    migrated(old)

    assert old.run_sql("SELECT * FROM theirs") == before != []


def test_a_replay_that_was_interrupted_is_continued_under_todays_words(old: SqliteStore) -> None:
    with closing(apsw.Connection(str(old.path))) as connection:
        connection.execute(
            "INSERT INTO operations (kind, what, started_at) VALUES"
            " ('replay', 'state=delivered provider=vero message_id=provider=vero', 1)"
        )
    with closing(SqliteOutbox(old.path)) as outbox:
        operation = outbox.entries.begin(
            "replay", "state=delivered source=vero message_id=provider=vero"
        )

    assert operation.started_at.timestamp() == 0.001

import secrets
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import apsw
import pytest

from relay.errors import OutboxError
from relay.outbox import open_outbox
from relay.outbox.entries import Role
from relay.outbox.sqlite.migrations import MIGRATIONS
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.by_destination import ByDestinationContract
from tests.contracts.changes import ChangesContract, RunSql
from tests.contracts.counters import CountersContract
from tests.contracts.entries import EntryStoreContract
from tests.contracts.lanes import LanesContract, RunNamedSql
from tests.contracts.outbox import (
    FAULT,
    MINUTE,
    NOON,
    OpenStore,
    OutboxContract,
    arrival,
    ids,
    states,
)
from tests.contracts.suspects import SuspectsContract
from tests.harness.fakes import Clock
from tests.harness.stores import run_sql


class TestSqliteOutbox(
    OutboxContract,
    EntryStoreContract,
    ChangesContract,
    SuspectsContract,
    CountersContract,
    ByDestinationContract,
    LanesContract,
):
    claimers = 1

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        """Open one file for each name."""
        return lambda name, clock: SqliteOutbox(
            tmp_path / f"{name}.db", clock=clock.now, elapsed=clock.monotonic
        )

    @pytest.fixture
    def run_sql(self, path: Path) -> RunSql:
        return partial(run_sql, path)

    @pytest.fixture
    def run_named_sql(self, tmp_path: Path) -> RunNamedSql:
        return lambda name, statement: run_sql(tmp_path / f"{name}.db", statement)


class _Disk(apsw.VFS):
    """The disk as SQLite sees it; each sync can be watched, and space can run out.

    Attributes:
        synced: called with each file that has been synced.
        full: whether nothing more can be written.
    """

    def __init__(self) -> None:
        self.base = apsw.vfs_names()[0]
        super().__init__("disk", self.base)
        self.synced: Callable[[Path], object] = lambda _path: None
        self.full = False

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 (SQLite's name)
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: _Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__(disk.base, name, flags)
        self._disk = disk
        self._path = Path(name.filename() if isinstance(name, apsw.URIFilename) else str(name))

    def xSync(self, flags: int) -> None:  # noqa: N802 (SQLite's name)
        super().xSync(flags)
        self._disk.synced(self._path)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 (SQLite's name)
        if self._disk.full:
            raise apsw.FullError("no space left")
        super().xWrite(data, offset)


@pytest.fixture
def disk() -> Iterator[_Disk]:
    """Return the disk that every outbox of the test is on."""
    disk = _Disk()
    apsw.set_default_vfs("disk")
    yield disk
    apsw.set_default_vfs(disk.base)
    disk.unregister()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the outbox."""
    return tmp_path / "relay.db"


def test_added_entries_outlive_a_power_cut(disk: _Disk, path: Path) -> None:
    """A power cut leaves what was synced, so each file is copied when it is."""
    aside = path.with_name("aside")
    aside.mkdir()

    def synced(file: Path) -> None:
        if not file.name.endswith("-journal"):  # SQLite deletes it before it goes on
            shutil.copy(file, aside)

    disk.synced = synced
    outbox = SqliteOutbox(path)
    groups = [[arrival("a")], [arrival("b"), arrival("c", fault=FAULT)], [arrival("b")]]
    for number, group in enumerate(groups):
        outbox.add(group)
        left = SqliteOutbox(shutil.copytree(aside, path.parent / str(number)) / path.name)

        assert left.add(group) == [False] * len(group)
        left.close()
    outbox.close()


def test_a_full_disk_raises_and_nothing_counts_as_stored(disk: _Disk, path: Path) -> None:
    outbox = SqliteOutbox(path)
    outbox.add([arrival("a")])
    disk.full = True
    with pytest.raises(OutboxError):
        outbox.add([arrival("b")])
    with pytest.raises(OutboxError):
        outbox.check()
    with pytest.raises(OutboxError):
        outbox.claim("segment", 1, lease=MINUTE)
    disk.full = False
    outbox.check()

    assert outbox.add([arrival("a"), arrival("b")]) == [False, True]
    assert ids(outbox.claim("segment", 9, lease=MINUTE)) == {"a", "b"}
    outbox.close()


def test_an_entry_released_on_a_full_disk_is_due_at_once(disk: _Disk, path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])
        claimed = outbox.claim("segment", 1, lease=MINUTE)
        disk.full = True
        with pytest.raises(OutboxError):
            outbox.release(claimed)
        disk.full = False
        (again,) = outbox.claim("segment", 1, lease=MINUTE)

    assert again.attempts == 2


def test_a_file_can_be_opened_on_a_full_disk(disk: _Disk, path: Path) -> None:
    """A forwarder that starts then waits for room, and does not end."""
    receiving = SqliteOutbox(path)
    receiving.add([arrival("a")])
    disk.full = True
    forwarding = SqliteOutbox(path)
    disk.full = False

    assert ids(forwarding.claim("segment", 1, lease=MINUTE)) == {"a"}
    forwarding.close()
    receiving.close()


def test_the_log_is_emptied_into_the_file_by_a_thread_of_its_own(disk: _Disk, path: Path) -> None:
    """A checkpoint within `add` would make it slow; none at all would fill the disk."""
    outbox = SqliteOutbox(path)
    threads = set()
    emptied = threading.Event()

    def synced(file: Path) -> None:
        if file == path:
            threads.add(threading.current_thread())
            emptied.set()

    disk.synced = synced
    sizes = []
    with closing(apsw.Connection(str(path))) as another:
        for number in range(6):
            emptied.clear()
            outbox.add([arrival(f"{number}.{part}", body=bytes(50_000)) for part in range(100)])
            assert emptied.wait(60)
            _wait_until_unlocked(another)
            sizes.append(path.with_name("relay.db-wal").stat().st_size)

    assert threading.current_thread() not in threads
    assert max(sizes) < 2 * 5_000_000
    outbox.close()


def _wait_until_unlocked(connection: apsw.Connection) -> None:
    """Wait until the checkpoint, which has just synced, has left its locks."""
    connection.pragma("user_version")  # a connection checkpoints nothing before its first read
    pages = None
    while pages is None:
        with suppress(apsw.BusyError):
            pages = connection.wal_checkpoint()

    assert pages[0] == pages[1] > 0


_ADDS_FOR_EVER = """
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox

outbox = SqliteOutbox(Path(sys.argv[1]))
for number in count():
    outbox.add([Arrival("vero", "segment", str(number), datetime.now(UTC), bytes(20_000))])
    print(number, flush=True)
"""


@pytest.mark.parametrize("enough", [1, 20, 300])
def test_added_entries_outlive_a_kill(path: Path, enough: int) -> None:
    command = [sys.executable, "-c", _ADDS_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (our own)
        assert process.stdout
        added = [process.stdout.readline() for _ in range(enough)]
        process.kill()
        added += process.stdout
    outbox = SqliteOutbox(path)

    assert outbox.add([arrival(line.strip()) for line in added]) == [False] * len(added)
    assert len(added) <= states(outbox)["pending"] <= len(added) + 1
    outbox.close()


def test_a_corrected_clock_delays_no_entry(path: Path) -> None:
    clock = Clock()
    with closing(SqliteOutbox(path, clock=clock.now, elapsed=clock.monotonic)) as outbox:
        outbox.add([arrival("from next year", received_at=NOON + timedelta(days=365))])

        assert ids(outbox.claim("segment", 9, lease=MINUTE)) == {"from next year"}
        assert outbox.claim("segment", 9, lease=MINUTE) == []
        clock.sleep(60)
        assert ids(outbox.claim("segment", 9, lease=MINUTE)) == {"from next year"}


_CLAIMS_AND_WAITS = """
import sys, time
from datetime import timedelta
from pathlib import Path

from relay.outbox.sqlite.store import SqliteOutbox

outbox = SqliteOutbox(Path(sys.argv[1]))
for limit in (1, 1, 2):
    *_, last = outbox.claim("segment", limit, lease=timedelta(hours=1))
    outbox.release([last])
print("claimed", flush=True)
time.sleep(600)
"""


def test_the_claims_of_a_killed_process_are_due_at_once(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a", received_at=NOON - MINUTE), arrival("b")])
        command = [sys.executable, "-c", _CLAIMS_AND_WAITS, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 (our own)
            assert process.stdout
            process.stdout.readline()
            with pytest.raises(OutboxError, match="another process forwards"):
                outbox.claim("segment", 9, lease=MINUTE)
            process.kill()
        claimed = outbox.claim("segment", 9, lease=MINUTE)

    assert {entry.message_id: entry.attempts for entry in claimed} == {"a": 4, "b": 2}
    assert sorted(entry.crashes for entry in claimed) == [0, 1]  # one had been released


@pytest.mark.parametrize("role", Role)
def test_a_role_is_of_one_process_only(path: Path, role: Role) -> None:
    with closing(SqliteOutbox(path)) as second:
        with closing(SqliteOutbox(path)) as first:
            first.lock_role(role)
            first.lock_role(role)
            with pytest.raises(OutboxError, match=f"another process .* {path}: one can; Postgr"):
                second.lock_role(role)
            for other in set(Role) - {role}:
                second.lock_role(other)
        second.lock_role(role)
        with closing(SqliteOutbox(path)) as third, pytest.raises(OutboxError):
            third.lock_role(role)


def test_a_process_waits_for_the_end_of_another(path: Path) -> None:
    with closing(SqliteOutbox(path)) as second:
        first = SqliteOutbox(path)
        first.lock_role(Role.FORWARDER)
        started, ended = time.monotonic(), threading.Timer(0.5, first.close)
        ended.start()
        with pytest.raises(OutboxError):
            second.lock_role(Role.FORWARDER, patience=timedelta(seconds=0.2))
        second.lock_role(Role.FORWARDER, patience=timedelta(seconds=30))
        ended.join()

        assert time.monotonic() - started < 30


def test_the_room_on_its_disk_is_known(path: Path) -> None:
    place = path.parent / "elsewhere"
    place.mkdir()
    with closing(SqliteOutbox(place / path.name)) as outbox:
        free = outbox.free_bytes()
        shutil.rmtree(place)
        with pytest.raises(OutboxError, match="elsewhere"):
            outbox.free_bytes()

    assert free is not None
    assert abs(free - shutil.disk_usage(path.parent).free) < 2**30  # others write meanwhile


def _refusal(path: Path) -> str:
    with pytest.raises(OutboxError) as refusal:
        SqliteOutbox(path)
    return str(refusal.value)


def test_the_file_of_another_program_is_refused(path: Path) -> None:
    with apsw.Connection(str(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()

    before = path.read_bytes()

    assert "some other program" in _refusal(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    assert str(tmp_path) in _refusal(tmp_path / "missing" / "relay.db")


def test_the_file_of_a_newer_relay_is_refused(path: Path) -> None:
    SqliteOutbox(path).close()
    connection = apsw.Connection(str(path))
    connection.pragma("user_version", 999)
    connection.close()

    assert "newer relay" in _refusal(path)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ("DROP INDEX entries_dead", "index entries_dead is missing"),
        ("DROP TRIGGER entry_dead_lettered", "trigger entry_dead_lettered is missing"),
        ("DROP TABLE status", "table status is missing"),
        ("ALTER TABLE entries DROP COLUMN crashes", "table entries differs"),
        ("ALTER TABLE history ADD COLUMN by TEXT", "table history differs"),
        ("ALTER TABLE status RENAME beat TO 'it''s  a -- beat'", "table status differs"),
        (
            "DROP INDEX history_entry; CREATE INDEX history_entry ON history (entry, at)",
            "index history_entry differs",
        ),
        (
            "DROP TABLE operations; CREATE VIEW operations AS SELECT 1 AS id",
            "table operations is missing",
        ),
        (
            "CREATE TRIGGER theirs BEFORE INSERT ON entries BEGIN SELECT RAISE(IGNORE); END",
            "trigger theirs is not relay's",
        ),
        (
            "CREATE UNIQUE INDEX theirs ON entries (user_key)",
            "index theirs is not relay's",
        ),
    ],
)
def test_a_file_with_other_tables_than_its_version_has_is_refused(
    path: Path, change: str, difference: str
) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])
    if "crashes" in change:
        run_sql(path, "DROP INDEX entries_suspect")
    run_sql(path, change)
    before = path.read_bytes()
    refusal = _refusal(path)

    assert difference in refusal
    assert f"{path} does not have the tables of version {len(MIGRATIONS)}" in refusal
    assert f"`relay salvage {path} NEW`" in refusal
    assert path.read_bytes() == before


def test_added_indexes_views_and_tables_are_left_alone(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])
    for statement in (
        "ANALYZE",
        "CREATE INDEX theirs ON entries (received_at)",
        "CREATE TABLE notes (text)",
        "CREATE UNIQUE INDEX notes_once ON notes (text)",
        "CREATE VIEW waiting AS SELECT * FROM entries WHERE state = 'pending'",
        "VACUUM",
    ):
        run_sql(path, statement)
    with closing(SqliteOutbox(path)) as outbox:
        assert states(outbox)["pending"] == 1


def test_a_table_renamed_and_renamed_back_is_the_same(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])
    for table in ("entries", "history", "operations"):
        run_sql(path, f"ALTER TABLE {table} RENAME TO away")
        run_sql(path, f"ALTER TABLE away RENAME TO {table}")
    with closing(SqliteOutbox(path)) as outbox:
        assert states(outbox)["pending"] == 1


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)

    assert "not a database" in _refusal(path)
    assert path.read_bytes() == b"not a database" * 100


@pytest.mark.parametrize("place", ["", "missing/relay.db"])
def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path, place: str) -> None:
    assert "cannot be opened" in _refusal(tmp_path / place)


def _opened(url: str) -> Counter[str]:
    outbox = open_outbox(url, allow_ephemeral=True, create=True)
    outbox.add([arrival("a")])
    counts = states(outbox)
    outbox.close()
    return counts


@pytest.mark.parametrize("place", ["sqlite:///some events.db", "sqlite:///{}/some events.db"])
def test_a_url_names_a_relative_or_an_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)

    assert _opened(place.format(tmp_path)) == Counter(pending=1)
    assert (tmp_path / "some events.db").exists()


def test_a_file_in_memory_is_refused_unless_that_is_allowed() -> None:
    """On any Linux /dev/shm is a tmpfs."""
    path = Path(f"/dev/shm/relay-{secrets.token_hex(8)}.db")  # noqa: S108 (that is the point)
    with pytest.raises(OutboxError, match="RELAY_ALLOW_EPHEMERAL"):
        open_outbox(f"sqlite:///{path}")
    refused = not path.exists()
    open_outbox(f"sqlite:///{path}", allow_ephemeral=True, create=True).close()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()

    assert refused


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.db",
        "/var/lib/relay.db",
        "sqlite:",
        "sqlite://relay.db",
        "sqlite:///",
        "sqlite:///:memory:",
        "mysql://relay:hunter2@example.com/relay",
    ],
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(OutboxError) as refusal:
        open_outbox(url)

    assert "sqlite" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)


def test_released_entries_take_no_memory(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival(str(number)) for number in range(30_000)])

        def release(times: int) -> int:
            for _ in range(times):
                outbox.release(
                    outbox.claim("segment", 100, lease=MINUTE), "503 Service Unavailable"
                )
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        before = release(60)
        after = release(240)
        tracemalloc.stop()

    assert after - before < 500_000

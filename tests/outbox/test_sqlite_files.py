import os
import shutil
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.errors import OutboxBrokenError, OutboxError, OutboxMissingError, OutboxUnusableError
from relay.outbox import open_outbox
from relay.outbox.entries import Role, total
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.files import OutboxFiles
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import MINUTE, arrival, states
from tests.harness.postgres import PostgresServer

Loss = Callable[[Path], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the outbox: a symbolic link to a file in another directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link.db").symlink_to("data/relay.db")
    return tmp_path / "link.db"


def file_of(path: Path) -> Path:
    return path.parent / "data" / "relay.db"


def delete_all(path: Path) -> None:
    for file in file_of(path).parent.iterdir():
        file.unlink()


def delete(name: str) -> Loss:
    return lambda path: file_of(path).with_name(name).unlink()


def move(path: Path) -> None:
    file_of(path).rename(path.with_name("moved.db"))


def replace_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy.db")
    shutil.copy(file_of(path), copy)
    copy.replace(file_of(path))


def delete_directory(path: Path) -> None:
    shutil.rmtree(file_of(path).parent)


def replace_directory(path: Path) -> None:
    directory = file_of(path).parent
    directory.rename(path.with_name("moved"))
    shutil.copytree(path.with_name("moved"), directory)


def retarget(path: Path) -> None:
    shutil.copy(file_of(path), path.with_name("other.db"))
    path.unlink()
    path.symlink_to("other.db")


def make_another_log(path: Path) -> None:
    log = file_of(path).with_name("relay.db-wal")
    log.unlink()
    log.touch()


LOSSES = {
    "all files are deleted": delete_all,
    "the file is deleted": delete("relay.db"),
    "the log is deleted": delete("relay.db-wal"),
    "its index is deleted": delete("relay.db-shm"),
    "another log": make_another_log,
    "the file is moved": move,
    "the file is replaced": replace_by_a_copy,
    "its directory is deleted": delete_directory,
    "its directory is replaced": replace_directory,
    "the link leads elsewhere": retarget,
}
losses = pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)

USES: dict[str, Callable[[Outbox], object]] = {
    "add": lambda outbox: outbox.add([arrival("b")]),
    "claim": lambda outbox: outbox.claim("segment", 1, lease=MINUTE),
    "changed": lambda outbox: outbox.changed("segment"),
    "check": lambda outbox: outbox.check(),
    "counts": lambda outbox: total(outbox.counts()),
    "free_bytes": lambda outbox: outbox.free_bytes(),
    "operations": lambda outbox: outbox.entries.operations(1),
}


@losses
def test_every_use_is_refused_once_a_file_is_lost(path: Path, lose: Loss) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])
        lose(path)
        for use in USES.values():
            with pytest.raises(OutboxBrokenError, match=r"has been (deleted or moved|replaced)"):
                use(outbox)


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_each_use_checks_that_the_file_is_there(
    path: Path, use: Callable[[Outbox], object]
) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        delete_all(path)
        with pytest.raises(OutboxBrokenError):
            use(outbox)


@losses
def test_an_addition_during_which_files_are_lost_raises(path: Path, lose: Loss) -> None:
    """They are lost during the commit, after the check before it."""
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a")])

        def losing(_connection: object, _database: str, _pages: int) -> int:
            if file_of(path).exists():
                lose(path)
            return apsw.SQLITE_OK

        outbox._adder.set_wal_hook(losing)  # noqa: SLF001 (no other moment is as late)
        with pytest.raises(OutboxBrokenError):
            outbox.add([arrival("b")])


def test_the_error_names_where_the_file_is_now(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        move(path)
        with pytest.raises(OutboxBrokenError, match=str(path.with_name("moved.db"))):
            outbox.check()


@losses
def test_the_content_of_lost_files_is_rescued(path: Path, lose: Loss) -> None:
    """The file is put into the directory that the operator named."""
    outbox = SqliteOutbox(path)
    outbox.lock_role(Role.RECEIVER)
    outbox.add([arrival("a"), arrival("b")])
    outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
    lose(path)
    with pytest.raises(OutboxError):
        outbox.check()
    outbox.close()
    (rescued,) = path.parent.glob("link.db.rescued-*")

    assert rescued.stat().st_mode & 0o077 == 0
    with closing(SqliteOutbox(rescued, create=False)) as kept:
        assert states(kept) == {"delivered": 1, "pending": 1}


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize("leave", [os.unlink, lambda path: os.truncate(path, 0)])
def test_a_log_without_its_file_is_refused_naming_the_rescued_file(
    path: Path, leave: Callable[[Path], object], *, create: bool
) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.lock_role(Role.RECEIVER)
        outbox.add([arrival("a")])
        file_of(path).rename(path.with_name("moved.db"))
        with pytest.raises(OutboxError):
            outbox.check()
    file_of(path).touch()
    leave(file_of(path))
    (rescued,) = path.parent.glob("link.db.rescued-*")
    before = {file: file.stat().st_size for file in file_of(path).parent.iterdir()}
    with pytest.raises(OutboxUnusableError, match=rf"`relay salvage .*`relay restore {rescued}`"):
        SqliteOutbox(path, create=create)

    assert {file: file.stat().st_size for file in file_of(path).parent.iterdir()} == before


def fill(outbox: SqliteOutbox, names: str) -> None:
    """Store so much that the file itself grows."""
    outbox.add([arrival(f"{name}{number}") for name in names for number in range(100)])
    outbox._adder.wal_checkpoint()  # noqa: SLF001 (at a time that the test knows)


def copy_over(path: Path) -> None:
    """Overwrite the file as `cp backup.db relay.db` does: its name and inode stay."""
    shutil.copyfile(path.with_name("backup.db"), file_of(path))


def cut_off(path: Path) -> None:
    os.truncate(file_of(path), file_of(path).stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(file_of(path), 0)


def empty_log(path: Path) -> None:
    os.truncate(f"{file_of(path)}-wal", 0)


overwrites = pytest.mark.parametrize("overwrite", [copy_over, cut_off, empty, empty_log])


@overwrites
def test_nothing_is_stored_in_an_overwritten_file(path: Path, overwrite: Loss) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.lock_role(Role.RECEIVER)
        fill(outbox, "a")
        shutil.copyfile(file_of(path), path.with_name("backup.db"))
        fill(outbox, "bc")
        outbox.add([arrival("d")])
        log = Path(f"{file_of(path)}-wal")
        overwrite(path)
        left = log.read_bytes()
        for use in USES.values():
            with pytest.raises(OutboxBrokenError, match="has been overwritten or cut off"):
                use(outbox)

    assert log.read_bytes() == left  # what was stored last can still be read from it


def test_many_threads_can_watch_a_file_that_grows(path: Path) -> None:
    """A thread may have seen it shorter than another one has seen it meanwhile."""
    faults: list[str | None] = []
    over = threading.Event()
    interval = sys.getswitchinterval()

    def watch(files: OutboxFiles) -> None:
        while not over.is_set():
            faults.append(files.fault())

    with closing(SqliteOutbox(path)), closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE notes (text)")
        files = OutboxFiles(path, connection)
        watchers = [threading.Thread(target=watch, args=[files]) for _ in range(4)]
        sys.setswitchinterval(1e-5)
        try:
            for watcher in watchers:
                watcher.start()
            for _ in range(300):
                connection.execute("INSERT INTO notes VALUES (zeroblob(100000))")
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        finally:
            over.set()
            for watcher in watchers:
                watcher.join()
            sys.setswitchinterval(interval)

    assert set(faults) == {None}


def test_a_file_that_sqlite_shortens_stays_in_use(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        fill(outbox, "abc")
        while outbox.claim("segment", 100, lease=MINUTE):
            pass
        before = file_of(path).stat().st_size
        with closing(apsw.Connection(str(path))) as stranger:
            stranger.execute("DELETE FROM entries WHERE id > 50")
            stranger.execute("VACUUM")
            stranger.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        after = file_of(path).stat().st_size, Path(f"{file_of(path)}-wal").stat().st_size
        outbox.add([arrival("d")])

        assert states(outbox) == {"pending": 51}
    assert after[0] < before
    assert after[1] == 0


@pytest.mark.parametrize("leave", [os.unlink, lambda path: os.truncate(path, 0)])
def test_no_file_is_made_unless_asked_for(tmp_path: Path, leave: Callable[[Path], object]) -> None:
    path = tmp_path / "relay.db"
    path.touch()
    leave(path)
    before = [(file, file.stat().st_size) for file in tmp_path.iterdir()]
    with pytest.raises(OutboxMissingError, match=str(path)):
        open_outbox(f"sqlite:///{path}", allow_ephemeral=True)

    assert [(file, file.stat().st_size) for file in tmp_path.iterdir()] == before


def test_no_schema_is_made_unless_asked_for(postgres: PostgresServer) -> None:
    url = postgres.create_database()
    with pytest.raises(OutboxMissingError):
        open_outbox(url)
    open_outbox(url, create=True).close()
    open_outbox(url).close()
    postgres.drop_database(url)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_path_that_is_no_regular_file_is_refused(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "relay.db"
    make(path)
    with pytest.raises(OutboxUnusableError, match="it is not a regular file"):
        SqliteOutbox(path)


def test_a_file_that_others_can_open_is_warned_of_and_left(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        outbox.lock_role(Role.RECEIVER)
        for file in tmp_path.iterdir():
            file.chmod(0o600)
        before = outbox.warnings()
        path.chmod(0o640)
        path.with_name("relay.db-receiver").chmod(0o604)
        warnings = outbox.warnings()

    assert before == []
    assert [warning.partition(":")[0] for warning in warnings] == [
        f"{path} has mode 0640",
        f"{path}-receiver has mode 0604",
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640

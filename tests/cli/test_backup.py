import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.desk import Desk, kill_once, webhook
from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import PostgresStore, SqliteStore, Store

HISTORY = """
    SELECT message_id, what, history.detail FROM history JOIN entries ON entries.id = entry
    ORDER BY message_id, history.{}
"""


def contents(store: Store) -> tuple[object, object]:
    """Return the entries and the history that a backup must hold."""
    entries = sorted((e.message_id, e.state, e.attempts, e.reason, e.body) for e in store.stored())
    order = "rowid" if isinstance(store, SqliteStore) else "id"
    return entries, [tuple(row) for row in store.run_sql(HISTORY.format(order))]


@contextmanager
def load(desk: Desk, name: str) -> Iterator[list[str]]:
    """Post webhooks one after another; yield the growing list of accepted `messageId`s."""
    accepted: list[str] = []
    ended = threading.Event()

    def post() -> None:
        while not ended.is_set():
            accepted.append(desk.post(webhook(name, len(accepted)))[0])

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield accepted
    finally:
        ended.set()
        thread.join()
        desk.settle()


@pytest.fixture
def other_store(desk: Desk, postgres: PostgresServer, tmp_path: Path) -> Iterator[Store]:
    """Return an empty store of the other kind."""
    if isinstance(desk.store, PostgresStore):
        yield SqliteStore(tmp_path / "other.db")
    else:
        url = postgres.create_database()
        yield PostgresStore(url, tmp_path)
        postgres.drop_database(url)


def test_a_backup_under_load_holds_every_event_accepted_before_it(
    desk: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "backup.db"
    with load(desk, "loaded") as accepted:
        assert within(20, lambda: len(accepted) > 20)
        before = [*accepted]
        output = desk.run("backup", str(file))
        assert within(20, lambda: len(accepted) > len(before))
    entries = SqliteStore(file).stored()

    assert {*before} <= {entry.message_id for entry in entries}
    assert output == f"{len(entries):,} entries in {file}\n"
    assert [*tmp_path.iterdir()] == [file]
    assert file.stat().st_mode & 0o077 == 0


def test_a_backup_is_restored_into_either_store(
    desk: Desk, other_store: Store, tmp_path: Path
) -> None:
    desk.refused.add("refused")
    desk.delivered(webhook("restored"), webhook("restored", 1, campaign={"name": "refused"}))
    desk.refused.clear()
    file = tmp_path / "backup.db"
    desk.run("backup", str(file))
    output = desk.run("restore", str(file), RELAY_OUTBOX_URL=other_store.url)
    second_time = desk.run("restore", str(file), RELAY_OUTBOX_URL=other_store.url)
    into_itself = desk.run("restore", str(file))

    assert contents(SqliteStore(file)) == contents(desk.store)
    assert contents(other_store) == contents(desk.store)
    assert output == f"{len(desk.store.stored()):,} entries restored\n"
    assert (second_time, into_itself) == ("0 entries restored\n",) * 2


@pytest.mark.slow
def test_a_relay_on_a_backup_delivers_what_was_pending(sqlite_desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    with sqlite_desk.posting(webhook("goes-on", campaign={"name": "on"}), "on") as message_id:
        sqlite_desk.run("backup", str(file))
    with SegmentServer() as segment, RelayProcess(file, segment.url) as relay:
        assert within(20, lambda: len(segment.accepted) == 1)
        answer = relay.post(webhook("goes-on", campaign={"name": "on"})).content

    assert segment.accepted[0]["messageId"] == message_id
    assert answer == {"status": "duplicate", "message_id": message_id}


@pytest.mark.slow
def test_a_killed_backup_leaves_no_file_under_its_name(sqlite_desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    kill_once(sqlite_desk.fork("backup", str(file)), lambda: any(tmp_path.iterdir()))
    made = file.exists()
    sqlite_desk.run("backup", str(file))

    assert not made
    assert contents(SqliteStore(file)) == contents(sqlite_desk.store)


def test_backup_overwrites_no_file_and_restore_takes_only_an_outbox(
    sqlite_desk: Desk, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a backup")

    assert sqlite_desk.run("backup", str(file), code=1) == f"Error: {file} exists already\n"
    assert "is not a SQLite outbox" in sqlite_desk.run("restore", str(file), code=1)
    assert file.read_text() == "not a backup"
    assert [*tmp_path.iterdir()] == [file]

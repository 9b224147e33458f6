"""`relay restore` from files that relay did not write, or not in this form."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.outbox.sqlite.schema import MARK
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import arrival, states
from tests.harness.processes import WRITE_KEY, run
from tests.harness.stores import run_sql

Change = Callable[[Path], object]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a backup of 1,200 entries."""
    path = tmp_path / "backup.db"
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival(f"event-{number}") for number in range(1_200)])
    return path


def restore(file: Path, outbox: Path) -> tuple[int, str]:
    """Run `relay restore`; return the exit code and the output."""
    done = run(
        *("restore", str(file)),
        SEGMENT_WRITE_KEY=WRITE_KEY,
        RELAY_OUTBOX_URL=f"sqlite:///{outbox}",
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def setting(column: str, value: str) -> Change:
    """Set a column of row 900 to the value, even if the table forbids it."""

    def set_value(path: Path) -> None:
        with closing(apsw.Connection(str(path))) as connection:
            ((sql,),) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'entries'")
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
            connection.pragma("writable_schema", "on")
            loose = sql.replace("STRICT", "").replace("NOT NULL", "").replace("CHECK", "")
            loose = loose.replace("(state IN ('pending', 'delivered', 'dead'))", "")
            rewrite = "UPDATE sqlite_schema SET sql = ? WHERE name = 'entries'"
            connection.execute(rewrite, (loose,))
            connection.pragma("writable_schema", "reset")
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute(f"UPDATE entries SET {column} = {value} WHERE id = 900")  # noqa: S608 (our own)
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
            connection.pragma("writable_schema", "on")
            connection.execute(rewrite, (sql,))
            connection.pragma("writable_schema", "reset")

    return set_value


def endless_view(path: Path) -> None:
    path.unlink()
    run_sql(path, f"PRAGMA application_id = {MARK}; PRAGMA user_version = 1")
    run_sql(
        path,
        """
        CREATE VIEW entries AS
        WITH RECURSIVE endless (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM endless)
        SELECT id FROM endless
        """,
    )


def becoming(make: Change) -> Change:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


IMPOSSIBLE_TIMES: dict[str, tuple[Change, str]] = {
    "a time beyond the year 9999": (
        setting("received_at", str(10**17)),
        "entry 900 has an impossible time",
    ),
    "the latest number there is": (
        setting("received_at", str(2**63 - 1)),
        "entry 900 has an impossible time",
    ),
    "a time before 1970": (setting("received_at", "-5"), "entry 900 has an impossible time"),
    "an impossible delivery": (
        setting("delivered_at", str(10**17)),
        "entry 900 has an impossible time",
    ),
}
REFUSALS: dict[str, tuple[Change, str]] = {
    "a text for a body": (setting("body", "'text'"), "is damaged"),
    "no body": (setting("body", "NULL"), "is damaged"),
    "no message id": (setting("message_id", "NULL"), "is damaged"),
    "a text for a time": (setting("received_at", "'noon'"), "is damaged"),
    "a state that there is not": (setting("state", "'lost'"), "is damaged"),
    "an endless view": (endless_view, "table entries is missing"),
    "a pipe": (becoming(os.mkfifo), "is not a SQLite outbox"),
    "a device": (becoming(lambda path: path.symlink_to("/dev/zero")), "is not a SQLite outbox"),
    "a directory": (becoming(os.mkdir), "is a directory"),
    "another program's": (
        becoming(lambda path: run_sql(path, "CREATE TABLE theirs (a)")),
        "some other program",
    ),
}


@pytest.mark.parametrize(("change", "message"), IMPOSSIBLE_TIMES.values(), ids=IMPOSSIBLE_TIMES)
def test_restore_stops_at_an_unreadable_entry_and_a_second_run_finishes(
    file: Path, tmp_path: Path, change: Change, message: str
) -> None:
    change(file)
    outbox = tmp_path / "relay.db"
    code, output = restore(file, outbox)
    with closing(SqliteOutbox(outbox, create=False)) as restored:
        before = states(restored)["pending"]
    run_sql(file, "DELETE FROM entries WHERE id = 900")
    second_run = restore(file, outbox)

    assert code == 1
    assert message in output
    assert f"`relay salvage {file} NEW`" in output
    assert 0 < before < 900
    assert second_run == (0, f"{1_199 - before:,} entries restored\n")


@pytest.mark.parametrize(("change", "message"), REFUSALS.values(), ids=REFUSALS)
def test_restore_refuses_a_file_that_is_no_outbox_and_creates_none(
    file: Path, tmp_path: Path, change: Change, message: str
) -> None:
    change(file)
    outbox = tmp_path / "relay.db"
    code, output = restore(file, outbox)

    assert code in {1, 2}
    assert message in output
    assert not outbox.exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_salvage_refuses_a_pipe_and_a_device(tmp_path: Path, make: Change) -> None:
    path = tmp_path / "damaged.db"
    make(path)
    done = run("salvage", str(path), str(tmp_path / "new.db"))

    assert done.returncode == 1
    assert "it is not a regular file" in done.stderr

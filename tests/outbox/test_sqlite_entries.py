import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from relay.operations.search import reasons
from relay.outbox.entries import Query, State
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import FAULT, MINUTE, NOON, arrival
from tests.harness.entries import erase, everything, requeue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the outbox is."""
    return tmp_path / "relay.db"


def body(number: int, size: int) -> bytes:
    """One that begins and ends with what no other holds."""
    canary = f"<canary {number:03}>".encode()
    return canary + b"." * size + canary


def canaries(path: Path) -> set[int]:
    """The numbers of the bodies of which the outbox's files hold anything."""
    raw = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    return {number for number in range(60) if f"<canary {number:03}>".encode() in raw}


@pytest.mark.parametrize("size", [10, 700, 5_000, 60_000])
def test_nothing_of_what_was_erased_is_left_in_the_files(path: Path, size: int) -> None:
    """While a relay has them open that has moved the rows about; long bodies have more pages."""
    with closing(SqliteOutbox(path)) as relaying, closing(SqliteOutbox(path)) as operators:
        relaying.add([arrival(f"{n}", body=body(n, size)) for n in range(60)])
        for _ in range(3):
            relaying.release(
                relaying.claim("segment", 100, lease=MINUTE), "503 Service Unavailable"
            )
        claimed = relaying.claim("segment", 100, lease=MINUTE)
        relaying.ack(claimed[:20])
        for entry in claimed[20:40]:
            relaying.dead_letter(entry, FAULT)
        relaying.release(claimed[40:])
        entries = everything(operators.entries)
        requeue(operators.entries, *entries[::5])
        forgotten = relaying.purge(NOON + timedelta(days=10_000), 5)
        kept = everything(operators.entries)[1::3]
        erased = [r for r in everything(operators.entries) if r not in kept]
        erase(operators.entries, *erased)
        left = canaries(path)

        assert forgotten == 5
        assert left == {int(entry.message_id) for entry in kept}
        assert {entry.state for entry in erased} == {*State}


def test_who_reads_meanwhile_is_waited_for(path: Path) -> None:
    """The log of writes cannot be emptied as long as someone reads from it."""
    with closing(SqliteOutbox(path)) as outbox, closing(apsw.Connection(str(path))) as reader:
        outbox.add([arrival("a", body=body(1, 10))])
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchall()
        done = threading.Timer(0.5, reader.execute, ["COMMIT"])
        done.start()
        erase(outbox.entries, *everything(outbox.entries))
        left = canaries(path)
        done.join()

        assert left == set()
        assert outbox.entries.operations(1)[0].finished_at


@pytest.fixture
def executed() -> Iterator[list[tuple[str, Any]]]:
    """Every statement of connections that are opened meanwhile, and its values."""
    statements = []

    def trace(_: apsw.Cursor, statement: str, values: Any) -> bool:  # noqa: ANN401 (of any kind)
        statements.append((statement, values))
        return True

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = trace

    apsw.connection_hooks.append(hook)
    yield statements
    apsw.connection_hooks.remove(hook)


ROWID = "SEARCH entries USING INTEGER PRIMARY KEY (rowid=?)"


@pytest.mark.parametrize(
    ("step", "operate"),
    [
        ("SCAN entries", lambda o: o.entries.find(Query(), 50)),
        (
            "SEARCH entries USING INTEGER PRIMARY KEY (rowid<?)",
            lambda o: o.entries.find(Query(), 50, start=9_000_000),
        ),
        (
            "SEARCH history USING INDEX history_entry (entry=?)",
            lambda o: o.entries.find(Query(), 50, with_history=True),
        ),
        (
            "SCAN entries USING INDEX entries_dead",
            lambda o: o.entries.find(Query(states=(State.DEAD,)), 50),
        ),
        (
            "SCAN entries USING INDEX entries_dead",
            lambda o: o.entries.find(Query(states=(State.DEAD,), keyless=True), 50),
        ),
        (
            "SEARCH entries USING INDEX entries_reason (reason=?)",
            lambda o: o.entries.find(Query(reason="rejected"), 50),
        ),
        ("SEARCH entries USING INDEX entries_reason (reason=?)", reasons),
        (
            "SEARCH entries USING INDEX entries_rare (collection=? AND rowid<?)",
            lambda o: o.entries.find(Query(collection="Email Bounced"), 50, start=9),
        ),
        (
            "SCAN entries USING INDEX entries_pending",
            lambda o: o.entries.find(Query(states=(State.PENDING,)), 50),
        ),
        (
            "SEARCH entries USING COVERING INDEX entries_pending (destination=?)",
            lambda o: o.counts(),
        ),
        (
            "SEARCH entries USING INDEX sqlite_autoindex_entries_1 (message_id=?)",
            lambda o: o.entries.find(Query(message_id="a"), 50),
        ),
        *(
            (
                f"SEARCH entries USING INDEX entries_{key} (<expr>=? AND {key}_key=?)",
                lambda o, key=key: o.entries.find(Query(key=(key, 7), states=(State.DEAD,)), 50),
            )
            for key in ("user", "address", "email")
        ),
        ("SCAN entries USING COVERING INDEX entries_pending", lambda o: o.pending_exceed(1_000)),
        (
            "SEARCH entries USING INDEX entries_pending (destination=?)",
            lambda o: o.claim("segment", 100, lease=MINUTE),
        ),
        (
            "SEARCH entries USING INDEX entries_suspect (destination=?)",
            lambda o: o.claim_suspect("segment", lease=MINUTE),
        ),
        (
            "SEARCH entries USING INDEX entries_suspect (destination=?)",
            lambda o: o.has_suspects("segment"),
        ),
        (ROWID, lambda o: o.claim("segment", 1, lease=MINUTE)),
        (ROWID, lambda o: o.ack(o.claim("segment", 1, lease=MINUTE))),
        (ROWID, lambda o: requeue(o.entries, *o.entries.find(Query(ids=(1,)), 1))),
        (ROWID, lambda o: erase(o.entries, *o.entries.find(Query(ids=(1,)), 1))),
    ],
)
def test_entries_are_come_at_by_an_index(
    path: Path,
    executed: list[tuple[str, Any]],
    step: str,
    operate: Callable[[Outbox], object],
) -> None:
    """Of the table itself no more is read than is asked for, the latest entries first."""
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("a", fault=FAULT)])
        executed.clear()
        operate(outbox)
        statements = executed.copy()
    with closing(apsw.Connection(str(path))) as connection:
        plans = [plan(connection, *statement) for statement in statements]
    steps = [each for plan in plans for each in plan]

    assert step in steps
    assert all(each == ["SCAN entries"] for each in plans if "SCAN entries" in each)
    assert not any("AUTOMATIC" in each for each in steps)


def plan(connection: apsw.Connection, statement: str, values: Any) -> list[str]:  # noqa: ANN401 (as above)
    """How SQLite comes at what is asked for, step by step; of a pragma, nothing."""
    if not statement.lstrip().startswith(("SELECT", "UPDATE", "INSERT", "DELETE", "WITH")):
        return []
    rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
    return [step for _, _, _, step in rows]

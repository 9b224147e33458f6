"""What is done with the lanes of a SQLite outbox does not grow with the entries that wait."""

import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

import apsw
import pytest

from relay.outbox.entries import Query
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.lanes import call, claim, head
from tests.contracts.outbox import FAULT, MINUTE
from tests.harness.entries import erase

FEW, MANY = 100, 20_000

# All in lane 0 wait for its first entry. Every tenth entry waits for its time, in its own lane.
_FILL = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})
    INSERT INTO entries (source, destination, message_id, state, received_at, pending_since,
        attempts, body, retry_at)
    SELECT 'segment', 'vero', n, 'pending', n, n, 0, x'00',
        CASE WHEN n % 10 THEN 0 ELSE 1000 * unixepoch('now', '30 minutes') END
    FROM numbers
"""
_FILL_LANES = """
    INSERT INTO lanes (lane, entry)
    SELECT CASE WHEN id % 10 THEN 0 ELSE id END, id FROM entries ORDER BY id
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Outboxes by the number of their entries."""
    directory = tmp_path_factory.mktemp("filled")
    paths = {size: directory / f"{size}.db" for size in (FEW, MANY)}
    for size, path in paths.items():
        SqliteOutbox(path).close()
        with closing(apsw.Connection(str(path))) as connection, connection:
            connection.execute(_FILL.format(count=size))
            connection.execute(_FILL_LANES)
    return paths


def steps(path: Path, operate: Callable[[Outbox], object]) -> int:
    """Return how many steps SQLite's virtual machine takes for the operation."""
    connections: list[apsw.Connection] = []
    taken = count()

    def step() -> bool:
        next(taken)
        return False

    apsw.connection_hooks.append(connections.append)
    with closing(SqliteOutbox(path)) as outbox:
        apsw.connection_hooks.remove(connections.append)
        for connection in connections:
            with suppress(apsw.ConnectionClosedError):
                connection.set_progress_handler(step, 1, id="steps")  # beside relay's own handler
        operate(outbox)
    return next(taken)


OPERATIONS: dict[str, Callable[[Outbox], object]] = {
    "claim": lambda outbox: claim(outbox, 100),
    "nothing is due": lambda outbox: [claim(outbox, 100), claim(outbox, 100)],
    "add": lambda outbox: outbox.add([call("new", 9), call("newer", 0, 9)]),
    "ack": lambda outbox: outbox.ack(claim(outbox)),
    "dead letter": lambda outbox: outbox.dead_letter(head(outbox), FAULT),
    "has suspects": lambda outbox: outbox.has_suspects("vero"),
    "claim suspect": lambda outbox: outbox.claim_suspect("vero", lease=MINUTE),
    "blocked by": lambda outbox: outbox.entries.blocked_by(FEW - 1),
    "find": lambda outbox: outbox.entries.find(Query(destination="vero"), 50),
    "erase": lambda outbox: erase(
        outbox.entries, *outbox.entries.find(Query(ids=(7, FEW // 2, FEW - 1)), 3)
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_work_grows_with_the_entries_that_wait_in_a_lane(
    tmp_path: Path, filled: dict[int, Path], operation: str
) -> None:
    few, many = (
        steps(Path(shutil.copy(filled[size], tmp_path)), OPERATIONS[operation])
        for size in (FEW, MANY)
    )

    assert 0 < many <= 1.1 * few

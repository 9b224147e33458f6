import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.receiver.backpressure import Capacity
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import RelayProcess, SqliteStore, Store, pending, run_sql, within

BACKLOG = 5
MEBIBYTE = 2**20
MARGIN = 512
"""MiB by which the disk is above the limit, and then below it; others write to it, too."""


@pytest.fixture(params=["sqlite_store", "postgres_store"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store, empty."""
    store: Store = request.getfixturevalue(request.param)
    return store


class SilentSegment(SegmentServer):
    """Answers nothing before `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.judge = self._wait

    def _wait(self, _batch: object) -> Answer:
        self.free.wait(10)
        return Answer()


def webhook(number: int) -> bytes:
    """Each number gives another one."""
    return b'{"type": "opened", "user": {"id": 7}, "message_id": "mail-%d"}' % number


def closes(relay: RelayProcess, variable: str, numbers: Iterator[int]) -> bool:
    """Whether it comes to refuse webhooks, and says so where it is asked."""

    def refuses() -> bool:
        reply = relay.post(webhook(next(numbers)))
        return reply.status == 503 and int(reply.headers["retry-after"]) > 0

    refused = within(10, refuses)
    readiness = relay.ask("GET", "/readyz")
    (reason,) = readiness.content["reasons"]
    return refused and readiness.status == 503 and variable in reason


def opens(relay: RelayProcess, numbers: Iterator[int]) -> bool:
    """Whether it takes webhooks again, by itself and soon."""
    ready = within(5, lambda: relay.ask("GET", "/readyz").status == 200)
    return ready and relay.post(webhook(next(numbers))).content["status"] == "accepted"


def test_beyond_its_backlog_relay_takes_nothing_until_it_is_forwarded(store: Store) -> None:
    numbers = iter(range(1_000_000))
    with (
        SilentSegment() as segment,
        RelayProcess(store, segment.url, RELAY_MAX_BACKLOG=str(BACKLOG)) as relay,
    ):
        closed = closes(relay, "RELAY_MAX_BACKLOG", numbers)
        waiting = pending(store)
        segment.free.set()
        forwarded = within(20, lambda: pending(store) == 0)

        assert closed
        assert waiting > BACKLOG
        assert forwarded
        assert len(segment.accepted) == waiting
        assert opens(relay, numbers)


def test_without_room_on_the_disk_relay_takes_nothing_and_forwards_what_it_has(
    sqlite_store: SqliteStore,
) -> None:
    numbers = iter(range(1_000_000))
    ballast = sqlite_store.path.with_name("ballast")
    least = shutil.disk_usage(sqlite_store.path.parent).free // MEBIBYTE - MARGIN
    with (
        SilentSegment() as segment,
        RelayProcess(sqlite_store, segment.url, RELAY_MIN_FREE_DISK=str(least)) as relay,
        ballast.open("wb") as file,
    ):
        relay.post(webhook(next(numbers)))
        os.posix_fallocate(file.fileno(), 0, 2 * MARGIN * MEBIBYTE)
        closed = closes(relay, "RELAY_MIN_FREE_DISK", numbers)
        segment.free.set()
        forwarded = within(20, lambda: pending(sqlite_store) == 0)
        ballast.unlink()
        file.truncate(0)

        assert closed
        assert forwarded
        assert segment.accepted
        assert opens(relay, numbers)


def arrivals(count: int) -> list[Arrival]:
    """So many webhooks."""
    now = datetime.now(UTC)
    return [Arrival("vero", "segment", f"vero-{number}", now, b"{}") for number in range(count)]


@pytest.mark.parametrize(("limit", "exceeded"), [(None, False), (4, False), (3, False), (2, True)])
def test_a_backlog_is_exceeded_when_more_entries_wait(
    tmp_path: Path, limit: int | None, *, exceeded: bool
) -> None:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add(arrivals(3))
        told = Capacity(outbox, max_backlog=limit, min_free_disk=0).exceeded()

    assert told == ("more than 2 entries wait (RELAY_MAX_BACKLOG)" if exceeded else None)


def test_too_little_room_is_told_in_figures(tmp_path: Path) -> None:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        told = Capacity(outbox, max_backlog=None, min_free_disk=2**40).exceeded()

    assert told is not None
    assert told.endswith(f" less than {2**40} MiB (RELAY_MIN_FREE_DISK)")


def test_what_cannot_tell_how_full_it_is_counts_as_full(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        run_sql(path, "ALTER TABLE entries RENAME TO away")
        told = Capacity(outbox, max_backlog=1, min_free_disk=0).exceeded()
        run_sql(path, "ALTER TABLE away RENAME TO entries")

    assert (told or "").startswith("the outbox cannot tell how full it is: SQLite: ")

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
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import SqliteStore, Store, pending, run_sql
from tests.harness.webhooks import opened

pytestmark = pytest.mark.slow

BACKLOG = 5
MEBIBYTE = 2**20
MARGIN = 512
"""MiB by which the disk is above the limit, and then below it; others write to it, too."""


class SilentSegment(SegmentServer):
    """Answers nothing before `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.judge = self._wait

    def _wait(self, _batch: object) -> Answer:
        self.free.wait(10)
        return Answer()


def closes(relay: RelayProcess, variable: str, numbers: Iterator[int]) -> bool:
    """Return whether relay comes to refuse webhooks, and names the variable in `/readyz`."""

    def refuses() -> bool:
        reply = relay.post(opened(next(numbers)))
        return reply.status == 503 and int(reply.headers["retry-after"]) > 0

    refused = within(10, refuses)
    readiness = relay.ask("GET", "/readyz")
    (reason,) = readiness.content["reasons"]
    return refused and readiness.status == 503 and variable in reason


def opens(relay: RelayProcess, numbers: Iterator[int]) -> bool:
    """Return whether relay soon accepts webhooks again, by itself."""
    ready = within(5, lambda: relay.ask("GET", "/readyz").status == 200)
    return ready and relay.post(opened(next(numbers))).content["status"] == "accepted"


def test_relay_accepts_nothing_beyond_its_backlog_until_it_is_forwarded(store: Store) -> None:
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


def test_without_disk_space_relay_accepts_nothing_and_forwards_what_it_has(
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
        relay.post(opened(next(numbers)))
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
    """Return so many arrivals."""
    now = datetime.now(UTC)
    return [Arrival("vero", "segment", f"vero-{number}", now, b"{}") for number in range(count)]


@pytest.mark.parametrize(("limit", "exceeded"), [(None, False), (4, False), (3, False), (2, True)])
def test_a_backlog_is_exceeded_when_more_entries_wait(
    tmp_path: Path, limit: int | None, *, exceeded: bool
) -> None:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add(arrivals(3))
        reason = Capacity(outbox, max_backlog=limit, min_free_disk=0).exceeded()

    assert reason == ("more than 2 entries wait (RELAY_MAX_BACKLOG)" if exceeded else None)


def test_the_reason_gives_the_disk_space_in_mib(tmp_path: Path) -> None:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        reason = Capacity(outbox, max_backlog=None, min_free_disk=2**40).exceeded()

    assert reason is not None
    assert reason.endswith(f" less than {2**40} MiB (RELAY_MIN_FREE_DISK)")


def test_an_outbox_that_cannot_be_measured_counts_as_full(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    with closing(SqliteOutbox(path)) as outbox:
        run_sql(path, "ALTER TABLE entries RENAME TO away")
        reason = Capacity(outbox, max_backlog=1, min_free_disk=0).exceeded()
        run_sql(path, "ALTER TABLE away RENAME TO entries")

    assert (reason or "").startswith("the outbox cannot say how full it is: SQLite: ")

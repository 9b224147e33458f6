"""The power is cut at hundreds of points of a run, and what was told stored is there each time."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from relay.errors import OutboxError
from relay.outbox.entries import State
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.outbox import arrival
from tests.faults.disk import Deed, Disk, Operation, Platter, kill, sync_error
from tests.faults.witness import Witness
from tests.harness.processes import within

Times = Callable[[int, int], int]
FILE, LOG = "relay.db", "relay.db-wal"


class Hasty(SqliteOutbox):
    """Does not wait for what it adds to be synced."""

    def __init__(self, path: Path, **clocks: Any) -> None:  # noqa: ANN401 (as its parent's)
        super().__init__(path, **clocks)
        self._adder.pragma("synchronous", "normal")


def live(disk: Disk, path: Path, rng: Random, receiver: type[SqliteOutbox]) -> Witness:
    """A run with all that an outbox does, its file made, closed and opened again included."""
    witness = Witness(disk, path, rng, receiver)
    for groups in (60, 30):
        witness.open()
        for number, step in enumerate(witness.steps(groups)):
            step()
            if number % 100 == 99:
                empty_log(path)
        witness.close()
    return witness


def empty_log(path: Path) -> None:
    """Checkpoint and truncate, as the outbox does with a log of 128 MB."""
    with closing(apsw.Connection(str(path))) as connection, suppress(apsw.BusyError):
        connection.set_busy_timeout(5_000)
        connection.pragma("user_version")  # what has read nothing checkpoints nothing
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def points(operations: list[Operation], rng: Random, count: int) -> list[int]:
    """Where to cut: half of them anywhere, half of them beside what is no plain write."""
    events = [place for place, each in enumerate(operations) if each.deed is not Deed.WRITE]
    beside = [rng.choice(events) + rng.randrange(2) for _ in range(count // 2)]
    return beside + [rng.randrange(len(operations) + 1) for _ in range(count - len(beside))]


def broken_by_cuts(
    witness: Witness, operations: list[Operation], rng: Random, cuts: Iterable[int], directory: Path
) -> Iterator[str]:
    """What is broken after a power cut at each of the points."""
    platter, shown = Platter(rng), 0
    for cut in sorted(cuts):
        platter.show(operations[shown:cut])
        shown = cut
        directory.mkdir()
        platter.cut_power(directory)
        broken = witness.broken_promises(directory / FILE, cut)
        shutil.rmtree(directory)
        yield from (f"cut at {cut} of {len(operations)}: {promise}" for promise in broken)


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_whenever_the_power_is_cut_what_was_answered_as_stored_is_there(
    tmp_path: Path, times: Times
) -> None:
    for number in range(times(1, 5)):
        seed = time.time_ns()
        rng = Random(seed)  # noqa: S311 (no secret hangs on it)
        directory = tmp_path / str(number)
        directory.mkdir()
        with Disk() as disk:
            witness = live(disk, directory / FILE, rng, SqliteOutbox)
        done = {(each.deed, each.file) for each in disk.operations}
        cuts = points(disk.operations, rng, times(150, 600))
        broken = [*broken_by_cuts(witness, disk.operations, rng, cuts, directory / "cut")]

        assert {(Deed.SYNC, FILE), (Deed.TRUNCATE, LOG), (Deed.DELETE, LOG)} <= done
        assert not broken, "\n".join([f"seed {seed}: {len(broken)} broken promises", *broken[:10]])


def test_the_same_cuts_lose_what_is_not_synced(tmp_path: Path) -> None:
    """So the disk can lose, and the witness sees it: `synchronous=NORMAL` is not enough."""
    rng = Random(1)  # noqa: S311 (no secret hangs on it)
    with Disk() as disk:
        witness = live(disk, tmp_path / FILE, rng, Hasty)
    cuts = points(disk.operations, rng, 50)
    broken = [*broken_by_cuts(witness, disk.operations, rng, cuts, tmp_path / "cut")]

    assert any("lost" in promise for promise in broken)
    assert not any("corrupt" in promise or "settled" in promise for promise in broken)


@pytest.mark.timeout(900)
def test_a_power_cut_while_a_long_log_is_emptied_loses_nothing(
    tmp_path: Path, times: Times
) -> None:
    seed = time.time_ns()
    rng = Random(seed)  # noqa: S311 (no secret hangs on it)
    cuts = times(0, 12)
    if not cuts:
        pytest.skip("takes a gigabyte of memory")
    path = tmp_path / FILE
    with Disk() as disk:
        witness = Witness(disk, path, rng)
        witness.open()
        with closing(apsw.Connection(str(path))) as reader:  # nothing is copied while it reads
            reader.execute("BEGIN; SELECT count(*) FROM entries").fetchall()
            for number in range(130):
                witness.add([arrival(str(number), body=rng.randbytes(2**20))])
        began = disk.now
        witness.add([arrival("last")])
        emptied = within(60, lambda: Operation(Deed.TRUNCATE, LOG) in disk.operations[began:])
        witness.add([arrival("in an empty log")])
        ended = disk.now
        witness.close()
    chosen = [ended, ended, *(rng.randrange(began, ended) for _ in range(cuts))]
    broken = [*broken_by_cuts(witness, disk.operations, rng, chosen, tmp_path / "cut")]

    assert emptied
    assert not broken, "\n".join([f"seed {seed}: {len(broken)} broken promises", *broken[:10]])


def test_a_power_cut_in_the_start_after_a_sync_that_failed_damages_nothing(tmp_path: Path) -> None:
    """What can be read of the log then may not be on the disk, and must be before it is copied."""
    seed = time.time_ns()
    rng = Random(seed)  # noqa: S311 (no secret hangs on it)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with Disk() as disk:
        witness = Witness(disk, first / FILE, rng)
        witness.open()
        witness.add([arrival(str(number)) for number in range(300)])
        empty_log(first / FILE)
        witness.claim(200)
        witness.settle(State.DELIVERED)
        disk.before = fail
        with pytest.raises(OutboxError):
            witness.add([arrival("refused")])
        failed = disk.now
        disk.before = lambda _operation: None
        witness.close()
    kill(disk.operations[:failed], second)
    with Disk(disk.operations[:failed]) as disk:
        SqliteOutbox(second / FILE).close()
    cuts = range(failed, disk.now + 1)
    broken = [
        promise
        for _ in range(6)
        for promise in broken_by_cuts(witness, disk.operations, rng, cuts, tmp_path / "cut")
    ]

    assert not broken, "\n".join([f"seed {seed}: {len(broken)} broken promises", *broken[:10]])


def fail(operation: Operation) -> None:
    """Let no sync succeed."""
    if operation.deed is Deed.SYNC:
        raise sync_error()


def test_a_file_whose_creation_the_power_cut_can_be_opened(tmp_path: Path, times: Times) -> None:
    seed = time.time_ns()
    rng = Random(seed)  # noqa: S311 (no secret hangs on it)
    with Disk() as disk:
        witness = Witness(disk, tmp_path / FILE, rng)
        witness.open()
        for step in witness.steps(1):
            step()
        made = disk.now
        witness.close()
    broken = [
        promise
        for _ in range(times(1, 8))
        for promise in broken_by_cuts(witness, disk.operations, rng, range(made), tmp_path / "cut")
    ]

    assert not broken, "\n".join([f"seed {seed}: {len(broken)} broken promises", *broken[:10]])

"""A disk that fails to sync, or is full: what is told stored is there, and the rest is told."""

import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from random import Random

import apsw
import pytest

from relay.errors import OutboxError
from tests.contracts.outbox import FAULT, MINUTE, arrival
from tests.faults.disk import Deed, Disk, Operation, Platter, kill, sync_error
from tests.faults.witness import Witness
from tests.harness.fakes import SegmentServer
from tests.harness.oracle import Ledger, well
from tests.harness.processes import PATH, RelayProcess, ask, within
from tests.harness.stores import SqliteStore, pending

Times = Callable[[int, int], int]
FILE, LOG = "relay.db", "relay.db-wal"
CONNECTIONS = 8


def fail_sync(disk: Disk, number: int, *files: str) -> None:
    """Fail only the sync of that number from now on, of all or of those files."""
    numbers = count(1)

    def before(operation: Operation) -> None:
        asked = operation.deed is Deed.SYNC and operation.file in (files or {FILE, LOG})
        if asked and next(numbers) == number:
            raise sync_error()

    disk.before = before


def be_full(disk: Disk, number: int) -> None:
    """Have no room for the write of that number from now on, nor for any after it."""
    numbers = count(1)

    def before(operation: Operation) -> None:
        if operation.deed is Deed.WRITE and next(numbers) >= number:
            raise apsw.FullError("no space left")

    disk.before = before


def be_well(disk: Disk) -> None:
    """Fail nothing."""
    disk.before = lambda _operation: None
    for file in disk.open:
        file.failed = False


def begins_log(operation: Operation) -> bool:
    """Whether it is the head of the log that is written, over an old one."""
    return operation.file == LOG and operation.offset == 0 and len(operation.data) == 32


def broken_by_cut(
    witness: Witness, disk: Disk, cut: int, rng: Random, directory: Path
) -> Iterator[str]:
    """What is broken once the power is cut at that point of the disk's notes."""
    platter = Platter(rng)
    platter.show(disk.operations[:cut])
    left = directory / f"cut.{time.monotonic_ns()}"
    left.mkdir()
    platter.cut_power(left)
    for promise in witness.broken_promises(left / FILE, cut):
        yield f"cut at {cut}: {promise}"


def test_what_is_answered_as_stored_after_a_failed_sync_is_there(tmp_path: Path) -> None:
    """What the failed sync was to write may be read for ever, and is on the disk never.

    So it is if a claim had been noted in the log before: a log is read back up to its first gap.
    """
    rng = Random(1)  # noqa: S311 (no secret hangs on it)
    with Disk() as disk:
        witness = Witness(disk, tmp_path / FILE, rng)
        witness.open()
        witness.add([arrival("first")])
        witness.forwarding.claim("segment", 1, lease=MINUTE)
        fail_sync(disk, 1, LOG)
        with pytest.raises(OutboxError):
            witness.add([arrival("refused")])
        with suppress(OutboxError):  # to take nothing more is as good
            witness.add([arrival("after")])
        cut = disk.now
        be_well(disk)
        witness.close()
    broken = [line for _ in range(20) for line in broken_by_cut(witness, disk, cut, rng, tmp_path)]

    assert not broken, "\n".join(broken[:10])


def test_what_was_stored_before_a_checkpoint_failed_to_sync_is_there(tmp_path: Path) -> None:
    """What an earlier checkpoint had copied must be copied again, or the log be kept.

    SQLite does neither: a checkpoint that has not come to the end of the log syncs nothing, and the
    next one goes on from there.
    """
    rng = Random(1)  # noqa: S311 (no secret hangs on it)
    path = tmp_path / FILE
    with Disk() as disk:
        witness = Witness(disk, path, rng)
        witness.open()
        witness.add([arrival(f"first {number}", body=bytes(20_000)) for number in range(10)])
        with closing(apsw.Connection(str(path))) as reader:
            reader.execute("BEGIN; SELECT count(*) FROM entries").fetchall()
            witness.add([arrival("second")])
            with closing(apsw.Connection(str(path))) as another:
                another.pragma("user_version")  # what has read nothing checkpoints nothing
                in_log, copied = another.wal_checkpoint()
        fail_sync(disk, 1, FILE)
        witness.add([arrival(f"third {number}", body=bytes(20_000)) for number in range(250)])
        failed = within(10, lambda: any(op.deed is Deed.SYNC_FAILED for op in disk.operations))
        began, numbers = disk.now, count()

        def begins_anew() -> bool:
            with suppress(OutboxError):  # to take nothing more is as good
                witness.add([arrival(f"more {next(numbers)}")])
            return any(begins_log(operation) for operation in disk.operations[began:])

        within(5, begins_anew)
        cut = disk.now
        be_well(disk)
        witness.close()
    broken = [line for _ in range(20) for line in broken_by_cut(witness, disk, cut, rng, tmp_path)]

    assert 0 < copied < in_log
    assert failed
    assert not broken, "\n".join(broken[:10])


@pytest.mark.parametrize("sync", ["never called", "failed"])
def test_what_a_killed_process_did_not_sync_is_answered_as_stored_once_it_is(
    tmp_path: Path, sync: str
) -> None:
    """The next process can read it, and takes the copy of it that comes for a duplicate."""
    rng = Random(1)  # noqa: S311 (no secret hangs on it)
    killed, left = tmp_path / "killed", tmp_path / "left"
    killed.mkdir()
    left.mkdir()
    with Disk() as disk:
        witness = Witness(disk, killed / FILE, rng)
        witness.open()
        fail_sync(disk, 1)
        with pytest.raises(OutboxError):
            witness.add([arrival("a"), arrival("b", fault=FAULT)])
        until = next(n for n, op in enumerate(disk.operations) if op.deed is Deed.SYNC_FAILED)
        operations = disk.operations[: until + (sync == "failed")]
        be_well(disk)
        witness.close()
    kill(operations, left)
    with Disk(operations) as disk:
        witness = Witness(disk, left / FILE, rng)
        witness.open()
        witness.add([arrival("a"), arrival("b", fault=FAULT)])
        cut = disk.now
        witness.close()
    broken = [line for _ in range(20) for line in broken_by_cut(witness, disk, cut, rng, tmp_path)]

    assert not broken, "\n".join(broken[:10])


@pytest.mark.timeout(900)
def test_whichever_sync_fails_what_is_answered_as_stored_is_there(
    tmp_path: Path, times: Times
) -> None:
    broken: list[str] = []
    failures = 0
    for permit in range(times(12, 150)):
        seed = time.time_ns()
        rng = Random(seed)  # noqa: S311 (no secret hangs on it)
        number = rng.randrange(1, 120)
        directory = tmp_path / str(permit)
        directory.mkdir()
        with Disk() as disk:
            witness = Witness(disk, directory / FILE, rng)
            witness.open()
            fail_sync(disk, number)
            for step in witness.steps(50):
                with suppress(OutboxError):
                    step()
            end = disk.now
            be_well(disk)
            witness.close()
        failed = [n for n, op in enumerate(disk.operations) if op.deed is Deed.SYNC_FAILED]
        failures += len(failed)
        cuts = [end, *(rng.randrange(failed[0], end) for _ in failed)]
        broken += [
            f"seed {seed}, sync {number} failed: {line}"
            for cut in cuts
            for line in broken_by_cut(witness, disk, cut, rng, directory)
        ]
        shutil.rmtree(directory)

    assert failures
    assert not broken, "\n".join([f"{len(broken)} broken promises", *broken[:10]])


@pytest.mark.timeout(900)
def test_wherever_the_disk_is_full_all_goes_on_as_soon_as_there_is_room(
    tmp_path: Path, times: Times
) -> None:
    """At an insert, at a commit, in the middle of either, in a checkpoint."""
    broken: list[str] = []
    refusals = 0
    for permit in range(times(12, 150)):
        seed = time.time_ns()
        rng = Random(seed)  # noqa: S311 (no secret hangs on it)
        number = rng.randrange(1, 8_000)
        directory = tmp_path / str(permit)
        directory.mkdir()
        with Disk() as disk:
            witness = Witness(disk, directory / FILE, rng)
            witness.open()
            be_full(disk, number)
            for step in witness.steps(50):
                try:
                    step()
                except OutboxError:
                    refusals += 1
                    be_well(disk)
                    step()
            be_well(disk)
            end = disk.now
            problems = [*witness.problems(witness.forwarding, end)]
            witness.close()
        broken += [
            f"seed {seed}, full at write {number}: {line}"
            for line in [*problems, *broken_by_cut(witness, disk, end, rng, directory)]
        ]
        shutil.rmtree(directory)

    assert refusals
    assert not broken, "\n".join([f"{len(broken)} broken promises", *broken[:10]])


def send(port: int, ledger: Ledger, over: threading.Event) -> None:
    """Post until it is over, and wait a little after each refusal."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        while not over.is_set():
            webhook = ledger.next()
            try:
                reply = ask(connection, "POST", PATH, webhook.body)
            except (OSError, HTTPException) as error:
                ledger.faults.append(f"no answer: {error!r}")
                return
            if reply.status != 503:
                ledger.answered(webhook, reply)
                continue
            ledger.refused(webhook)
            if "retry-after" not in reply.headers:
                ledger.faults.append(f"refused with {reply}")
            over.wait(0.05)


@contextmanager
def crowd(port: int, ledger: Ledger) -> Iterator[None]:
    """Senders on as many connections, until the end of the block."""
    over = threading.Event()
    senders = [threading.Thread(target=send, args=(port, ledger, over)) for _ in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        over.set()
        for sender in senders:
            sender.join()


def limit_files(processes: Sequence[int], size: int) -> None:
    """Let no file of the processes grow beyond the size."""
    for process in processes:
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def grows(counted: Callable[[], int], by: int) -> Callable[[], bool]:
    """Tells whether there are so many more than now."""
    goal = counted() + by
    return lambda: counted() >= goal


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits processes that run")
@pytest.mark.parametrize("room", [100_000, 0], ids=["for its log", "not even for its log"])
def test_relay_refuses_while_its_disk_is_full_and_goes_on_afterwards(
    sqlite_store: SqliteStore, room: int, times: Times
) -> None:
    seed = time.time_ns()
    ledger = Ledger(Random(seed))  # noqa: S311 (no secret hangs on it)
    log = sqlite_store.path.with_name(LOG)
    with SegmentServer() as server, RelayProcess(sqlite_store, server.url) as relay:
        server.judge = well
        forwarder = relay.forwarder()
        processes = [os.getpgid(forwarder), forwarder]
        with crowd(relay.port, ledger):
            for _ in range(times(1, 15)):
                ledger.await_answers(1_000)
                limit_files(processes, log.stat().st_size + room if room else 4_096)
                full = within(60, grows(lambda: ledger.refusals, 200))
                limit_files(processes, resource.RLIM_INFINITY)
                again = within(5, grows(lambda: ledger.answers, 100))

                assert (full, again) == (True, True), f"seed {seed}: {ledger.faults[:3]}"
        drained = within(30, lambda: not pending(sqlite_store))
        same = relay.forwarder() == forwarder
        relay.terminate()
        exit_code = relay.wait(20)
    broken = ledger.broken_promises(sqlite_store, server)

    assert not broken, "\n".join([f"seed {seed}: {len(broken)} broken promises", *broken[:10]])
    assert (drained, same, exit_code) == (True, True, 0)

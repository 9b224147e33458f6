import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.errors import OutboxError
from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.receiver.committer import (
    LARGEST_GROUP,
    MAX_WAITING_BYTES,
    WAIT_SECONDS,
    Committer,
    StoreResult,
)
from tests.harness.processes import run_sql, stored


class WatchedOutbox(SqliteOutbox):
    """A real outbox that tells what it is given and can be made to wait.

    Attributes:
        groups: the size of each group it was given.
        busy: set while it waits.
        free: it waits for this before it stores anything.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.groups: list[int] = []
        self.busy = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        self.groups.append(len(arrivals))
        self.busy.set()
        assert self.free.wait(30)
        return super().add(arrivals)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[WatchedOutbox]:
    outbox = WatchedOutbox(path)
    yield outbox
    outbox.close()


def arrival(name: object, *, body: bytes = b"{}") -> Arrival:
    return Arrival("vero", "segment", f"vero-{name}", datetime.now(UTC), body)


class Loop(asyncio.SelectorEventLoop):
    """An event loop, the time of which a test can move on.

    Attributes:
        skipped: seconds.
    """

    skipped = 0.0

    def time(self) -> float:
        """The time by which it does what is due."""
        return super().time() + self.skipped


def wait_too_long() -> None:
    """Let as much time pass as a webhook waits."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop.skipped += WAIT_SECONDS


def run(
    outbox: WatchedOutbox,
    scenario: Callable[[Committer], Awaitable[None]],
) -> None:
    """Play the scenario with a running intake."""

    async def play() -> None:
        committer = Committer(outbox)
        committer.start()
        try:
            async with asyncio.timeout(30):
                await scenario(committer)
        finally:
            outbox.free.set()
            await committer.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(play())


async def store(committer: Committer, arrival: Arrival) -> bool:
    """Store one arrival and hear of it."""
    heard: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()

    def told(new: StoreResult) -> None:
        if not heard.done():
            heard.set_result(new)

    committer.store(arrival, told)
    new = await heard
    if isinstance(new, OutboxError):
        raise new
    return new


async def queued(
    outbox: WatchedOutbox, committer: Committer, arrivals: Sequence[Arrival]
) -> list[asyncio.Task[bool]]:
    """The arrivals' stores, the first of which waits in the outbox and the others behind it."""
    outbox.busy.clear()
    outbox.free.clear()
    first = asyncio.create_task(store(committer, arrivals[0]))
    await asyncio.to_thread(outbox.busy.wait, 30)
    others = [asyncio.create_task(store(committer, arrival)) for arrival in arrivals[1:]]
    await asyncio.sleep(0)  # each runs up to where it waits
    return [first, *others]


def test_a_lone_webhook_is_committed_at_once(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        for name in range(3):
            assert await store(committer, arrival(name))
            assert len(stored(path)) == name + 1

    run(outbox, scenario)

    assert outbox.groups == [1, 1, 1]


def test_a_crowd_shares_a_commit(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        crowd = await queued(outbox, committer, [arrival(name) for name in range(51)])
        outbox.free.set()

        assert await asyncio.gather(*crowd) == [True] * 51

    run(outbox, scenario)

    assert outbox.groups == [1, 50]
    assert len(stored(path)) == 51


def test_a_commit_has_an_end(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        count = 2 * LARGEST_GROUP + 2
        crowd = await queued(outbox, committer, [arrival(name) for name in range(count)])
        outbox.free.set()
        await asyncio.gather(*crowd)

    run(outbox, scenario)

    assert outbox.groups == [1, LARGEST_GROUP, LARGEST_GROUP, 1]


def test_nobody_is_told_before_the_commit(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        crowd = await queued(outbox, committer, [arrival(1), arrival(2)])

        assert not any(waiting.done() for waiting in crowd)

    run(outbox, scenario)


def test_each_is_told_whether_it_was_new(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        names = ("first", "same", "same", "first", "other")
        crowd = await queued(outbox, committer, [arrival(name) for name in names])
        outbox.free.set()

        assert await asyncio.gather(*crowd) == [True, True, False, False, True]

    run(outbox, scenario)


def test_a_failure_reaches_everyone_in_the_group_and_no_one_after_it(
    outbox: WatchedOutbox, path: Path
) -> None:
    async def scenario(committer: Committer) -> None:
        run_sql(path, "ALTER TABLE entries RENAME TO away")
        crowd = await queued(outbox, committer, [arrival(name) for name in range(10)])
        outbox.free.set()
        told = await asyncio.gather(*crowd, return_exceptions=True)
        run_sql(path, "ALTER TABLE away RENAME TO entries")

        assert [type(answer) for answer in told] == [OutboxError] * 10
        assert await store(committer, arrival(1))

    run(outbox, scenario)


class FaultyOutbox(WatchedOutbox):
    """Fails once as no outbox should."""

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        if not self.groups:
            self.groups.append(len(arrivals))
            raise KeyError("a fault of relay's own")
        return super().add(arrivals)


def test_a_fault_of_relays_own_is_told_and_does_not_stop_the_others(path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        with pytest.raises(OutboxError, match="KeyError"):
            await store(committer, arrival("first"))

        assert await store(committer, arrival("first"))

    outbox = FaultyOutbox(path)
    run(outbox, scenario)
    outbox.close()


def test_an_outbox_too_far_behind_takes_no_more_until_it_has_caught_up(
    outbox: WatchedOutbox,
) -> None:
    large = arrival("large", body=bytes(MAX_WAITING_BYTES // 8))

    async def scenario(committer: Committer) -> None:
        crowd = await queued(outbox, committer, [large] * 8)
        with pytest.raises(OutboxError, match="too many"):
            await store(committer, arrival("small"))
        outbox.free.set()
        await asyncio.gather(*crowd)

        assert await store(committer, arrival("small"))

    run(outbox, scenario)


def test_a_request_that_has_gone_disturbs_no_other(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        crowd = await queued(outbox, committer, [arrival(name) for name in range(3)])
        crowd[1].cancel()
        await asyncio.wait([crowd[1]])
        outbox.free.set()

        assert await crowd[2]

    run(outbox, scenario)

    assert len(stored(path)) == 3


def test_closing_commits_what_waits(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        crowd = await queued(outbox, committer, [arrival(name) for name in range(20)])
        closing = asyncio.create_task(committer.close())
        await asyncio.sleep(0)
        outbox.free.set()
        await closing

        assert await asyncio.gather(*crowd) == [True] * 20

    run(outbox, scenario)

    assert len(stored(path)) == 20


class Ear:
    """Whom an intake tells.

    Attributes:
        heard: all of it.
        first: set when it hears anything.
    """

    def __init__(self) -> None:
        self.heard: list[StoreResult] = []
        self.first = asyncio.Event()

    def __call__(self, fate: StoreResult) -> None:
        self.heard.append(fate)
        self.first.set()


def test_whoever_has_waited_too_long_is_told_so_once_and_later_ones_are_fine(
    outbox: WatchedOutbox, path: Path
) -> None:
    async def scenario(committer: Committer) -> None:
        ear = Ear()
        crowd = await queued(outbox, committer, [arrival(1), arrival(2)])
        committer.store(arrival(3), ear)
        await asyncio.sleep(0)  # handed over
        wait_too_long()
        late = await asyncio.gather(*crowd, return_exceptions=True)
        await ear.first.wait()
        outbox.free.set()

        assert await store(committer, arrival(4))
        assert [str(error) for error in (*late, *ear.heard)] == [
            "the outbox does not answer in time"
        ] * 3
        # They were stored after all, and the sender's next try finds them.
        assert [await store(committer, arrival(number)) for number in (1, 2, 3)] == [False] * 3
        assert len(stored(path)) == 4

    run(outbox, scenario)


class StuckOutbox(WatchedOutbox):
    """Waits at its third group.

    Attributes:
        stuck: set when it does.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stuck = threading.Event()

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        if len(self.groups) == 2:
            self.free.clear()
            self.stuck.set()
        return super().add(arrivals)


def test_of_those_that_came_together_nobody_is_told_twice(path: Path) -> None:
    outbox = StuckOutbox(path)

    async def scenario(committer: Committer) -> None:
        ears = [Ear() for _ in range(LARGEST_GROUP + 1)]
        await queued(outbox, committer, [arrival("first")])
        for number, ear in enumerate(ears):
            committer.store(arrival(number), ear)
        await asyncio.sleep(0)  # handed over, all of them at once
        outbox.free.set()
        await ears[0].first.wait()
        await asyncio.to_thread(outbox.stuck.wait, 30)
        wait_too_long()
        await ears[-1].first.wait()
        outbox.free.set()

        assert await store(committer, arrival("last"))
        assert [ear.heard for ear in ears[:-1]] == [[True]] * LARGEST_GROUP
        assert [type(fate) for fate in ears[-1].heard] == [OutboxError]

    run(outbox, scenario)
    outbox.close()


def test_one_that_cannot_be_told_keeps_nobody_else_from_being_told(outbox: WatchedOutbox) -> None:
    def gone(_fate: StoreResult) -> None:
        raise ConnectionResetError

    async def scenario(committer: Committer) -> None:
        await queued(outbox, committer, [arrival(1)])
        committer.store(arrival(2), gone)
        for number in (3, 4):
            ear = Ear()
            committer.store(arrival(number), ear)
            await asyncio.sleep(0)  # handed over
            wait_too_long()
            await ear.first.wait()

    run(outbox, scenario)

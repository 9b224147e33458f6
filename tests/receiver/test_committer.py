import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.errors import OutboxError
from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.receiver.committer import (
    LARGEST_GROUP,
    MAX_WAITING_BYTES,
    WAIT_SECONDS,
    Committer,
    StoreResult,
    StoreResults,
)
from tests.harness.stores import run_sql, stored


class WatchedOutbox(SqliteOutbox):
    """A real outbox that records what it is given and can be made to wait.

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
    """An event loop whose clock a test can move on.

    Attributes:
        skipped: seconds.
    """

    skipped = 0.0

    def time(self) -> float:
        """Return the loop's time, with what was skipped."""
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
    """Play the scenario with a running committer."""

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
    """Store one arrival and return its result."""
    result: asyncio.Future[StoreResult] = asyncio.get_running_loop().create_future()

    def on_stored(new: StoreResult) -> None:
        if not result.done():
            result.set_result(new)

    committer.store(arrival, on_stored)
    new = await result
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


def test_simultaneous_webhooks_share_a_commit(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        tasks = await queued(outbox, committer, [arrival(name) for name in range(51)])
        outbox.free.set()

        assert await asyncio.gather(*tasks) == [True] * 51

    run(outbox, scenario)

    assert outbox.groups == [1, 50]
    assert len(stored(path)) == 51


def test_a_commit_group_has_a_largest_size(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        count = 2 * LARGEST_GROUP + 2
        tasks = await queued(outbox, committer, [arrival(name) for name in range(count)])
        outbox.free.set()
        await asyncio.gather(*tasks)

    run(outbox, scenario)

    assert outbox.groups == [1, LARGEST_GROUP, LARGEST_GROUP, 1]


def test_nothing_is_answered_before_the_commit(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        tasks = await queued(outbox, committer, [arrival(1), arrival(2)])

        assert not any(task.done() for task in tasks)

    run(outbox, scenario)


def test_each_result_says_whether_the_arrival_was_new(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        names = ("first", "same", "same", "first", "other")
        tasks = await queued(outbox, committer, [arrival(name) for name in names])
        outbox.free.set()

        assert await asyncio.gather(*tasks) == [True, True, False, False, True]

    run(outbox, scenario)


def test_a_failure_reaches_all_of_its_group_and_nothing_after_it(
    outbox: WatchedOutbox, path: Path
) -> None:
    async def scenario(committer: Committer) -> None:
        run_sql(path, "ALTER TABLE entries RENAME TO away")
        tasks = await queued(outbox, committer, [arrival(name) for name in range(10)])
        outbox.free.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        run_sql(path, "ALTER TABLE away RENAME TO entries")

        assert [type(answer) for answer in results] == [OutboxError] * 10
        assert await store(committer, arrival(1))

    run(outbox, scenario)


async def store_all(committer: Committer, arrivals: Sequence[Arrival]) -> StoreResults:
    """Store the arrivals of one request; return their results."""
    results: asyncio.Future[StoreResults] = asyncio.get_running_loop().create_future()
    committer.store_all(arrivals, results.set_result)
    return await results


def test_the_arrivals_of_a_request_are_stored_in_their_order(
    outbox: WatchedOutbox, path: Path
) -> None:
    names = ("z", "y", "z", "a")

    async def scenario(committer: Committer) -> None:
        assert await store_all(committer, [*map(arrival, names)]) == [True, True, False, True]
        assert await store_all(committer, [arrival("a"), arrival("b")]) == [False, True]

    run(outbox, scenario)

    assert outbox.groups == [4, 2]
    assert [entry.message_id for entry in stored(path)] == ["vero-z", "vero-y", "vero-a", "vero-b"]


def test_the_arrivals_of_a_request_are_never_divided_between_groups(
    outbox: WatchedOutbox,
) -> None:
    half, large = LARGEST_GROUP // 2 + 1, LARGEST_GROUP + 1

    async def scenario(committer: Committer) -> None:
        await queued(outbox, committer, [arrival("first")])
        requests = [
            [arrival((request, number)) for number in range(size)]
            for request, size in enumerate([half, half, 1, large, 1])
        ]
        tasks = [asyncio.create_task(store_all(committer, request)) for request in requests]
        single = asyncio.create_task(store(committer, arrival("last")))
        await asyncio.sleep(0)
        outbox.free.set()

        assert await asyncio.gather(*tasks) == [[True] * len(request) for request in requests]
        assert await single

    run(outbox, scenario)

    assert outbox.groups == [1, half, half + 1, large, 2]


def test_an_error_keeps_all_arrivals_of_a_request_from_being_stored(
    outbox: WatchedOutbox, path: Path
) -> None:
    async def scenario(committer: Committer) -> None:
        run_sql(path, "ALTER TABLE entries RENAME TO away")
        results = await store_all(committer, [arrival(1), arrival(2)])
        run_sql(path, "ALTER TABLE away RENAME TO entries")
        committer.refuse("it is full")
        refused = await store_all(committer, [arrival(1), arrival(2)])

        assert isinstance(results, OutboxError)
        assert isinstance(refused, OutboxError)

    run(outbox, scenario)

    assert not stored(path)


def test_many_small_arrivals_that_wait_count_for_what_they_take(outbox: WatchedOutbox) -> None:
    async def scenario(committer: Committer) -> None:
        await queued(outbox, committer, [arrival("first")])
        one = arrival("small")
        late = await store_all(committer, [one] * (MAX_WAITING_BYTES // len(one.body) // 100))

        assert isinstance(late, OutboxError)
        assert "too many" in str(late)

    run(outbox, scenario)


class FaultyOutbox(WatchedOutbox):
    """An outbox that fails once, with an error that is none of an outbox."""

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        if not self.groups:
            self.groups.append(len(arrivals))
            raise KeyError("a fault of relay's own")
        return super().add(arrivals)


def test_an_unexpected_error_is_reported_and_does_not_stop_the_committer(path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        with pytest.raises(OutboxError, match="KeyError"):
            await store(committer, arrival("first"))

        assert await store(committer, arrival("first"))

    outbox = FaultyOutbox(path)
    # Shown on a terminal, in colours, a traceback may take longer than a webhook waits.
    with capture_logs() as lines:
        run(outbox, scenario)
    outbox.close()

    assert [line["event"] for line in lines] == ["commit.failed"]


def test_an_outbox_too_far_behind_takes_no_more_until_it_has_caught_up(
    outbox: WatchedOutbox,
) -> None:
    large = arrival("large", body=bytes(MAX_WAITING_BYTES // 8))

    async def scenario(committer: Committer) -> None:
        tasks = await queued(outbox, committer, [large] * 8)
        with pytest.raises(OutboxError, match="too many"):
            await store(committer, arrival("small"))
        outbox.free.set()
        await asyncio.gather(*tasks)

        assert await store(committer, arrival("small"))

    run(outbox, scenario)


def test_a_cancelled_request_does_not_disturb_others(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        tasks = await queued(outbox, committer, [arrival(name) for name in range(3)])
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        outbox.free.set()

        assert await tasks[2]

    run(outbox, scenario)

    assert len(stored(path)) == 3


def test_closing_commits_what_waits(outbox: WatchedOutbox, path: Path) -> None:
    async def scenario(committer: Committer) -> None:
        tasks = await queued(outbox, committer, [arrival(name) for name in range(20)])
        closing = asyncio.create_task(committer.close())
        await asyncio.sleep(0)
        outbox.free.set()
        await closing

        assert await asyncio.gather(*tasks) == [True] * 20

    run(outbox, scenario)

    assert len(stored(path)) == 20


class Callback:
    """A callback of the committer that keeps its results.

    Attributes:
        results: all of them.
        called: set with the first.
    """

    def __init__(self) -> None:
        self.results: list[StoreResult] = []
        self.called = asyncio.Event()

    def __call__(self, result: StoreResult) -> None:
        self.results.append(result)
        self.called.set()


def test_a_wait_that_is_too_long_is_answered_once_and_later_arrivals_are_stored(
    outbox: WatchedOutbox, path: Path
) -> None:
    async def scenario(committer: Committer) -> None:
        callback = Callback()
        tasks = await queued(outbox, committer, [arrival(1), arrival(2)])
        committer.store(arrival(3), callback)
        await asyncio.sleep(0)  # queued
        wait_too_long()
        late = await asyncio.gather(*tasks, return_exceptions=True)
        await callback.called.wait()
        outbox.free.set()

        assert await store(committer, arrival(4))
        assert [str(error) for error in (*late, *callback.results)] == [
            "the outbox does not answer in time"
        ] * 3
        # They were stored after all, and the sender's next try finds them.
        assert [await store(committer, arrival(number)) for number in (1, 2, 3)] == [False] * 3
        assert len(stored(path)) == 4

    run(outbox, scenario)


class StuckOutbox(WatchedOutbox):
    """An outbox that waits at its third group.

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


def test_no_arrival_of_a_batch_is_answered_twice(path: Path) -> None:
    outbox = StuckOutbox(path)

    async def scenario(committer: Committer) -> None:
        callbacks = [Callback() for _ in range(LARGEST_GROUP + 1)]
        await queued(outbox, committer, [arrival("first")])
        for number, callback in enumerate(callbacks):
            committer.store(arrival(number), callback)
        await asyncio.sleep(0)  # queued, all of them at once
        outbox.free.set()
        await callbacks[0].called.wait()
        await asyncio.to_thread(outbox.stuck.wait, 30)
        wait_too_long()
        await callbacks[-1].called.wait()
        outbox.free.set()

        assert await store(committer, arrival("last"))
        assert [callback.results for callback in callbacks[:-1]] == [[True]] * LARGEST_GROUP
        assert [type(result) for result in callbacks[-1].results] == [OutboxError]

    run(outbox, scenario)
    outbox.close()


def test_a_callback_that_fails_does_not_keep_others_from_their_results(
    outbox: WatchedOutbox,
) -> None:
    def gone(_result: StoreResult) -> None:
        raise ConnectionResetError

    async def scenario(committer: Committer) -> None:
        await queued(outbox, committer, [arrival(1)])
        committer.store(arrival(2), gone)
        for number in (3, 4):
            callback = Callback()
            committer.store(arrival(number), callback)
            await asyncio.sleep(0)  # queued
            wait_too_long()
            await callback.called.wait()

    run(outbox, scenario)

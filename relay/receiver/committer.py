"""Stores webhooks by group commit: those that arrive at the same time share one transaction.

A lone webhook is committed at once. Those that arrive during a commit form the next group, so the
slower the disk, the larger the groups. What came in one request is never divided between groups.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Final

import structlog
from msgspec import Struct

from relay.errors import OutboxBrokenError, OutboxError
from relay.metrics.definitions import ANSWER_SECONDS, COMMIT_SECONDS, COMMIT_WEBHOOKS
from relay.outbox.entries import Arrival
from relay.outbox.protocol import Outbox
from relay.process.heartbeats import Heartbeats

LARGEST_GROUP: Final = 1_000
"""The most arrivals in a group, unless one request alone has more."""
MAX_WAITING_BYTES: Final = 64 * 2**20
"""The most bytes of bodies that wait for their commit; beyond it webhooks are refused."""

WAIT_SECONDS: Final = 3.0
"""How long a webhook waits for its commit; senders themselves wait only a few seconds."""

STUCK_SECONDS: Final = 60
"""A commit that takes longer hangs: stores have shorter time limits of their own."""

CLOSE_SECONDS: Final = 5
"""How long the outbox has at the end to commit what waits; none of that was answered 200."""

StoreResult = bool | OutboxError
"""Whether an arrival that is now on disk was new; or the error that kept it from being stored."""
OnStored = Callable[[StoreResult], None]
StoreResults = Sequence[bool] | OutboxError
"""The same for each of the arrivals of one request; one error keeps all of them from being stored.
"""
OnAllStored = Callable[[StoreResults], None]

_EXPIRE_EVERY_SECONDS: Final = 0.5
_FAILURE_SECONDS: Final = 10
_ARRIVAL_BYTES: Final = 500
"""What an arrival takes in memory besides its body; it counts for all but a request's first."""


class _Pending(Struct):
    """The arrivals of one request, and the function to call once with the result.

    Attributes:
        size: bytes that they take while they wait.
        is_single: whether the function takes the result of the only arrival, or else of all.
    """

    arrivals: Sequence[Arrival]
    on_stored: Callable[[Any], None]
    size: int
    is_single: bool = True


class _Batch(Struct):
    """The requests that were queued together, in one iteration of the event loop.

    Attributes:
        started_at: when the first of them came, by `perf_counter`, which is finer than the loop's
            clock.
        queued_at: when they were queued, by the loop's clock.
        queued_count: how many requests were ever queued by then, including these.
        expired: whether its webhooks have been answered 503 because they waited too long.
    """

    started_at: float
    queued_at: float
    queued_count: int
    pending: list[_Pending]
    expired: bool = False


_log = structlog.get_logger()


class Committer:
    """A thread that commits arrivals to the outbox, in groups, for one event loop.

    Args:
        outbox: stores the arrivals.
        broken: called with the reason when the outbox can no longer be used in this process.
    """

    def __init__(
        self, outbox: Outbox, *, broken: Callable[[OutboxBrokenError], object] = lambda _: None
    ) -> None:
        self._outbox = outbox
        self._broken = broken
        self._arriving: list[_Pending] = []
        self._arriving_since = 0.0
        self._queue: SimpleQueue[list[_Pending] | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._unanswered: deque[_Batch] = deque()
        self._queued_count = 0
        self._answered_count = 0
        self._refusal: str | None = None
        self._failure: tuple[float, OutboxError] | None = None
        self._heartbeats = Heartbeats()
        self._thread = threading.Thread(target=self._commit_all, name="committer", daemon=True)

    def start(self) -> None:
        """Begin to store arrivals; call it in the event loop that they come from."""
        self._loop = asyncio.get_running_loop()
        self._expire_waiters()
        self._thread.start()

    def refuse(self, reason: str | None) -> None:
        """Store nothing from now on, for this reason; None stores again."""
        self._refusal = reason

    def report_broken(self, error: OutboxBrokenError) -> None:
        """Report that the outbox can no longer be used in this process."""
        self._broken(error)

    def problem(self) -> str | None:
        """Return why the latest webhooks were not stored; None if they were, or came long ago.

        A failure is forgotten after a while. If it kept senders away for ever, no webhook would
        come to show that it has passed.
        """
        if self._failure and self._loop.time() - self._failure[0] < _FAILURE_SECONDS:
            return f"webhooks are not stored: {self._failure[1]}"
        return None

    def check(self) -> str | None:
        """Return why this process can store nothing more, or None; to be called once a second."""
        if not self._thread.is_alive():
            return "the committing thread has ended"
        if self._heartbeats.check() >= STUCK_SECONDS:
            return f"a commit has been under way for more than {STUCK_SECONDS} s"
        return None

    def store(self, arrival: Arrival, on_stored: OnStored) -> None:
        """Store one arrival; call `on_stored` in the event loop when that is done, or has failed.

        A future in place of the callback would cost five times as much, for every webhook.
        """
        self._store(_Pending((arrival,), on_stored, len(arrival.body)))

    def store_all(self, arrivals: Sequence[Arrival], on_stored: OnAllStored) -> None:
        """Store the arrivals of one request, in their order and in one transaction; see `store`."""
        size = sum(len(arrival.body) for arrival in arrivals)
        size += _ARRIVAL_BYTES * (len(arrivals) - 1)
        self._store(_Pending(arrivals, on_stored, size, is_single=False))

    def _store(self, pending: _Pending) -> None:
        if self._refusal:
            pending.on_stored(OutboxError(self._refusal))
            return
        if self._waiting_bytes + pending.size > MAX_WAITING_BYTES:
            pending.on_stored(OutboxError("too many webhooks wait to be stored"))
            return
        self._waiting_bytes += pending.size
        if not self._arriving:
            # Requests that have already come are handled first, and queued together with this one:
            # the thread is woken once, and not for the first of them alone.
            self._loop.call_soon(self._queue_batch)
            self._arriving_since = time.perf_counter()
        self._arriving.append(pending)

    def _queue_batch(self) -> None:
        self._queued_count += len(self._arriving)
        self._unanswered.append(
            _Batch(self._arriving_since, self._loop.time(), self._queued_count, self._arriving)
        )
        self._queue.put(self._arriving)
        self._arriving = []

    def _expire_waiters(self) -> None:
        """Answer webhooks that have waited too long with an error: the outbox does not answer.

        If the commit still succeeds, the sender's retry is answered `duplicate`.
        """
        self._loop.call_later(_EXPIRE_EVERY_SECONDS, self._expire_waiters)
        late = OutboxError("the outbox does not answer in time")
        for batch in self._unanswered:
            if batch.queued_at > self._loop.time() - WAIT_SECONDS:
                break
            batch.expired = True
            for pending in batch.pending:
                self._answer(pending, late)

    async def close(self) -> None:
        """Commit the arrivals that wait, then end."""
        self._queue_batch()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def _commit_all(self) -> None:
        ended = False
        while not ended:
            pending: list[_Pending] = []
            # Blocks for the first batch only.
            while not ended and not (pending and self._queue.empty()):
                batch = self._queue.get()
                ended = batch is None
                pending += batch or ()
            for group in _groups(pending):
                self._heartbeats.beat(self._thread)
                self._commit(group)
            self._heartbeats.pause(self._thread)

    def _commit(self, group: Sequence[_Pending]) -> None:
        arrivals = [arrival for pending in group for arrival in pending.arrivals]
        started_at = time.perf_counter()
        try:
            new: Sequence[bool] | OutboxError = self._outbox.add(arrivals)
        except OutboxError as error:
            new = error
            if isinstance(error, OutboxBrokenError):
                self._broken(error)
        except Exception as error:  # noqa: BLE001 (this thread must not end while webhooks wait)
            _log.exception("commit.failed")
            new = OutboxError(f"relay failed: {type(error).__name__}")
        COMMIT_SECONDS.observe(time.perf_counter() - started_at)
        COMMIT_WEBHOOKS.observe(len(group))
        # One call wakes every request of the group.
        self._loop.call_soon_threadsafe(self._answer_group, group, new)

    def _answer_group(self, group: Sequence[_Pending], new: Sequence[bool] | OutboxError) -> None:
        self._failure = (self._loop.time(), new) if isinstance(new, OutboxError) else None
        start = 0
        for pending in group:
            self._waiting_bytes -= pending.size
            end = start + len(pending.arrivals)
            if isinstance(new, OutboxError):
                self._answer(pending, new)
            else:
                self._answer(pending, new[start] if pending.is_single else new[start:end])
            start = end
        self._answered_count += len(group)
        while self._unanswered and self._unanswered[0].queued_count <= self._answered_count:
            batch = self._unanswered.popleft()
            if not batch.expired and not self._failure:
                # The clock is read once for the whole batch. An observation takes 0.6 to 0.9 us, of
                # the 90 that a webhook costs.
                seconds = time.perf_counter() - batch.started_at
                for _ in batch.pending:
                    ANSWER_SECONDS.observe(seconds)

    def _answer(self, pending: _Pending, result: StoreResult | StoreResults) -> None:
        """Call `on_stored`, unless that was done before."""
        on_stored, pending.on_stored = pending.on_stored, _do_nothing
        try:
            on_stored(result)
        except Exception:  # noqa: BLE001 (the others of its group must be answered)
            _log.exception("commit.not_answered", message_id=pending.arrivals[0].message_id)


def _groups(requests: Iterable[_Pending]) -> Iterator[list[_Pending]]:
    """Divide the requests into groups of up to `LARGEST_GROUP` arrivals, in their order."""
    group: list[_Pending] = []
    size = 0
    for request in requests:
        if group and size + len(request.arrivals) > LARGEST_GROUP:
            yield group
            group, size = [], 0
        group.append(request)
        size += len(request.arrivals)
    if group:
        yield group


def _do_nothing(_result: StoreResult | StoreResults) -> None:
    """Ignore the result of a request that was answered before."""

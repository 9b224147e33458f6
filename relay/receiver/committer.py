"""Group commit: many webhooks, one transaction, and nobody waits for company.

A lone webhook is committed at once. Those that come while a commit is being synced form the next
group, so groups grow exactly as fast as the disk is slow.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

import structlog
from msgspec import Struct

from relay.errors import OutboxBrokenError, OutboxError
from relay.metrics.definitions import ANSWER_SECONDS, COMMIT_SECONDS, COMMIT_WEBHOOKS
from relay.outbox.entries import Arrival
from relay.outbox.protocol import Outbox
from relay.process.pulse import Pulse

LARGEST_GROUP: Final = 1_000
MAX_WAITING_BYTES: Final = 64 * 2**20
"""Bodies waiting for their commit; beyond it the outbox is too far behind to take more."""

WAIT_SECONDS: Final = 3.0
"""How long a webhook waits for its commit; senders give up after some seconds themselves."""

STUCK_SECONDS: Final = 60
"""A commit that takes longer than this does not end: stores have shorter limits of their own."""

CLOSE_SECONDS: Final = 5
"""How long the outbox has for what waits at the end; it has not been answered 200."""

StoreResult = bool | OutboxError
"""An arrival is on disk, and was new or not; or why it is not stored."""
OnStored = Callable[[StoreResult], None]

_LOOK_SECONDS: Final = 0.5
_FAILURE_SECONDS: Final = 10


class _Pending(Struct):
    """An arrival, and whom to tell: nobody any more once that is done."""

    arrival: Arrival
    told: OnStored


class _Group(Struct):
    """What was handed over together.

    Attributes:
        since: when the first of it came, by a finer clock than the loop's.
        at: when it was handed over.
        count: how many had been by then, these included.
        late: it has been told that it may not be stored.
    """

    since: float
    at: float
    count: int
    waiting: list[_Pending]
    late: bool = False


_log = structlog.get_logger()


class Committer:
    """Stores arrivals in the outbox, from one event loop, through one committing thread.

    Args:
        outbox: where they are stored.
        broken: called with the reason when the outbox will do nothing more in this process.
    """

    def __init__(
        self, outbox: Outbox, *, broken: Callable[[OutboxBrokenError], object] = lambda _: None
    ) -> None:
        self._outbox = outbox
        self._broken = broken
        self._gathered: list[_Pending] = []
        self._gathered_since = 0.0
        self._waiting: SimpleQueue[list[_Pending] | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._handed: deque[_Group] = deque()
        self._handed_count = 0
        self._told_count = 0
        self._closed: str | None = None
        self._failure: tuple[float, OutboxError] | None = None
        self._pulse = Pulse()
        self._thread = threading.Thread(target=self._commit_groups, name="intake", daemon=True)

    def start(self) -> None:
        """Begin to store what the running event loop brings."""
        self._loop = asyncio.get_running_loop()
        self._expire_waiters()
        self._thread.start()

    def refuse(self, reason: str | None) -> None:
        """Store nothing for this reason from now on; None stores again."""
        self._closed = reason

    def give_up(self, error: OutboxBrokenError) -> None:
        """Tell that the outbox will do nothing more in this process."""
        self._broken(error)

    def problem(self) -> str | None:
        """Why the latest webhooks were not stored; None if they were, or came long ago.

        A passing trouble must not keep senders away for ever who alone would show that it passed.
        """
        if self._failure and self._loop.time() - self._failure[0] < _FAILURE_SECONDS:
            return f"webhooks are not stored: {self._failure[1]}"
        return None

    def look(self) -> str | None:
        """Why nothing can be stored any more in this process; to be called once a second."""
        if not self._thread.is_alive():
            return "the committing thread has ended"
        if self._pulse.look() >= STUCK_SECONDS:
            return f"a commit has been under way for more than {STUCK_SECONDS} s"
        return None

    def store(self, arrival: Arrival, told: OnStored) -> None:
        """Store one arrival; `told` is called in the event loop when that is done, or has failed.

        A callback and no future: it is called for every webhook, and costs a fifth.
        """
        if self._closed:
            told(OutboxError(self._closed))
            return
        if self._waiting_bytes + len(arrival.body) > MAX_WAITING_BYTES:
            told(OutboxError("too many webhooks wait to be stored"))
            return
        self._waiting_bytes += len(arrival.body)
        if not self._gathered:
            # All that has come in by now is handled first, and handed over together: the thread
            # is woken once, and not for the first of them alone.
            self._loop.call_soon(self._hand_over)
            self._gathered_since = time.perf_counter()
        self._gathered.append(_Pending(arrival, told))

    def _hand_over(self) -> None:
        self._handed_count += len(self._gathered)
        self._handed.append(
            _Group(self._gathered_since, self._loop.time(), self._handed_count, self._gathered)
        )
        self._waiting.put(self._gathered)
        self._gathered = []

    def _expire_waiters(self) -> None:
        """Tell what has waited too long that it may not be stored: the outbox does not answer.

        Should it be stored after all, the sender's next try is answered as a duplicate.
        """
        self._loop.call_later(_LOOK_SECONDS, self._expire_waiters)
        late = OutboxError("the outbox does not answer in time")
        for handed in self._handed:
            if handed.at > self._loop.time() - WAIT_SECONDS:
                break
            handed.late = True
            for waiting in handed.waiting:
                self._tell_one(waiting, late)

    async def close(self) -> None:
        """Commit what waits, then end."""
        self._hand_over()
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)

    def _commit_groups(self) -> None:
        ended = False
        while not ended:
            waiting: list[_Pending] = []
            # Blocks for the first only.
            while not ended and not (waiting and self._waiting.empty()):
                gathered = self._waiting.get()
                ended = gathered is None
                waiting += gathered or ()
            for start in range(0, len(waiting), LARGEST_GROUP):
                self._pulse.step(self._thread)
                self._commit(waiting[start : start + LARGEST_GROUP])
            self._pulse.rest(self._thread)

    def _commit(self, group: Sequence[_Pending]) -> None:
        arrivals = [waiting.arrival for waiting in group]
        started = time.perf_counter()
        try:
            new: Sequence[bool] | OutboxError = self._outbox.add(arrivals)
        except OutboxError as error:
            new = error
            if isinstance(error, OutboxBrokenError):
                self._broken(error)
        except Exception as error:  # noqa: BLE001 (this thread must not end while webhooks wait)
            _log.exception("intake.failed")
            new = OutboxError(f"relay failed: {type(error).__name__}")
        COMMIT_SECONDS.observe(time.perf_counter() - started)
        COMMIT_WEBHOOKS.observe(len(group))
        # One call wakes every request of the group.
        self._loop.call_soon_threadsafe(self._tell, group, new)

    def _tell(self, group: Sequence[_Pending], new: Sequence[bool] | OutboxError) -> None:
        self._failure = (self._loop.time(), new) if isinstance(new, OutboxError) else None
        for place, waiting in enumerate(group):
            self._waiting_bytes -= len(waiting.arrival.body)
            self._tell_one(waiting, new if isinstance(new, OutboxError) else new[place])
        self._told_count += len(group)
        while self._handed and self._handed[0].count <= self._told_count:
            handed = self._handed.popleft()
            if not handed.late and not self._failure:
                # The clock is read once for all that was handed over together. An observation takes
                # 0.6 to 0.9 us, of the 90 that a webhook costs.
                seconds = time.perf_counter() - handed.since
                for _ in handed.waiting:
                    ANSWER_SECONDS.observe(seconds)

    def _tell_one(self, waiting: _Pending, fate: StoreResult) -> None:
        """Tell it, unless it has been told already."""
        told, waiting.told = waiting.told, _nobody
        try:
            told(fate)
        except Exception:  # noqa: BLE001 (the others must hear of theirs)
            _log.exception("intake.not_told", message_id=waiting.arrival.message_id)


def _nobody(_fate: StoreResult) -> None:
    """Who waited has been told already."""

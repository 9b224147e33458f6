"""Outbox to Segment: claim, map, post, settle.

Dying anywhere in here loses nothing: what was not settled is claimed again, at the latest when its
lease ends, and sent again under the same `messageId`, of which Segment keeps one.
"""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from logging import ERROR, INFO, WARNING
from typing import Final

import structlog
from msgspec import Struct, field

from relay.destinations.segment import MAX_MESSAGES, TIMEOUT_SECONDS, Segment, batches
from relay.errors import (
    BatchRejectedError,
    OutboxBrokenError,
    OutboxError,
    SegmentRefusedError,
    SegmentUnavailableError,
)
from relay.events import DeadReason, Unusable
from relay.metrics.definitions import BATCHES, DELIVERIES, MESSAGES
from relay.outbox.entries import CRASHES_BEFORE_ISOLATION, Clock, Entry, utc_now
from relay.outbox.protocol import Outbox
from relay.process.pulse import Pulse
from relay.routes import Mapping
from relay.sources import Source
from relay.throttle import Permit, Throttle, full_jitter

WORKERS: Final = 4
"""Requests in flight at the most."""
LEASE: Final = timedelta(seconds=60)
LINGER_SECONDS: Final = 0.2
"""How long the first entry waits for company: a request costs as much as a hundred messages."""
STUCK_SECONDS: Final = 90
"""No step takes longer than a lease; half as much again is for a machine that is busy."""
LOOK_SECONDS: Final = 0.05
"""How often the outbox is asked whether anything has changed."""
POLL_SECONDS: Final = 1.0
"""How often due entries are looked for all the same: a lease may have ended."""
CRASHES_IN_ISOLATION: Final = 3
"""So many deaths of processes that had nothing else in hand prove a message guilty of them.

Deaths while it was mapped; and while it was posted, those of a forwarder whose supervisor lived."""

_POST_SECONDS: Final = 3 * TIMEOUT_SECONDS  # how long before a lease ends the last post begins
_OUTBOX_PAUSE_SECONDS: Final = 1.0
_LONGEST_SLEEP_SECONDS: Final = 30.0
_ALL: Final = "all"  # of the workers together

_log = structlog.get_logger()

_LARGE_CLAIM: Final = 2**20  # bytes from which an outbox may have cut it short

_Batch = list[tuple[Entry, bytes]]
_Take = Callable[[], list[Entry]]


def new_lineage() -> int:
    """A number for a process and those that are started in its place, unlike all others."""
    return secrets.randbelow(2**40 - 1) + 1


class _Claim(Struct):
    """What one worker has in hand.

    Attributes:
        permit: to post in; None once there is none.
        ends_at: when its lease ends, by the forwarder's clock.
        entries: all that was claimed.
        batches: still to be posted.
    """

    permit: Permit | None
    ends_at: float
    entries: list[Entry] = []
    batches: deque[_Batch] = field(default_factory=deque)


class Forwarder:
    """Forwards what the outbox holds until it is stopped.

    Args:
        outbox: where entries come from and are settled.
        segment: where they go.
        sources: who can read their bodies; every source, configured or not.
        clock: seconds, monotonic.
        now: the time of day.
        lineage: of this process and those started in its place; see `Outbox.begin_post`.
        sleep: waits for so many seconds; by default cut short by `stop`.
        jitter: how long to wait, of so many seconds at the most.

    Attributes:
        broken: set once the outbox does nothing more in this process.
        problem: why the latest attempt of a worker failed, if not by what Segment answered; None if
            it did not.
        pulse: of its workers. One of them that is silent for `STUCK_SECONDS` hangs; so do all where
            each attempt fails by a fault of relay's own.
    """

    def __init__(  # noqa: PLR0913 (time and chance are given)
        self,
        outbox: Outbox,
        segment: Segment,
        sources: Iterable[Source],
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Clock = utc_now,
        lineage: int | None = None,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._outbox = outbox
        self._segment = segment
        self._mapping = Mapping(sources, segment)
        self._clock = clock
        self._now = now
        self._lineage = new_lineage() if lineage is None else lineage
        self._stopping = threading.Event()
        self._sleep = sleep or self._stopping.wait
        self._jitter = jitter
        self.broken = threading.Event()
        self.problem: str | None = None
        self.pulse = Pulse()
        self._more_is_due = True
        self._suspects_looked_for_at = float("-inf")
        self._untold: deque[Callable[[Throttle, float], None]] = deque()
        self._latest: tuple[str, float] | None = None
        self._claiming = threading.Lock()
        self._claimed: dict[int, Entry] = {}
        self._workers = [
            threading.Thread(target=self._work, name=f"forwarder-{number}", daemon=True)
            for number in range(WORKERS)
        ]

    def start(self) -> None:
        """Begin to forward, what an earlier process left first."""
        for worker in self._workers:
            worker.start()

    def stop_soon(self) -> None:
        """Claim nothing more; what is being posted goes on."""
        self._stopping.set()

    def stop(self, timeout: float) -> None:
        """Stop; when this returns, what was claimed is settled, or due again.

        Args:
            timeout: seconds that posts under way have to be answered.
        """
        self.stop_soon()
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            if worker.is_alive():
                worker.join(max(0, deadline - time.monotonic()))
        unsettled = list(self._claimed.values())
        if unsettled:
            self._release(unsettled)

    def _release(self, unsettled: Sequence[Entry]) -> None:
        try:
            self._outbox.release(unsettled)
        except OutboxError as error:  # they are due again when their lease ends
            _log.error("forward.not_released", messages=len(unsettled), error=str(error))
        else:
            _log.info("forward.released", messages=len(unsettled))

    def step(self) -> bool:
        """Forward one claim, waiting for a turn first; False when nothing was due."""
        with self._claiming:
            claim = self._claim(self._take_due) or self._claim_suspect()
        if claim is not None:
            self._forward(claim)
        return claim is not None

    def _work(self) -> None:
        worker = threading.get_ident()
        self.pulse.step(_ALL)
        while not self._stopping.is_set():
            try:
                self.pulse.rest(worker)
                # One worker at a time claims and maps; the others post. Mapping is Python's own
                # work: two at it would only get in each other's way.
                with self._claiming:
                    self.pulse.step(worker)
                    if not self._more_is_due:
                        self._await_entries()
                    self._try_suspects()
                    claim = self._claim(self._take_due)
                if claim is not None:
                    self._forward(claim)
                self._get_on()
            except OutboxError as error:
                self._get_on(str(error))
                _log.error("forward.outbox_failed", error=str(error))
                if isinstance(error, OutboxBrokenError):
                    self.broken.set()
                self._sleep(_OUTBOX_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 (a fault of relay's own must not end the worker)
                self.problem = f"relay failed: {type(error).__name__}"
                _log.exception("forward.failed")
                self._sleep(_OUTBOX_PAUSE_SECONDS)

    def _get_on(self, problem: str | None = None) -> None:
        """Show that this worker does not hang, and that not all fail by a fault of relay's own."""
        self.problem = problem
        self.pulse.step(threading.get_ident())
        self.pulse.step(_ALL)

    def _take_due(self) -> list[Entry]:
        entries = self._outbox.claim("segment", MAX_MESSAGES, lease=LEASE)
        claimed = sum(len(entry.body) for entry in entries)
        self._more_is_due = len(entries) == MAX_MESSAGES or claimed > _LARGE_CLAIM
        return entries

    def _take_suspect(self) -> list[Entry]:
        return self._outbox.claim_suspect("segment", lease=LEASE)

    def _try_suspects(self) -> None:
        """Forward what processes have died over before, each with nothing else in hand.

        Should this one die, too, no other entry is suspected for it.
        """
        if self._clock() < self._suspects_looked_for_at + POLL_SECONDS:
            return
        self._suspects_looked_for_at = self._clock()
        if not self._outbox.has_suspects("segment"):
            return
        while not self._stopping.is_set():
            if self._claimed:  # by the other workers, which claim no more meanwhile
                self._get_on()
                self._sleep(LOOK_SECONDS)
                continue
            claim = self._claim_suspect()
            if claim is None:
                return
            _log.warning("forward.suspect", message_id=claim.entries[0].message_id)
            self._forward(claim)

    def _claim_suspect(self) -> _Claim | None:
        claim = self._claim(self._take_suspect)
        if claim is None or not claim.batches:
            return claim
        ((suspect, encoded),) = claim.batches.pop()
        try:
            # It has survived the mapping. That this process ends while Segment is silent, with all
            # of relay most likely, is not to be held against it.
            suspect = self._outbox.begin_post(suspect, self._lineage)
        except OutboxError:
            self._end(claim)
            raise
        self._claimed[suspect.id] = suspect
        claim.entries = [suspect]
        claim.batches.append([(suspect, encoded)])
        return claim

    def _claim(self, take: _Take) -> _Claim | None:
        """A turn to post in, and what to post; None when nothing is due."""
        permit = self._await_turn()
        if permit is None:
            return None
        claim = _Claim(permit=permit, ends_at=self._clock() + LEASE.total_seconds())
        try:
            claim.entries = take()
            self._claimed.update((entry.id, entry) for entry in claim.entries)
            claim.batches.extend(batches(self._encoded(claim.entries)))
        except OutboxError:
            self._end(claim)
            raise
        if not claim.batches:
            self._end(claim)
        return claim if claim.entries else None

    def _await_entries(self) -> None:
        """Return when a batch is worth claiming, or at the latest when it is time to poll."""
        poll_at = self._clock() + POLL_SECONDS
        while not self._stopping.is_set() and self._clock() < poll_at:
            if self._outbox.changed("segment"):
                self._sleep(LINGER_SECONDS)
                return
            self._sleep(LOOK_SECONDS)

    def _await_turn(self, until: float = float("inf")) -> Permit | None:
        """A turn; None when relay is stopping or there is none before then."""
        while not self._stopping.is_set():
            self._tell_late()
            permit = self._outbox.throttle(self._take_turn)
            if isinstance(permit, Permit):
                return permit
            if self._clock() + permit > until:
                return None
            self._get_on()
            self._sleep(min(permit, _LONGEST_SLEEP_SECONDS))
        return None

    def _take_turn(self, throttle: Throttle, now: float) -> Permit | float:
        """Take one, and tell of the latest answer, which is news to those who only look."""
        latest, self._latest = self._latest, None
        if latest:
            answer, at = latest
            throttle.heard(answer, now - (self._clock() - at))
        return throttle.take(now)

    def _forward(self, claim: _Claim) -> None:
        """Post the batches and settle their entries; what cannot be sent now is released."""
        try:
            while claim.batches and claim.permit:
                batch = claim.batches.popleft()
                entries = [entry for entry, _ in batch]
                permit, claim.permit = claim.permit, None
                self.pulse.step(threading.get_ident())
                try:
                    self._post(batch, permit)
                except BatchRejectedError as error:
                    self._answered(permit)
                    if len(batch) == 1:
                        detail = f"{error}: {error.said}"
                        self._dead_letter(entries[0], Unusable(DeadReason.REJECTED, detail))
                    else:
                        # Halving finds the guilty messages, and the rest goes through.
                        middle = len(batch) // 2
                        claim.batches.extendleft((batch[middle:], batch[:middle]))
                else:
                    # Dying before this line sends the batch again, under the same ids.
                    self._ack(entries, claim.ends_at)
                    self._answered(permit)
                if claim.batches:
                    claim.permit = self._await_turn(claim.ends_at - _POST_SECONDS)
        except (SegmentUnavailableError, SegmentRefusedError) as error:
            # Nothing more can be sent now.
            self._settled(entries)
            self._outbox.release(entries, str(error))
        finally:
            self._end(claim)

    def _ack(self, entries: Sequence[Entry], ends_at: float) -> None:
        """Settle what Segment has taken; should the outbox be away, for as long as it is ours."""
        while True:
            try:
                self._outbox.ack(entries)
            except OutboxError as error:
                if self._stopping.is_set() or self._clock() + _OUTBOX_PAUSE_SECONDS > ends_at:
                    raise
                self._get_on(str(error))
                _log.error("forward.not_settled", messages=len(entries), error=str(error))
                self._sleep(_OUTBOX_PAUSE_SECONDS)
            else:
                self._settled(entries)
                self._observe(entries)
                return

    def _observe(self, delivered: Sequence[Entry]) -> None:
        now = self._now()
        for entry in delivered:  # a clock may have been put back since
            DELIVERIES.observe(max(0, (now - entry.received_at).total_seconds()))

    def _end(self, claim: _Claim) -> None:
        """Give back the turn, if it was not used, and what was not settled."""
        if claim.permit:
            self._give_back(claim.permit)
        unsettled = [entry for entry in claim.entries if entry.id in self._claimed]
        if unsettled:
            self._settled(unsettled)
            self._outbox.release(unsettled)

    def _encoded(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """The entries, each with its message; buried is what has none."""
        for entry in entries:
            if entry.crashes >= CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION:
                detail = f"relay died {CRASHES_IN_ISOLATION} times with nothing else in hand"
                self._dead_letter(entry, Unusable(DeadReason.POISON, detail))
                continue
            mapped = self._mapping.map(entry)
            if isinstance(mapped, Unusable):
                self._dead_letter(entry, mapped)
            else:
                yield entry, mapped.encoded

    def _post(self, batch: _Batch, permit: Permit) -> None:
        """Post one batch in this turn; tell the log how it went, and the pace if it failed."""
        started = self._clock()
        retries = max(entry.attempts for entry, _ in batch) - 1
        answer, event, level = "none", "forward.failed", ERROR
        try:
            self._segment.post([message for _, message in batch], retry_count=retries)
        except SegmentUnavailableError as error:
            answer, event, level = str(error), "forward.unavailable", WARNING
            after = error.retry_after
            self._tell(
                lambda throttle, now: throttle.failed(permit, now, answer, after, self._jitter)
            )
            raise
        except SegmentRefusedError as error:
            answer, event, level = str(error), "forward.held", ERROR
            self._tell(lambda throttle, now: throttle.refused(permit, now, answer))
            raise
        except BatchRejectedError as error:
            answer, event, level = str(error), "forward.rejected", WARNING
            raise
        else:
            answer, event, level = "accepted", "forward.sent", INFO
        finally:
            self._latest = answer, self._clock()
            milliseconds = round((self._clock() - started) * 1000)
            _log.log(level, event, messages=len(batch), milliseconds=milliseconds, answer=answer)
            word = answer.partition(" ")[0]  # a status, or the kind of a network error
            BATCHES.labels(word).inc()
            MESSAGES.labels(word).inc(len(batch))

    def _answered(self, permit: Permit) -> None:
        """Segment is there and knows us, which is news only to those who wait for a probe."""
        if permit.probe:
            self._tell(lambda throttle, _: throttle.succeeded(permit))

    def _give_back(self, permit: Permit) -> None:
        self._tell(lambda throttle, _: throttle.give_back(permit))

    def _tell(self, news: Callable[[Throttle, float], None]) -> None:
        """Change the pace; should the outbox be away, once it is back: others wait for a probe."""
        try:
            self._outbox.throttle("segment", news)
        except OutboxError as error:
            self._untold.append(news)
            _log.warning("forward.pace_not_told", error=str(error))

    def _tell_late(self) -> None:
        while self._untold:
            news = self._untold.popleft()
            try:
                self._outbox.throttle("segment", news)
            except OutboxError:
                self._untold.appendleft(news)
                raise

    def _dead_letter(self, entry: Entry, fault: Unusable) -> None:
        self._outbox.dead_letter(entry, fault)
        self._settled([entry])
        if fault.reason is DeadReason.IGNORED:  # as somebody has set it
            _log.info("forward.ignored", message_id=entry.message_id, detail=fault.detail)
        else:
            _log.warning("forward.buried", message_id=entry.message_id, reason=fault.reason)

    def _settled(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._claimed.pop(entry.id, None)

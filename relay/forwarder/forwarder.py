"""Forwards entries to one destination: claims, renders, sends and settles them.

A crash at any point loses nothing. An entry that was not settled is claimed again, at the latest
when its lease ends, and sent again under the same id; the destination keeps one copy of an id.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from logging import ERROR, INFO, WARNING
from typing import Final

import structlog

from relay.backoff import full_jitter
from relay.destinations import Destination
from relay.errors import (
    OutboxBrokenError,
    OutboxError,
    RefusedError,
    RejectedError,
    UnavailableError,
)
from relay.events import DeadReason, Unusable
from relay.forwarder.claims import Batch, Claim, Claims
from relay.forwarder.permits import Permits
from relay.forwarder.unsettled import UnsettledEntries
from relay.metrics.definitions import BATCHES, DELIVERY_SECONDS, MESSAGES, start_at_zero
from relay.outbox.entries import Clock, Entry, utc_now
from relay.outbox.protocol import Outbox
from relay.process.heartbeats import Heartbeats
from relay.routes import Routes
from relay.throttle import Permit

LINGER_SECONDS: Final = 0.2
"""How long the first entry waits for others; a request costs as much as a hundred messages."""
STUCK_SECONDS: Final = 90
"""No step takes longer than a lease; half a lease more allows for a busy machine."""
LOOK_SECONDS: Final = 0.05
"""How often the outbox is asked whether anything has changed."""
POLL_SECONDS: Final = 1.0
"""How often due entries are looked for even if nothing has changed: a lease may have ended."""
_TIMEOUTS_BEFORE_LEASE_END: Final = 3  # a lease with less time left than this sends nothing more
_OUTBOX_PAUSE_SECONDS: Final = 1.0
_LONGEST_SLEEP_SECONDS: Final = 30.0
_ALL: Final = "all"  # of the workers together

_log = structlog.get_logger()


def new_lineage() -> int:
    """Return a random number that a process shares with those that are started in its place."""
    return secrets.randbelow(2**40 - 1) + 1


class Forwarder:
    """A forwarder of one destination's entries, which works in threads until it is stopped.

    Args:
        outbox: where entries come from and are settled.
        destination: where they go.
        routes: render them; all routes, as an entry may come from any source.
        unsettled: shared by all forwarders of this process.
        clock: seconds, monotonic.
        now: the time of day.
        lineage: of this process and those started in its place; see `Outbox.begin_post`.
        sleep: waits for so many seconds; by default cut short by `stop`.
        jitter: takes a longest wait and returns a wait, in seconds.

    Attributes:
        broken: set once the outbox can no longer be used in this process.
        problem: why the latest attempt of a worker failed; None if it did not fail, or failed by
            the destination's answer.
        heartbeats: heartbeats of its workers. A worker that is silent for `STUCK_SECONDS` hangs.
            If every attempt fails by a fault in relay itself, all workers count as hanging.
    """

    def __init__(  # noqa: PLR0913 (time and chance are given)
        self,
        outbox: Outbox,
        destination: Destination,
        routes: Routes,
        *,
        unsettled: UnsettledEntries | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Clock = utc_now,
        lineage: int | None = None,
        sleep: Callable[[float], object] | None = None,
        jitter: Callable[[float], float] = full_jitter,
    ) -> None:
        self._outbox = outbox
        self._destination = destination
        self._name = destination.name
        self._limits = destination.limits
        self._unsettled = UnsettledEntries() if unsettled is None else unsettled
        self._clock = clock
        self._now = now
        self._stopping = threading.Event()
        self._sleep = sleep or self._stopping.wait
        self._permits = Permits(
            outbox, self._name, self._limits.requests_per_second, clock=clock, jitter=jitter
        )
        start_at_zero(self._name)
        self._claims = Claims(
            outbox,
            destination,
            routes,
            unsettled=self._unsettled,
            permits=self._permits,
            clock=clock,
            lineage=new_lineage() if lineage is None else lineage,
        )
        self.broken = threading.Event()
        self.problem: str | None = None
        self.heartbeats = Heartbeats()
        self._suspects_looked_for_at = float("-inf")
        self._claiming = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, name=f"{self._name}-{number}", daemon=True)
            for number in range(self._limits.in_flight)
        ]

    def start(self) -> None:
        """Begin to forward; what an earlier process left comes first."""
        for worker in self._workers:
            worker.start()

    def stop_soon(self) -> None:
        """Claim nothing more; requests under way go on."""
        self._stopping.set()

    def stop(self, timeout: float) -> None:
        """Stop; when this returns, what was claimed is settled, or due again.

        Args:
            timeout: seconds that requests under way have to be answered.
        """
        self.stop_soon()
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            if worker.is_alive():
                worker.join(max(0, deadline - time.monotonic()))
        unsettled = self._unsettled.of(self._name)
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
        """Forward one claim, waiting for a permit first; return False if nothing was due."""
        with self._claiming:
            claim = self._claim(self._claims.take_due) or self._claim(self._claims.take_suspect)
        if claim is not None:
            self._forward(claim)
        return claim is not None

    def _work(self) -> None:
        worker = threading.get_ident()
        self.heartbeats.beat(_ALL)
        while not self._stopping.is_set():
            try:
                self.heartbeats.pause(worker)
                # One worker at a time claims and renders; the others send. Rendering holds
                # Python's global lock, so a second thread would only slow it down.
                with self._claiming:
                    self.heartbeats.beat(worker)
                    if not self._claims.more_are_due:
                        self._await_entries()
                    self._try_suspects()
                    claim = self._claim(self._claims.take_due)
                if claim is not None:
                    self._forward(claim)
                self._get_on()
            except OutboxError as error:
                self._get_on(str(error))
                _log.error("forward.outbox_failed", destination=self._name, error=str(error))
                if isinstance(error, OutboxBrokenError):
                    self.broken.set()
                self._sleep(_OUTBOX_PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 (a fault in relay itself must not end the worker)
                self.problem = f"relay failed: {type(error).__name__}"
                _log.exception("forward.failed", destination=self._name)
                self._sleep(_OUTBOX_PAUSE_SECONDS)

    def _get_on(self, problem: str | None = None) -> None:
        """Note that this worker does not hang, and that not all fail by a fault in relay itself."""
        self.problem = problem
        self.heartbeats.beat(threading.get_ident())
        self.heartbeats.beat(_ALL)

    def _try_suspects(self) -> None:
        """Forward the suspects: entries that were claimed when processes crashed.

        Each is forwarded while nothing else is claimed. If this process crashes, too, only that
        entry is suspected.
        """
        if self._clock() < self._suspects_looked_for_at + POLL_SECONDS:
            return
        self._suspects_looked_for_at = self._clock()
        if not self._outbox.has_suspects(self._name):
            return
        while not self._stopping.is_set():
            if self._unsettled.of(self._name):  # of other workers, which claim nothing meanwhile
                self._get_on()
                self._sleep(LOOK_SECONDS)
            elif not self._try_suspect():
                return
            elif self._unsettled.has_waiters:  # between two suspects, the others may claim
                self._sleep(2 * LOOK_SECONDS)

    def _try_suspect(self) -> bool:
        """Forward one suspect; return False if there is none, or another forwarder tries one."""
        permit = self._await_permit()
        if permit is None:
            return False
        # Not before the permit: while this destination gives none, the others must not wait.
        with self._unsettled.isolating(self._name) as isolated:
            if isolated and self._await_settled():
                claim = self._claims.take_suspect(permit)
            else:
                self._permits.release(permit)
                claim = None
            if claim is None:
                return False
            _log.warning("forward.suspect", message_id=claim.entries[0].message_id)
            self._forward(claim)
        return True

    def _await_settled(self) -> bool:
        """Return True once the other forwarders of this process have settled what they claimed.

        Return False if relay is stopping.
        """
        while self._unsettled and not self._stopping.is_set():
            self._get_on()
            self._sleep(LOOK_SECONDS)
        return not self._stopping.is_set()

    def _claim(self, take: Callable[[Permit], Claim | None]) -> Claim | None:
        """Return a claim with a permit to send it; None if there is nothing to send."""
        self._await_others()
        permit = self._await_permit()
        return take(permit) if permit else None

    def _await_others(self) -> None:
        """Return when no other forwarder of this process has isolated a suspect."""
        if not self._unsettled.is_isolated_from(self._name):
            return
        with self._unsettled.waiting():
            while self._unsettled.is_isolated_from(self._name) and not self._stopping.is_set():
                self._get_on()
                self._sleep(LOOK_SECONDS)

    def _await_entries(self) -> None:
        """Return when there is enough for a batch, or when it is time to poll."""
        poll_at = self._clock() + POLL_SECONDS
        while not self._stopping.is_set() and self._clock() < poll_at:
            if self._outbox.changed(self._name):
                self._sleep(LINGER_SECONDS)
                return
            self._sleep(LOOK_SECONDS)

    def _await_permit(self, until: float = float("inf")) -> Permit | None:
        """Return a permit; None if relay is stopping, or if there is none before `until`."""
        while not self._stopping.is_set():
            permit = self._permits.acquire()
            if isinstance(permit, Permit):
                return permit
            if self._clock() + permit > until:
                return None
            self._get_on()
            self._sleep(min(permit, _LONGEST_SLEEP_SECONDS))
        return None

    def _forward(self, claim: Claim) -> None:
        """Send the batches and settle their entries; release what cannot be sent now."""
        last_start = claim.ends_at - _TIMEOUTS_BEFORE_LEASE_END * self._limits.timeout_seconds
        try:
            while claim.batches and claim.permit:
                batch = claim.batches.popleft()
                entries = [entry for entry, _ in batch]
                permit, claim.permit = claim.permit, None
                self.heartbeats.beat(threading.get_ident())
                try:
                    self._send(batch, permit)
                except RejectedError as error:
                    self._permits.succeeded(permit)
                    if len(batch) == 1:
                        detail = f"{error}: {error.text}"
                        self._claims.dead_letter(entries[0], Unusable(DeadReason.REJECTED, detail))
                    else:
                        # Halving finds the guilty messages, and the rest goes through.
                        middle = len(batch) // 2
                        claim.batches.extendleft((batch[middle:], batch[:middle]))
                else:
                    # A crash before this line sends the batch again, under the same ids.
                    self._ack(entries, claim.ends_at)
                    self._permits.succeeded(permit)
                if claim.batches:
                    claim.permit = self._await_permit(last_start)
        except (UnavailableError, RefusedError) as error:
            # Nothing more can be sent now.
            self._unsettled.settle(entries)
            self._outbox.release(entries, str(error))
        finally:
            self._claims.end(claim)

    def _ack(self, entries: Sequence[Entry], ends_at: float) -> None:
        """Settle delivered entries; if the outbox is away, retry for as long as they are leased."""
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
                self._unsettled.settle(entries)
                self._observe(entries)
                return

    def _observe(self, delivered: Sequence[Entry]) -> None:
        now = self._now()
        seconds = DELIVERY_SECONDS.labels(self._name)
        for entry in delivered:  # a clock may have been put back since
            seconds.observe(max(0, (now - entry.received_at).total_seconds()))

    def _send(self, batch: Batch, permit: Permit) -> None:
        """Send one batch with this permit; log and count the answer, report failures."""
        started = self._clock()
        attempt = max(entry.attempts for entry, _ in batch)
        answer, event, level = "none", "forward.failed", ERROR
        try:
            self._destination.send([message for _, message in batch], attempt=attempt)
        except UnavailableError as error:
            answer, event, level = str(error), "forward.unavailable", WARNING
            self._permits.failed(permit, answer, error.retry_after)
            raise
        except RefusedError as error:
            answer, event, level = str(error), "forward.held", ERROR
            self._permits.refused(permit, answer)
            raise
        except RejectedError as error:
            answer, event, level = str(error), "forward.rejected", WARNING
            raise
        else:
            answer, event, level = "accepted", "forward.sent", INFO
        finally:
            self._permits.record(answer)
            _log.log(
                level,
                event,
                destination=self._name,
                messages=len(batch),
                milliseconds=round((self._clock() - started) * 1000),
                answer=answer,
            )
            word = answer.partition(" ")[0]  # a status, or the kind of a network error
            BATCHES.labels(self._name, word).inc()
            MESSAGES.labels(self._name, word).inc(len(batch))

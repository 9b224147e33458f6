"""Sends the batches of claims, and settles their entries by the destination's answers."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from logging import ERROR, INFO, WARNING
from typing import Final

import structlog

from relay.destinations import Destination
from relay.errors import OutboxError, RefusedError, RejectedError, UnavailableError
from relay.events import DeadReason, Unusable
from relay.forwarder.batches import Batch
from relay.forwarder.claims import Claim, Claims
from relay.forwarder.failures import Failures
from relay.forwarder.permits import Permits
from relay.forwarder.progress import Progress
from relay.forwarder.repeats import may_have_arrived_at
from relay.metrics.definitions import BATCHES, DELIVERY_SECONDS, MESSAGES
from relay.outbox.entries import Clock, Entry
from relay.outbox.protocol import Outbox
from relay.throttle import Permit

OUTBOX_PAUSE_SECONDS: Final = 1.0
_TIMEOUTS_BEFORE_LEASE_END: Final = 3  # a lease with less time left than this sends nothing more

_log = structlog.get_logger()


class Delivery:
    """Sends what is claimed, one batch after the other, each with a permit of its own.

    Args:
        outbox: says what became of earlier attempts.
        destination: where batches go.
        claims: settles entries.
        permits: the destination's permits.
        failures: settles what the destination does not take now.
        progress: how the workers get on.
        await_permit: returns a permit; None if there is none before a time.
        clock: seconds, monotonic.
        now: the time of day.
    """

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        outbox: Outbox,
        destination: Destination,
        *,
        claims: Claims,
        permits: Permits,
        failures: Failures,
        progress: Progress,
        await_permit: Callable[[float], Permit | None],
        clock: Callable[[], float],
        now: Clock,
    ) -> None:
        self._outbox = outbox
        self._destination = destination
        self._name = destination.name
        self._limits = destination.limits
        self._claims = claims
        self._permits = permits
        self._failures = failures
        self._progress = progress
        self._await_permit = await_permit
        self._clock = clock
        self._now = now

    def deliver(self, claim: Claim) -> None:
        """Send the batches and settle their entries; release what cannot be sent now."""
        last_start = claim.ends_at - _TIMEOUTS_BEFORE_LEASE_END * self._limits.timeout_seconds
        try:
            while claim.batches:
                if claim.batches[0].messages and claim.permit is None:
                    claim.permit = self._await_permit(last_start)
                    if claim.permit is None:
                        return
                batch = claim.batches.popleft()
                self._progress.beat()
                if not self._deliver(batch, claim):
                    return
        finally:
            self._claims.end(claim)

    def _deliver(self, batch: Batch, claim: Claim) -> bool:
        """Send a batch and settle its entries; return False if nothing more can be sent now."""
        if not batch.messages:  # an earlier claim has sent them
            self._settle(batch, claim)
            return True
        assert claim.permit  # noqa: S101 (see `deliver`)
        permit, claim.permit = claim.permit, None
        try:
            self._send(batch)
        except UnavailableError as error:
            self._failures.settle(batch, permit, error)
            return False
        except RefusedError as error:
            self._permits.refused(permit, str(error))
            self._claims.release(batch.entries, str(error))
            return False
        except RejectedError as error:
            self._permits.succeeded(permit)
            self._reject(batch, claim, error)
        else:
            # A crash before this line sends the batch again, under the same ids.
            self._settle(batch, claim)
            self._permits.succeeded(permit)
        return True

    def _settle(self, batch: Batch, claim: Claim, note: str | None = None) -> None:
        """Settle entries whose message is sent, or go on to their next message."""
        if batch.rest:
            (entry,) = batch.entries
            following = batch.following()
            self._in_outbox(
                lambda: self._claims.advance(entry, following.sent), batch.entries, claim
            )
            claim.batches.appendleft(following)
        elif fault := batch.fault:
            (entry,) = batch.entries
            sent = batch.sent + len(batch.messages)
            self._in_outbox(lambda: self._claims.advance(entry, sent), batch.entries, claim)
            self._in_outbox(lambda: self._claims.dead_letter(entry, fault), batch.entries, claim)
        else:
            note = note or self._note_of_repeat(batch)
            self._in_outbox(lambda: self._claims.ack(batch.entries, note), batch.entries, claim)
            self._observe(batch.entries)

    def _reject(self, batch: Batch, claim: Claim, error: RejectedError) -> None:
        """Find what is rejected in the batch: halving finds it, and the rest goes through."""
        if len(batch.entries) > 1:
            claim.batches.extendleft(reversed(batch.halves()))
            return
        (entry,) = batch.entries
        if error.done_if_repeated and may_have_arrived_at(self._outbox.entries, entry):
            note = f"{error}: taken as done, as an earlier attempt may have arrived"
            self._settle(batch, claim, note)
            return
        fault = Unusable(DeadReason.REJECTED, f"{error}: {error.text}")
        self._claims.dead_letter(entry, fault)

    def _note_of_repeat(self, batch: Batch) -> str | None:
        """Return what the history says if the destination may count the entry twice."""
        if not self._destination.ordered or batch.repeatable:
            return None
        (entry,) = batch.entries
        arrived_at = may_have_arrived_at(self._outbox.entries, entry)
        if arrived_at is None or self._now() - arrived_at <= self._limits.dedupe_window:
            return None
        minutes = (self._now() - arrived_at) // timedelta(minutes=1)
        return (
            f"sent again {minutes} min after an attempt that may have arrived:"
            f" {self._destination.title} may count it twice"
        )

    def _in_outbox(
        self, settle: Callable[[], None], entries: Sequence[Entry], claim: Claim
    ) -> None:
        """Settle; if the outbox is away, try again for as long as the entries are leased."""
        while True:
            try:
                settle()
            except OutboxError as error:
                if self._progress.stopping or self._clock() + OUTBOX_PAUSE_SECONDS > claim.ends_at:
                    raise
                self._progress.get_on(str(error))
                _log.error("forward.not_settled", messages=len(entries), error=str(error))
                self._progress.sleep(OUTBOX_PAUSE_SECONDS)
            else:
                return

    def _observe(self, delivered: Sequence[Entry]) -> None:
        now = self._now()
        seconds = DELIVERY_SECONDS.labels(self._name)
        for entry in delivered:  # a clock may have been put back since
            seconds.observe(max(0, (now - entry.received_at).total_seconds()))

    def _send(self, batch: Batch) -> None:
        """Send one batch; log and count the answer."""
        started = self._clock()
        attempt = max(entry.attempts for entry in batch.entries)
        answer, event, level = "none", "forward.failed", ERROR
        try:
            self._destination.send(batch.messages, attempt=attempt)
        except UnavailableError as error:
            answer, event, level = str(error), "forward.unavailable", WARNING
            raise
        except RefusedError as error:
            answer, event, level = str(error), "forward.held", ERROR
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
                messages=len(batch.messages),
                milliseconds=round((self._clock() - started) * 1000),
                answer=answer,
            )
            word = answer.partition(" ")[0]  # a status, or the kind of a network error
            BATCHES.labels(self._name, word).inc()
            MESSAGES.labels(self._name, word).inc(len(batch.messages))

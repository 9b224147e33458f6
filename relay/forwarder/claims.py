"""Claims: entries leased from the outbox, rendered and cut into batches."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog
from msgspec import Struct, field

from relay.destinations import Destination
from relay.errors import OutboxError
from relay.events import DeadReason, Unusable
from relay.forwarder.batches import Batch, in_batches
from relay.forwarder.permits import Permits
from relay.forwarder.unsettled import UnsettledEntries
from relay.outbox.entries import CRASHES_BEFORE_ISOLATION, Entry
from relay.outbox.protocol import Outbox
from relay.routes import Rendered, Routes
from relay.throttle import Permit

LEASE: Final = timedelta(seconds=60)
CRASHES_IN_ISOLATION: Final = 3
"""An entry that was the only one claimed in so many crashes is taken to cause them.

A crash while it is rendered counts. A crash while it is sent counts if the supervisor survives it.
"""

_LARGE_CLAIM_BYTES: Final = 2**20  # an outbox may cut a claim short at this size

_log = structlog.get_logger()


class Claim(Struct):
    """The entries that one worker has claimed.

    Attributes:
        permit: the permit for the next request; None if it is used up.
        ends_at: when the lease ends, by the forwarder's clock.
        entries: all entries that were claimed.
        batches: the batches that are still to be sent.
    """

    permit: Permit | None
    ends_at: float
    entries: list[Entry] = []
    batches: deque[Batch] = field(default_factory=deque)


class Claims:
    """The claiming side of a forwarder: leases entries, renders them, and cuts them into batches.

    Entries that cannot be rendered become dead letters.

    Args:
        outbox: where entries come from.
        destination: where they go.
        routes: render them.
        unsettled: the entries that this process has claimed.
        permits: the destination's permits; those not used are released.
        clock: seconds, monotonic.
        lineage: see `Outbox.begin_post`.

    Attributes:
        more_are_due: set while the latest claim most likely left due entries behind, or entries
            may have become due by what was settled since.
    """

    def __init__(  # noqa: PLR0913 (what it works with)
        self,
        outbox: Outbox,
        destination: Destination,
        routes: Routes,
        *,
        unsettled: UnsettledEntries,
        permits: Permits,
        clock: Callable[[], float],
        lineage: int,
    ) -> None:
        self._outbox = outbox
        self._name = destination.name
        self._ordered = destination.ordered
        self._limits = destination.limits
        self._routes = routes
        self._unsettled = unsettled
        self._permits = permits
        self._clock = clock
        self._lineage = lineage
        self.more_are_due = threading.Event()
        self.more_are_due.set()

    def take_due(self, permit: Permit) -> Claim | None:
        """Claim due entries; None if there are none, or another destination is isolated."""
        return self._take(permit, self._lease_due)

    def take_suspect(self, permit: Permit) -> Claim | None:
        """Claim one suspect, and note that it is rendered; None if none is due."""
        claim = self._take(permit, self._lease_suspect)
        if claim is None or not claim.batches:
            return claim
        (batch,) = claim.batches
        (suspect,) = batch.entries
        try:
            # It has been rendered without a crash. If this process ends while it waits for the
            # destination, most likely all of relay ends, and that must not count against it.
            suspect = self._outbox.begin_post(suspect, self._lineage)
        except OutboxError:
            self.end(claim)
            raise
        self._unsettled.replace(suspect)
        claim.entries = [suspect]
        batch.entries = [suspect]
        return claim

    def end(self, claim: Claim) -> None:
        """Release the permit, if it was not used, and the entries that were not settled."""
        if claim.permit:
            self._permits.release(claim.permit)
            claim.permit = None
        left = [entry for entry in claim.entries if entry in self._unsettled]
        if left:
            self.release(left)

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """Make entries due at once; see `Outbox.release`."""
        self._unsettled.settle(entries)
        self._outbox.release(entries, answer)

    def postpone(
        self, entry: Entry, *, retry_at: datetime, answer: str, failing_since: datetime
    ) -> None:
        """Make the entry due at a time; see `Outbox.postpone`."""
        self._unsettled.settle([entry])
        self._outbox.postpone(entry, retry_at=retry_at, answer=answer, failing_since=failing_since)

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        """Settle entries as delivered; see `Outbox.ack`."""
        self._outbox.ack(entries, note)
        self._settled(entries)

    def advance(self, entry: Entry, step: int) -> None:
        """Note that so many of the entry's messages are sent; see `Outbox.advance`."""
        self._outbox.advance(entry, step)

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """Make the entry a dead letter, and log it."""
        self._outbox.dead_letter(entry, fault)
        self._settled([entry])
        if fault.reason is DeadReason.IGNORED:  # by a setting
            _log.info("forward.ignored", message_id=entry.message_id, detail=fault.detail)
        else:
            _log.warning("forward.dead_letter", message_id=entry.message_id, reason=fault.reason)

    def _settled(self, entries: Sequence[Entry]) -> None:
        self._unsettled.settle(entries)
        if self._ordered:
            self.more_are_due.set()  # what waited behind them in their lanes

    def _take(self, permit: Permit, lease: Callable[[], list[Entry]]) -> Claim | None:
        claim = Claim(permit=permit, ends_at=self._clock() + LEASE.total_seconds())
        try:
            claim.entries = self._unsettled.claim(self._name, lease) or []
            claim.batches.extend(in_batches(self._rendered(claim.entries), self._limits))
        except Exception:  # a suspect waits for as long as any entry is unsettled
            self.end(claim)
            raise
        if not claim.batches:
            self.end(claim)
        return claim if claim.entries else None

    def _lease_due(self) -> list[Entry]:
        most = self._limits.batch_messages
        self.more_are_due.clear()  # first: other workers may settle entries meanwhile
        entries = self._outbox.claim(self._name, most, lease=LEASE, ordered=self._ordered)
        size = sum(len(entry.body) for entry in entries)
        if len(entries) == most or size > _LARGE_CLAIM_BYTES:
            self.more_are_due.set()
        return entries

    def _lease_suspect(self) -> list[Entry]:
        return self._outbox.claim_suspect(self._name, lease=LEASE)

    def _rendered(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Rendered]]:
        """Yield each entry with its messages; dead-letter those that have none."""
        for entry in entries:
            if entry.crashes >= CRASHES_BEFORE_ISOLATION + CRASHES_IN_ISOLATION:
                detail = f"relay crashed {CRASHES_IN_ISOLATION} times with no other entry claimed"
                self.dead_letter(entry, Unusable(DeadReason.POISON, detail))
                continue
            rendered = self._routes.render(entry)
            if isinstance(rendered, Unusable):
                self.dead_letter(entry, rendered)
            else:
                yield entry, rendered

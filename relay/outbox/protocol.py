"""What every store of the outbox is held to; `tests/contracts/` checks each store against it.

Every method raises OutboxError when the store cannot do it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar

from relay.events import Unusable
from relay.outbox.counters import CounterRow
from relay.outbox.entries import (
    Arrival,
    Counts,
    Entry,
    LogState,
    Operation,
    Query,
    Requeue,
    Role,
    StoredEntry,
)
from relay.throttle import DestinationStatus, Throttle

T = TypeVar("T")

RARE: Final = (
    "Email Link Clicked",
    "Email Unsubscribed",
    "Email Bounced",
    "Email Marked as Spam",
)
"""Collections that stores have an index of: of the other three, each few entries hold one."""

SOME: Final = 10_000
"""So many entries of a state are quicker sorted than found among the others."""


class EntryStore(Protocol):
    """The entries as an operator sees them: found, counted, replayed, erased, copied.

    Safe to use while receivers and forwarders are at work on the same outbox.
    """

    def find(
        self,
        query: Query,
        limit: int,
        *,
        start: int | None = None,
        end: int | None = None,
        newest_first: bool = True,
        with_history: bool = False,
    ) -> list[StoredEntry]:
        """Return entries in the order of their ids; fewer than the limit if bodies are large.

        Args:
            query: which.
            limit: how many at most; an empty list means that there are none.
            start: the id behind which they begin, in the direction asked for.
            end: the last id that is looked at.
            newest_first: the direction.
            with_history: fill in their histories.
        """
        ...

    def count(self, query: Query) -> int:
        """Count the entries; looks at each of them."""
        ...

    def begin(self, kind: str, what: str) -> Operation:
        """Return the same operation begun earlier and not finished, or a new one."""
        ...

    def requeue(self, requeues: Sequence[Requeue], operation: Operation) -> int:
        """Make delivered and dead entries pending again; return how many.

        They are counted with the operation, in one transaction.
        """
        ...

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """Delete entries whatever their state, and their histories; return how many.

        As far as the store can, nothing of them is left on disk. Counted as by `requeue`.
        """
        ...

    def finish(self, operation: Operation) -> None:
        """Note that the operation is complete."""
        ...

    def operations(self, limit: int) -> list[Operation]:
        """Return the latest operations, newest first."""
        ...

    def restore(self, entries: Sequence[StoredEntry]) -> int:
        """Put entries back, with their states and histories; return how many were not there.

        When this returns, they are on disk.
        """
        ...


class Outbox(Protocol):
    """A durable queue; safe to use from several threads, and by several processes."""

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store what is new; return for each arrival whether it was.

        When this returns, it is on disk.
        """
        ...

    def changed(self, destination: str) -> bool:
        """Return whether anything may have been added since the last call for it; cheap."""
        ...

    def claim(self, destination: str, limit: int, *, lease: timedelta) -> list[Entry]:
        """Lease up to `limit` of the destination's oldest due entries.

        No other worker gets them until the lease expires, or the claiming process is known to be
        gone. Suspects are not among them.
        """
        ...

    def claim_suspect(self, destination: str, *, lease: timedelta) -> list[Entry]:
        """Lease one of the destination's due suspects, if there is any; otherwise as `claim`."""
        ...

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """Note that a claimed suspect has been rendered; return it with its new claim.

        If the process ended before this call, that counts against the suspect. From now on the
        suspect waits for its destination, and an end of the process proves nothing, unless
        `count_crash` is called.

        Args:
            suspect: claimed alone.
            lineage: of this process and those that are started in its place, from 1 to 2**40.
        """
        ...

    def count_crash(self, lineage: int) -> None:
        """Count a crash against the suspect that the last process of the lineage was sending.

        Call it before anything is claimed, if that process ended by itself while its supervisor
        lived on.
        """
        ...

    def has_suspects(self, destination: str) -> bool:
        """Return whether any suspect of the destination is due."""
        ...

    def ack(self, entries: Sequence[Entry]) -> None:
        """Settle entries as delivered. Entries that another worker has claimed since stay."""
        ...

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """Make the entry a dead letter, unless another worker has claimed it since."""
        ...

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """Make entries due at once, unless another worker has claimed them since.

        Args:
            entries: of one claim.
            answer: the result of sending them, for their histories; None if they were not sent.
        """
        ...

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """Return what `change` returns for the destination's throttle and the time in seconds.

        All forwarders to the destination share its throttle. `change` may alter it; no other
        change happens in between.
        """
        ...

    def destination_status(self, destination: str) -> DestinationStatus:
        """Return how forwarding to the destination stands, as far as forwarders have noted it."""
        ...

    def counts(self) -> Mapping[str, Counts]:
        """Count the entries of each destination by state; the cost does not grow with them."""
        ...

    def counters(self) -> list[CounterRow]:
        """Return what entries did, latest slots first; a few thousand rows at most."""
        ...

    def aggregate_counters(self, before: datetime) -> None:
        """Count as a whole what happened in slots that began before then."""
        ...

    def purge(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` entries delivered before then; return how many.

        From then on a copy of such an event is new.
        """
        ...

    def check(self) -> None:
        """Return if a write reaches the disk now."""
        ...

    def pending_exceed(self, limit: int) -> bool:
        """Return whether more entries than that are pending, for all destinations together."""
        ...

    def free_bytes(self) -> int | None:
        """Return how much room its disk has; None if that cannot be known."""
        ...

    def warnings(self) -> list[str]:
        """Return what an operator should change although all works, a sentence each."""
        ...

    def log_state(self) -> LogState | None:
        """Return the state of the store's log of writes; None if the store has no such log."""
        ...

    def lock_role(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """Keep other processes out of the role from now on, if the store has room for one only.

        Args:
            role: what this process does with the store.
            patience: how long to wait for another process that is about to end.

        Raises:
            OutboxUnusableError: another process has it.
        """
        ...

    @property
    def entries(self) -> EntryStore:
        """The same entries, as an operator sees them."""
        ...

    def close(self) -> None:
        """Close the store; nothing else may be called afterwards."""
        ...

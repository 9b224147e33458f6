"""The protocol that every store of the outbox implements; `tests/contracts/` checks each store.

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

RARE_COLLECTIONS: Final = (
    "Email Link Clicked",
    "Email Unsubscribed",
    "Email Bounced",
    "Email Marked as Spam",
)
"""Collections that stores index. The other three are so common that a scan soon finds them."""

MAX_SORTED_ENTRIES: Final = 10_000
"""The most entries of a state that are sorted; more are found by a scan in the order of ids."""


class EntryStore(Protocol):
    """The entries as an operator sees them: found, counted, replayed, erased, copied.

    Safe to use while receivers and forwarders use the same outbox.
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
            query: the conditions that they meet.
            limit: the most entries to return. An empty list means that there are none.
            start: the id after which to begin, in the direction of the search.
            end: the last id to look at.
            newest_first: the direction of the search.
            with_history: fill in their histories.
        """
        ...

    def count(self, query: Query) -> int:
        """Count the entries that meet the query; the time grows with their number."""
        ...

    def begin(self, kind: str, what: str) -> Operation:
        """Return an unfinished operation of this kind on the same entries, or else a new one."""
        ...

    def requeue(self, requeues: Sequence[Requeue], operation: Operation) -> int:
        """Make delivered and dead entries pending again; return how many.

        Each is put at the end of its lanes. Of an entry that was delivered all messages are sent
        again; of a dead letter only those that had not been sent. The same transaction adds the
        number of entries to the operation.
        """
        ...

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """Delete entries in any state, and their histories; return how many.

        As far as the store can, nothing of them is left on disk. What waited behind them in their
        lanes does so no longer. The same transaction adds their number to the operation.
        """
        ...

    def blocked_by(self, id_: int) -> int | None:
        """Return the first unfinished entry of the entry's lanes, for which it waits.

        Return None if the entry heads all its lanes, or has none.
        """
        ...

    def finish(self, operation: Operation) -> None:
        """Note that the operation is complete."""
        ...

    def operations(self, limit: int) -> list[Operation]:
        """Return the latest operations, newest first."""
        ...

    def restore(self, entries: Sequence[StoredEntry]) -> int:
        """Put entries back, with their states and histories; return how many were missing before.

        They are put at the end of their lanes, in the order given. When this returns, they are on
        disk.
        """
        ...


class Outbox(Protocol):
    """A durable queue; safe to use from several threads, and by several processes."""

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store the arrivals that are new; return for each arrival whether it was new.

        Each is put at the end of its lanes, in the order given. If any has a lane, either all
        arrivals are stored or none. When this returns, all of them are on disk.
        """
        ...

    def changed(self, destination: str, *, ordered: bool = False) -> bool:
        """Return whether entries may have become due since the last call for it. This is cheap.

        Args:
            destination: its name.
            ordered: whether it keeps an order; see `claim`.
        """
        ...

    def claim(
        self, destination: str, limit: int, *, lease: timedelta, ordered: bool = False
    ) -> list[Entry]:
        """Lease up to `limit` of the destination's oldest due entries.

        No other worker gets them until the lease expires, or the claiming process is known to be
        gone. Suspects are not among them.

        Args:
            destination: its name.
            limit: the most entries to lease.
            lease: how long they are leased.
            ordered: whether the destination keeps an order, so that each of its entries has a lane.
                Then those are due that head all their lanes: two entries of one lane are never
                leased at a time. However many others wait behind them, the claim takes no longer.
        """
        ...

    def claim_suspect(self, destination: str, *, lease: timedelta) -> list[Entry]:
        """Lease one of the destination's due suspects, if there is any; otherwise as `claim`.

        A suspect behind another entry in one of its lanes is not due.
        """
        ...

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """Note that a claimed suspect has been rendered; return it with its new claim.

        If the process ends before this call, that counts as a crash of the suspect. If it ends
        later, that counts only if `count_crash` is called: the suspect was waiting for its
        destination.

        Args:
            suspect: the suspect, which was claimed alone.
            lineage: number of this process and those started in its place, from 1 to 2**40.
        """
        ...

    def count_crash(self, lineage: int) -> None:
        """Count a crash against the suspect that the last process of the lineage was sending.

        Call it before anything is claimed, and only if that process ended although its supervisor
        did not.
        """
        ...

    def has_suspects(self, destination: str) -> bool:
        """Return whether any suspect of the destination is due."""
        ...

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        """Settle entries as delivered, unless another worker has claimed them since.

        Args:
            entries: entries of one claim.
            note: what is remarkable about it, for their histories; None if nothing is.
        """
        ...

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """Make the entry a dead letter, unless another worker has claimed it since."""
        ...

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """Make entries due at once, unless another worker has claimed them since.

        Args:
            entries: entries of one claim.
            answer: the result of sending them, for their histories; None if they were not sent.
        """
        ...

    def postpone(
        self, entry: Entry, *, retry_at: datetime, answer: str, failing_since: datetime
    ) -> None:
        """Release an entry whose failure concerns only itself, until a time; see `release`.

        Only what is behind it in its lanes waits for it.

        Args:
            entry: an entry that heads its lanes.
            retry_at: when it is due again, at most `LONGEST_WAIT` ahead. A time further ahead was
                set before the clock was set back, and counts as past.
            answer: the result of sending it, for its history.
            failing_since: when the first of its failed attempts in a row was. The next claim
                returns it.
        """
        ...

    def advance(self, entry: Entry, step: int) -> None:
        """Note that so many of the entry's messages are sent, unless another worker has claimed it.

        After a crash of relay, the next claim knows that. After a power cut, or a crash of the
        server, it may not, as with what `ack` settles.
        """
        ...

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """Call `change` with the destination's throttle and the time in seconds; return its result.

        All forwarders to the destination share its throttle. `change` may alter it; meanwhile
        nothing else alters it.
        """
        ...

    def destination_status(self, destination: str) -> DestinationStatus:
        """Return the status that forwarders have last recorded for the destination."""
        ...

    def counts(self) -> Mapping[str, Counts]:
        """Count the entries of each destination by state; the time does not grow with them."""
        ...

    def counters(self) -> list[CounterRow]:
        """Return the counters, latest slots first; a few thousand rows at most."""
        ...

    def aggregate_counters(self, before: datetime) -> None:
        """Add up the counters of all slots that began before a time."""
        ...

    def purge(self, before: datetime, limit: int) -> int:
        """Delete up to `limit` entries delivered before a time; return how many.

        After that, a copy of a deleted event counts as new.
        """
        ...

    def check(self) -> None:
        """Write something to the disk; return if that succeeds."""
        ...

    def pending_exceed(self, limit: int) -> bool:
        """Return whether more than `limit` entries are pending, for all destinations together."""
        ...

    def free_bytes(self) -> int | None:
        """Return how much room its disk has; None if that cannot be known."""
        ...

    def warnings(self) -> list[str]:
        """Return one sentence for each thing that works but that an operator should change."""
        ...

    def log_state(self) -> LogState | None:
        """Return the state of the store's log of writes; None if the store has no such log."""
        ...

    def lock_role(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """Keep other processes out of the role from now on, if the store allows only one of it.

        Args:
            role: what this process does with the store.
            patience: how long to wait for another process that is about to end.

        Raises:
            OutboxUnusableError: another process has the role.
        """
        ...

    @property
    def entries(self) -> EntryStore:
        """The same entries, as an operator sees them."""
        ...

    def close(self) -> None:
        """Close the store; nothing else may be called afterwards."""
        ...

"""What every store of the outbox is held to."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol

from relay.events import Unusable
from relay.outbox.counters import Tally
from relay.outbox.entries import (
    Arrival,
    Counts,
    Entry,
    LogState,
    Operation,
    Query,
    Record,
    Revival,
    Role,
    T,
)
from relay.throttle import Pace, Standing

RARE: Final = (
    "Email Link Clicked",
    "Email Unsubscribed",
    "Email Bounced",
    "Email Marked as Spam",
)
"""Collections that stores have an index of: of the other three, each few entries hold one."""

SOME: Final = 10_000
"""So many entries of a state are quicker sorted than found among the others."""


class Records(Protocol):
    """Safe to use while receivers and forwarders are at work on the same outbox.

    `tests/contracts/` holds every store to these words. Every
    method raises OutboxError when the store cannot do it.
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
    ) -> list[Record]:
        """Up to so many of the entries, in the order of their ids; fewer if their bodies are large.

        Args:
            query: which.
            limit: how many at the most; none are returned only when there are none.
            start: the id behind which they begin, in the direction asked for.
            end: the last id that is looked at.
            newest_first: the direction.
            with_history: fill in their histories.
        """
        ...

    def count(self, query: Query) -> int:
        """How many there are; looks at each."""
        ...

    def begin(self, kind: str, what: str) -> Operation:
        """The same operation begun earlier and not finished, or a new one."""
        ...

    def revive(self, revivals: Sequence[Revival], operation: Operation) -> int:
        """Make those pending again that are delivered or dead; how many.

        They are counted with the operation, in one transaction.
        """
        ...

    def erase(self, ids: Sequence[int], operation: Operation) -> int:
        """Forget entries whatever their state, their histories too; how many.

        As far as the store can, nothing of them is left on disk. Counted as by `revive`.
        """
        ...

    def finish(self, operation: Operation) -> None:
        """Note that the operation has come to its end."""
        ...

    def operations(self, limit: int) -> list[Operation]:
        """The latest operations, newest first."""
        ...

    def restore(self, records: Sequence[Record]) -> int:
        """Put records back, with their states and histories; how many were not there.

        When this returns, they are on disk.
        """
        ...


class Outbox(Protocol):
    """A durable queue; safe to use from several threads, and by several processes.

    `tests/contracts/` holds every store to these words. Every method raises OutboxError when the
    store cannot do it.
    """

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """Store what is new; tell for each whether it was.

        When this returns, it is on disk.
        """
        ...

    def changed(self) -> bool:
        """Whether anything may have been added since this was last asked; cheap."""
        ...

    def claim(self, limit: int, *, lease: timedelta) -> list[Entry]:
        """The entries longest due, none of which anyone else is given until the lease ends.

        They are due again when it ends, or earlier if the claiming process is known to be gone.
        Suspects are not among them.
        """
        ...

    def claim_suspect(self, *, lease: timedelta) -> list[Entry]:
        """One of the suspects that are due, if there are any; as `claim` otherwise."""
        ...

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """Tell that a claimed suspect has been mapped and encoded; it is claimed as what returns.

        A process that ended over it before now counts against it. From now on it waits for
        Segment, and an end proves nothing, unless `count_crash` is told otherwise.

        Args:
            suspect: claimed alone.
            lineage: of this process and those that are started in its place, from 1 to 2**40.
        """
        ...

    def count_crash(self, lineage: int) -> None:
        """Count against the suspect what the last process of the lineage did not survive posting.

        To be called before anything is claimed, where that process ended by itself and what had
        started it lived on.
        """
        ...

    def has_suspects(self) -> bool:
        """Whether any suspect is due."""
        ...

    def deliver(self, entries: Sequence[Entry]) -> None:
        """Segment has them. Entries claimed by someone else since are left alone."""
        ...

    def bury(self, entry: Entry, fault: Unusable) -> None:
        """Make it a dead letter, unless someone else has claimed it since."""
        ...

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """Make them due at once, unless someone else has claimed them since.

        Args:
            entries: claimed once.
            answer: what came of posting them, for their histories; None when they were not posted.
        """
        ...

    def pace(self, change: Callable[[Pace, float], T]) -> T:
        """What `change` returns for the pace that all forwarders share, and the time in seconds.

        It may change the pace; no other change comes in between.
        """
        ...

    def standing(self) -> Standing:
        """How forwarding stands with Segment, as far as the forwarders have told by now."""
        ...

    def counts(self) -> Counts:
        """How many entries are in each state; costs the same however many there are."""
        ...

    def tallies(self) -> list[Tally]:
        """What entries did, latest slots first; a few thousand at the most."""
        ...

    def fold_tallies(self, before: datetime) -> None:
        """Count as a whole what happened in slots that began before then."""
        ...

    def purge(self, before: datetime, limit: int) -> int:
        """Forget entries delivered before then, so many at the most; how many they were.

        From then on a copy of such an event is new.
        """
        ...

    def check(self) -> None:
        """Return if a write reaches the disk now."""
        ...

    def pending_exceed(self, limit: int) -> bool:
        """Whether more entries than that are pending; costs no more than to count so many."""
        ...

    def free_bytes(self) -> int | None:
        """How much room its disk has; None where that cannot be known."""
        ...

    def warnings(self) -> list[str]:
        """What an operator had better change although all works, a sentence each."""
        ...

    def log_state(self) -> LogState | None:
        """The store's log of writes; None where it is no business of relay's."""
        ...

    def become_sole(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """Keep other processes out of the role from now on, where the store has room for one only.

        Args:
            role: what this process does with the store.
            patience: for how long another one is waited for that is about to end.

        Raises:
            OutboxUnusableError: another process has it.
        """
        ...

    @property
    def records(self) -> Records:
        """The same entries, as an operator sees them."""
        ...

    def close(self) -> None:
        """Let go of the store; nothing else may be called afterwards."""
        ...

"""The entries of an outbox as an operator sees them: found, told, replayed, erased, copied."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, Protocol

from msgspec import Struct

from relay.outbox import Keys, State


class Happening(Struct, frozen=True):
    """One line of an entry's history. That it was received, and delivered last, is in the record.

    Attributes:
        what: `posted` and not accepted, `delivered` before a replay, `dead`, or `replayed`.
        said: Segment's answer, or the reason; empty where there is none.
    """

    at: datetime
    what: str
    said: str


class Record(Struct, frozen=True):
    """An entry with all that is known of it.

    Attributes:
        attempts: how often it has been claimed.
        delivered_at: when Segment's answer to it was noted; None unless it is delivered.
        reason: why it is a dead letter, and in `detail` a sentence about that.
        history: what happened to it, oldest first; empty unless it was asked for.
    """

    id: int
    provider: str
    message_id: str
    state: State
    collection: str | None
    received_at: datetime
    attempts: int
    delivered_at: datetime | None
    reason: str | None
    detail: str | None
    keys: Keys
    body: bytes
    history: tuple[Happening, ...] = ()


class Query(Struct, frozen=True, omit_defaults=True):
    """Which entries; what is None or empty does not matter.

    Attributes:
        since: received then or later; `until`: before then.
        key: which of the keys, and its digest.
        keyless: those that can be found by no key.
    """

    ids: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    provider: str | None = None
    collection: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_id: str | None = None
    key: tuple[Literal["user", "address", "email"], int] | None = None
    keyless: bool = False


class Revival(Struct, frozen=True):
    """An entry to be forwarded once more, and what it is by today's mapping."""

    id: int
    collection: str
    keys: Keys


class Operation(Struct, frozen=True):
    """Something an operator did to many entries, noted so that it can be taken up again.

    Attributes:
        kind: `replay` or `erase`.
        what: on which entries, without anything that tells who they are about.
        entries: how many it has changed so far.
    """

    id: int
    kind: str
    what: str
    started_at: datetime
    finished_at: datetime | None
    entries: int


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

    tests/records_contract.py and tests/changes_contract.py hold every store to these words. Every
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

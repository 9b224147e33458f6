"""The outbox: queue, dedupe index, dead letters and audit trail in one table.

It keeps the raw body, so that a corrected mapping can be run over the past.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from msgspec import Struct

from relay.errors import OutboxUnusableError
from relay.events import EmailEvent, Unusable
from relay.pacing import Pace, Standing

if TYPE_CHECKING:
    from relay.outbox.records import Records
    from relay.outbox.tallies import Tally

Clock = Callable[[], datetime]
T = TypeVar("T")


def utc_now() -> datetime:
    """The time of day, aware UTC."""
    return datetime.now(UTC)


class State(StrEnum):
    """What has become of an entry.

    A claimed entry is still pending, so a crash of its holder heals itself.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Keys(Struct, frozen=True):
    """What an entry can be found by, each as a short digest: indexes hold no address.

    Two texts may share a digest, so what is found by one is still to be looked at.

    Attributes:
        user: of the user id.
        address: of the address in lower case.
        email: of the email id.
    """

    user: int | None = None
    address: int | None = None
    email: int | None = None


NO_KEYS: Final = Keys()


def keys_of(event: EmailEvent) -> Keys:
    """What the event's entry is to be found by."""
    user, address, email = event.user_id, event.email, event.properties.get("email_id")
    return Keys(
        digest(user) if user else None,
        digest(address.lower()) if address else None,
        digest(email) if email else None,
    )


def digest(text: str) -> int:
    """The text as a key: the first 32 bits of its SHA-256."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")


class Arrival(Struct, frozen=True):
    """A webhook event to be stored.

    Attributes:
        message_id: what makes it unique, and its `messageId` at Segment.
        fault: why it is a dead letter from the start; None for what is to be forwarded.
        collection: the one it belongs to; None for what has a fault.
        keys: what it can be found by.
    """

    provider: str
    message_id: str
    received_at: datetime
    body: bytes
    fault: Unusable | None = None
    collection: str | None = None
    keys: Keys = NO_KEYS


class Entry(Struct, frozen=True):
    """A claimed entry: one webhook event on its way.

    Attributes:
        attempts: how often it has been claimed, this time included.
        claim: the fence: whoever holds an older claim settles nothing.
        deaths: how often in a row a process ended over it: see `Outbox.begin_post`.
    """

    id: int
    provider: str
    message_id: str
    received_at: datetime
    attempts: int
    claim: int
    body: bytes
    deaths: int = 0


DEATHS_IN_COMPANY: Final = 2
"""From so many deaths on an entry is a suspect, and is only claimed alone."""


class Counts(Struct, frozen=True):
    """How many entries there are in each state, and since when a pending one waits the longest."""

    pending: int
    delivered: int
    dead: int
    waiting_since: datetime | None


class LogState(Struct, frozen=True):
    """The log of writes that a store keeps beside its tables.

    Attributes:
        size_bytes: on its disk.
        is_held: somebody who reads from it has kept it from being emptied for a while; it grows.
    """

    size_bytes: int
    is_held: bool


class Role(StrEnum):
    """What a process does with an outbox."""

    RECEIVER = "receiver"
    FORWARDER = "forwarder"


class Outbox(Protocol):
    """A durable queue; safe to use from several threads, and by several processes.

    tests/contracts.py holds every store to these words. Every method raises OutboxError when the
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

    def tallies(self) -> "list[Tally]":
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
    def records(self) -> "Records":
        """The same entries, as an operator sees them."""
        ...

    def close(self) -> None:
        """Let go of the store; nothing else may be called afterwards."""
        ...


_STORES: Final = {"sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres"}


def open_outbox(url: str, *, allow_ephemeral: bool = False, create: bool = False) -> Outbox:
    """Open the outbox at the URL, migrated forward as needed; try once.

    Args:
        url: the store's kind and place.
        allow_ephemeral: it may lie where a restart of the machine wipes it.
        create: make it if there is none. One that is missing is most likely named wrongly, or gone.

    Raises:
        OutboxMissingError: there is none, and it is not to be made.
        OutboxError: it cannot be opened now, and may be later: its server is away.
        OutboxUnusableError: it cannot be opened, and will not be before the operator has acted.
    """
    scheme = url.partition(":")[0]
    if scheme not in _STORES:
        raise OutboxUnusableError(
            f"no store goes by {scheme or 'an empty scheme'}:; known: {', '.join(_STORES)}"
        )
    outbox: Outbox = import_module(f"{__name__}.{_STORES[scheme]}").open_url(
        url, allow_ephemeral=allow_ephemeral, create=create
    )
    return outbox

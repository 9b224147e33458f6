"""The values that an outbox takes and gives."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, Literal

from msgspec import Struct

from relay.events import EmailEvent, Unusable

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of day, aware UTC."""
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

    Two texts may share a digest, so what is found by one must still be compared.

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
    """Return the keys that find the event's entry."""
    user, address, email = event.user_id, event.email, event.properties.get("email_id")
    return Keys(
        digest(user) if user else None,
        digest(address.lower()) if address else None,
        digest(email) if email else None,
    )


def digest(text: str) -> int:
    """Return the text as a key: the first 32 bits of its SHA-256."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")


class Arrival(Struct, frozen=True):
    """An event to be stored.

    Attributes:
        source: name of the source that sent it.
        destination: name of the destination it goes to.
        message_id: makes it unique; the destination deduplicates by it.
        fault: why it is a dead letter from the start; None if it is to be forwarded.
        collection: the collection it belongs to; None if it has a fault.
        keys: what it can be found by.
    """

    source: str
    destination: str
    message_id: str
    received_at: datetime
    body: bytes
    fault: Unusable | None = None
    collection: str | None = None
    keys: Keys = NO_KEYS


class Entry(Struct, frozen=True):
    """A claimed entry: one event on its way.

    Attributes:
        attempts: how often it has been claimed, this time included.
        claim: the fence: a holder of an older claim settles nothing.
        crashes: how often in a row a process ended while it held the entry: see
            `Outbox.begin_post`.
    """

    id: int
    source: str
    destination: str
    message_id: str
    received_at: datetime
    attempts: int
    claim: int
    body: bytes
    crashes: int = 0


CRASHES_BEFORE_ISOLATION: Final = 2
"""An entry with this many crashes is a suspect, and is only claimed alone."""


class Counts(Struct, frozen=True):
    """How many entries are in each state.

    Attributes:
        waiting_since: since when the oldest pending entry waits; None if none is pending.
    """

    pending: int = 0
    delivered: int = 0
    dead: int = 0
    waiting_since: datetime | None = None


def total(counts: Mapping[str, Counts]) -> Counts:
    """Add up the counts of all destinations."""
    waiting = [each.waiting_since for each in counts.values() if each.waiting_since]
    return Counts(
        pending=sum(each.pending for each in counts.values()),
        delivered=sum(each.delivered for each in counts.values()),
        dead=sum(each.dead for each in counts.values()),
        waiting_since=min(waiting, default=None),
    )


class LogState(Struct, frozen=True):
    """The log of writes that a store keeps beside its tables.

    Attributes:
        size_bytes: on its disk.
        is_held: a reader has kept it from being emptied for a while; it grows.
    """

    size_bytes: int
    is_held: bool


class Role(StrEnum):
    """What a process does with an outbox."""

    RECEIVER = "receiver"
    FORWARDER = "forwarder"


class HistoryEvent(Struct, frozen=True):
    """One line of an entry's history.

    That it was received, and its last delivery, are in the entry itself.

    Attributes:
        what: `posted` and not accepted, `delivered` before a replay, `dead`, or `replayed`.
        detail: the destination's answer, or the reason; empty if there is none.
    """

    at: datetime
    what: str
    detail: str


class StoredEntry(Struct, frozen=True):
    """An entry with all that is known of it.

    Attributes:
        attempts: how often it has been claimed.
        delivered_at: when the destination's answer was noted; None unless it is delivered.
        reason: why it is a dead letter; `detail` is a sentence about that.
        history: what happened to it, oldest first; empty unless it was asked for.
    """

    id: int
    source: str
    destination: str
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
    history: tuple[HistoryEvent, ...] = ()


class Query(Struct, frozen=True, omit_defaults=True):
    """Which entries to find; a field that is None or empty matches all.

    Attributes:
        since: received then or later.
        until: received before then.
        key: the name of a key, and its digest.
        keyless: entries that no key finds.
    """

    ids: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    source: str | None = None
    destination: str | None = None
    collection: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_id: str | None = None
    key: tuple[Literal["user", "address", "email"], int] | None = None
    keyless: bool = False


class Requeue(Struct, frozen=True):
    """An entry to be forwarded once more, and what it is by today's mapping."""

    id: int
    collection: str
    keys: Keys


class Operation(Struct, frozen=True):
    """Something an operator did to many entries, noted so that it can be resumed.

    Attributes:
        kind: `replay` or `erase`.
        what: on which entries, without anything that tells whom they are about.
        entries: how many it has changed so far.
    """

    id: int
    kind: str
    what: str
    started_at: datetime
    finished_at: datetime | None
    entries: int

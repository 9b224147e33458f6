"""The values that an outbox takes and gives."""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, Literal, TypeVar

from msgspec import Struct

from relay.events import EmailEvent, Unusable

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

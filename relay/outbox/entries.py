"""The values that the methods of an outbox take and return."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Final, Literal

from msgspec import Struct

from relay.addresses import is_address
from relay.events import Call, Event, Unusable

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of day, aware UTC."""
    return datetime.now(UTC)


class State(StrEnum):
    """The state of an entry.

    A claimed entry is still pending, so that it is claimed again after a crash.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class Keys(Struct, frozen=True):
    """Short digests by which an entry can be found: indexes hold no address.

    Two texts may have the same digest, so the texts of the entries found must still be compared.

    A call may name several people, each by an id or by an address: their keys are in any of the
    three places.

    Attributes:
        user: digest of the user id.
        address: digest of the address in lower case.
        email: digest of the email id.
    """

    user: int | None = None
    address: int | None = None
    email: int | None = None


NO_KEYS: Final = Keys()


def keys_of(event: Event) -> Keys:
    """Return the keys that find the event's entry."""
    if isinstance(event, Call):
        return _keys_of_call(event)
    user, address, email = event.user_id, event.email, event.email_id
    return Keys(
        digest(user) if user else None,
        digest(address.lower()) if address else None,
        digest(email) if email else None,
    )


def _keys_of_call(call: Call) -> Keys:
    """Return keys for the people that a call names, ids before the address.

    There are three at most, unless an alias with tags for a third person has an address, too.
    """
    user, email, address, *_ = [*map(person_key, call.people), None, None, None]
    if address is None and call.email:
        address = person_key(call.email)
    return Keys(user, address, email)


def person_key(person: str) -> int:
    """Return a person's id or address as a key; of an address, that of its lower case."""
    return digest(person.lower() if is_address(person) else person)


def digest(text: str) -> int:
    """Return the text as a key: the first 32 bits of its SHA-256."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")


def lane(name: str) -> int:
    """Return the name of a lane as a number: the first 63 bits of its SHA-256.

    If two lanes had the same number, their entries would only wait for one another.
    """
    return int.from_bytes(sha256(name.encode(errors="surrogatepass")).digest()[:8], "big") >> 1


class Arrival(Struct, frozen=True):
    """An event to be stored.

    Attributes:
        source: name of the source that sent it.
        destination: name of the destination it goes to.
        message_id: makes it unique; the destination deduplicates by it.
        fault: why it is a dead letter from the start; None if it is to be forwarded.
        collection: the collection it belongs to, or the type of call it is; None if unknown.
        keys: what it can be found by.
        lanes: the lanes it is sent in; see `lane`. Empty if its destination keeps no order.
    """

    source: str
    destination: str
    message_id: str
    received_at: datetime
    body: bytes
    fault: Unusable | None = None
    collection: str | None = None
    keys: Keys = NO_KEYS
    lanes: tuple[int, ...] = ()


class Entry(Struct, frozen=True):
    """A claimed entry: one event on its way.

    Attributes:
        attempts: how often it has been claimed, this time included.
        claim: number of the claim; a worker with an older claim cannot settle the entry.
        crashes: how many processes in a row ended while they held the entry; see
            `Outbox.begin_post`.
        ordered: whether it is sent in lanes.
        step: how many of its messages have been sent; see `Outbox.advance`.
        failing_since: when the first of its failed attempts in a row was; None if the latest did
            not fail. See `Outbox.postpone`.
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
    ordered: bool = False
    step: int = 0
    failing_since: datetime | None = None


CRASHES_BEFORE_ISOLATION: Final = 2
"""An entry with this many crashes is a suspect, and is only claimed alone."""


class Counts(Struct, frozen=True):
    """How many entries are in each state.

    Attributes:
        waiting_since: when the oldest pending entry began to wait; None if none is pending.
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
        size_bytes: its size on the disk.
        is_held: whether a reader has kept it from being emptied for a while, so that it grows.
    """

    size_bytes: int
    is_held: bool


class Role(StrEnum):
    """The role of a process at an outbox."""

    RECEIVER = "receiver"
    FORWARDER = "forwarder"


class HistoryEvent(Struct, frozen=True):
    """One line of an entry's history.

    Its receipt and its latest delivery are fields of the entry itself.

    Attributes:
        what: `posted` (and not accepted), `delivered` (before a replay), `dead` or `replayed`.
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
        lanes: the lanes it is sent in; empty unless it is pending.
        step: how many of its messages have been sent.
        retry_at: when the latest failure to send it, which concerned only this entry, lets it be
            sent again; None if there was none.
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
    lanes: tuple[int, ...] = ()
    step: int = 0
    retry_at: datetime | None = None


class Query(Struct, frozen=True, omit_defaults=True):
    """The conditions that entries must meet; None or empty is no condition.

    Attributes:
        since: the entry was received at this time or later.
        until: the entry was received before this time.
        key: name of a key, and the digest that the entry has for it.
        keyless: the entry has no key at all.
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
    """An entry to make pending again, with its collection, keys and lanes by today's mapping."""

    id: int
    collection: str
    keys: Keys
    lanes: tuple[int, ...] = ()


class Operation(Struct, frozen=True):
    """A change of many entries by an operator, recorded so that it can be resumed.

    Attributes:
        kind: `replay` or `erase`.
        what: the entries that were chosen, without anything that identifies a person.
        entries: how many it has changed so far.
    """

    id: int
    kind: str
    what: str
    started_at: datetime
    finished_at: datetime | None
    entries: int

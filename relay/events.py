"""The results of parsing a body: an email event, a call, ignored, or unusable for a reason."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct


class Collection(StrEnum):
    """The seven collections, with the names of Segment's Vero source.

    Segment's email *spec* has six: no "Email Sent", and "Unsubscribed" for "Email Unsubscribed".
    Dashboards use the source's names (segment-docs, connections/sources/catalog/cloud-apps/vero).
    """

    SENT = "Email Sent"
    DELIVERED = "Email Delivered"
    OPENED = "Email Opened"
    LINK_CLICKED = "Email Link Clicked"
    UNSUBSCRIBED = "Email Unsubscribed"
    BOUNCED = "Email Bounced"
    MARKED_AS_SPAM = "Email Marked as Spam"


class DeadReason(StrEnum):
    """Why an entry is a dead letter."""

    UNREADABLE = "unreadable"
    """The body is not a JSON object that relay can read."""
    UNKNOWN_TYPE = "unknown_type"
    """The event has a type that relay does not know."""
    NO_RECIPIENT = "no_recipient"
    """The event has neither a user id nor an address."""
    INCOMPLETE = "incomplete"
    """The call lacks a field that its type needs."""
    BAD_TAGS = "bad_tags"
    """The call's tags have a shape that relay does not know; the call itself was sent."""
    DELETION_REQUESTED = "deletion_requested"
    """Segment asks to delete a person, and relay is not set to do so."""
    FORBIDDEN = "forbidden"
    """The call came with a browser's write key, which may not ask for that."""
    OVERSIZED = "oversized"
    """The message is too large for the destination, or the webhook is too large for relay."""
    REJECTED = "rejected"
    """The destination rejected this message."""
    POISON = "poison"
    """Relay itself fails when it handles this webhook."""
    IGNORED = "ignored"
    """Relay accepted the webhook and would ignore it under today's settings. This is no fault."""


REMEDIES: Final[Mapping[DeadReason, str]] = {
    DeadReason.UNREADABLE: "Find out what sent it: the source, or someone who knows the secret.",
    DeadReason.UNKNOWN_TYPE: "Replay it with a version of relay that knows the type, or leave it.",
    DeadReason.NO_RECIPIENT: "The event has no user id and no address: check how the email was"
    " sent.",
    DeadReason.INCOMPLETE: "Correct the program that makes the call; this one says too little to be"
    " sent.",
    DeadReason.BAD_TAGS: "The call itself was sent. Correct the program that makes it, and put the"
    " tags on the person in Vero.",
    DeadReason.DELETION_REQUESTED: "Delete the person in Vero, and their events in relay (`relay"
    " erase`). With VERO_DELETE=1, a replay deletes the person in Vero.",
    DeadReason.FORBIDDEN: "Anybody can read a browser's write key and may have sent this. If it is"
    " right, replay it, and let a server make such calls (or set RELAY_SEGMENT_BROWSER_MAY).",
    DeadReason.OVERSIZED: "The event is too large for the destination: shorten what the email puts"
    " into it. If the webhook itself is too large, turn off Body Content in Customer.io.",
    DeadReason.REJECTED: "Read the destination's answer, correct what it names, and replay it.",
    DeadReason.POISON: "This is a fault in relay: report it, and replay it with a version that"
    " corrects it.",
    DeadReason.IGNORED: "Today's settings ignore it: leave it, or replay it once they are changed"
    " back.",
}
"""What an operator can do about a dead letter, by its reason."""


class EmailEvent(Struct, frozen=True):
    """One email event, the same for every source.

    Attributes:
        collection: one of the seven.
        occurred_at: when it happened, aware UTC; the time of receipt if the source reported no
            time or an impossible one.
        reported_at: when it happened by the source's report, possible or not, aware UTC.
        dedupe_key: identifies the event among all events of its source, in a fixed order; None if
            nothing does, and then it never counts as a duplicate.
        user_id: the customer's id for the recipient.
        email: the recipient's address, trimmed, otherwise as received.
        user_agent: user agent of the program that opened the email or followed the link.
        properties: all other fields that are kept. Each value is a trimmed string that is not
            blank, because a warehouse fixes a column's type at its first value.
    """

    collection: Collection
    occurred_at: datetime
    reported_at: datetime | None
    dedupe_key: tuple[str | None, ...] | None
    user_id: str | None
    email: str | None
    user_agent: str | None
    properties: Mapping[str, str]

    @property
    def people(self) -> tuple[str, ...]:
        """The ids of the people that it names: the recipient's, if there is one."""
        return (self.user_id,) if self.user_id else ()

    @property
    def email_id(self) -> str | None:
        """The source's id of the email."""
        return self.properties.get("email_id")


class CallType(StrEnum):
    """The types of Segment's calls, and `delete`, which Segment sends when it deletes a person."""

    IDENTIFY = "identify"
    TRACK = "track"
    GROUP = "group"
    ALIAS = "alias"
    PAGE = "page"
    SCREEN = "screen"
    DELETE = "delete"


class Call(Struct, frozen=True):
    """One Segment call: what somebody's program says about a person, or what the person did.

    Attributes:
        type: what kind of call it is.
        occurred_at: when it happened, aware UTC; the time of receipt if the call names no time or
            an impossible one.
        reported_at: when it happened by the call, possible or not, aware UTC.
        dedupe_key: identifies the call among all calls; None if it has no `messageId`, and then it
            never counts as a duplicate.
        user_id: the customer's id for the person.
        anonymous_id: the client's id for a visitor.
        previous_id: the id that an alias replaces.
        other_ids: ids of other people that the call names: the one that an alias replaces, and
            those that an opt-out and tags are for.
        email: the person's address, trimmed: among the traits of an identify, or else among the
            traits in the context.
        group_id: the group that the person belongs to.
        event: the name of what the person did, or of the page or the screen that the person saw.
        traits: facts about the person, or about the group, with their values as sent.
        properties: facts about what the person did, with their values as sent.
        context: facts about the client.
        integrations: destinations by name, and whether, or with which options, they get the call.
    """

    type: CallType
    occurred_at: datetime
    reported_at: datetime | None
    dedupe_key: tuple[str | None, ...] | None
    user_id: str | None = None
    anonymous_id: str | None = None
    previous_id: str | None = None
    other_ids: tuple[str, ...] = ()
    email: str | None = None
    group_id: str | None = None
    event: str | None = None
    traits: Mapping[str, Any] = {}
    properties: Mapping[str, Any] = {}
    context: Mapping[str, Any] = {}
    integrations: Mapping[str, Any] = {}

    @property
    def collection(self) -> CallType:
        """What it is counted and found by, as the collection of an email event."""
        return self.type

    @property
    def people(self) -> tuple[str, ...]:
        """The ids of the people that it names, the one that it is about first; each once."""
        named = (self.user_id or self.anonymous_id, *self.other_ids)
        return tuple(dict.fromkeys(filter(None, named)))

    @property
    def email_id(self) -> None:
        """No call is about an email of a source."""
        return None


class Ignored(Struct, frozen=True):
    """A webhook or call that relay understands and that is not for the destination.

    Attributes:
        reason: a short code, one of a fixed few for each source, so that it can be a metric's
            label.
        setting: the variable by which relay ignores it; None if no setting decides.
    """

    reason: str
    setting: str | None = None


class Unusable(Struct, frozen=True):
    """A webhook that cannot become an event and is kept as a dead letter.

    Attributes:
        reason: the kind of fault.
        detail: a sentence for the operator that repeats nothing private from the body.
    """

    reason: DeadReason
    detail: str


Event = EmailEvent | Call
"""What goes to a destination."""

ParseResult = Event | Ignored | Unusable
"""The result of parsing a body."""

"""The normalized email event, and what else a webhook may turn out to be."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from msgspec import Struct


class Collection(StrEnum):
    """The seven collections, named as Segment's Vero source names them.

    Segment's email *spec* knows six: it has no "Email Sent" and says "Unsubscribed". Dashboards
    are built on the source's names (segment-docs, connections/sources/catalog/cloud-apps/vero).
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
    """The body is not a JSON object relay can read."""
    UNKNOWN_TYPE = "unknown_type"
    """The source sent a type of event that relay does not know."""
    NO_RECIPIENT = "no_recipient"
    """Neither a user id nor an address to attribute the event to."""
    OVERSIZED = "oversized"
    """The track call is larger than Segment takes, or the webhook than relay keeps."""
    REJECTED = "rejected"
    """Segment refused this very message."""
    POISON = "poison"
    """The webhook makes relay itself fail."""
    IGNORED = "ignored"
    """Accepted once, and none of the seven under today's settings. No fault."""


REMEDIES: Final[Mapping[DeadReason, str]] = {
    DeadReason.UNREADABLE: "See what sent it: the source, or someone who knows the secret.",
    DeadReason.UNKNOWN_TYPE: "Replay it once a version of relay knows the type, or leave it.",
    DeadReason.NO_RECIPIENT: "There is nobody to attribute it to: look at how the email was sent.",
    DeadReason.OVERSIZED: "Shorten what the email puts into it: Segment takes no more. Where the"
    " webhook itself is too large, turn off Body Content.",
    DeadReason.REJECTED: "Read Segment's words, mend what they name, and replay it.",
    DeadReason.POISON: "A fault of relay's own: report it, and replay it with a version that has it"
    " mended.",
    DeadReason.IGNORED: "Ignored under today's settings: leave it, or replay it once they are"
    " changed back.",
}
"""What an operator can do about a dead letter, by its reason."""


class EmailEvent(Struct, frozen=True):
    """One email event, whoever sent the webhook.

    Attributes:
        collection: which of the seven.
        occurred_at: when it happened, aware UTC; the time of receipt where the source did not
            say or said something impossible.
        reported_at: when the source says it happened, possible or not.
        dedupe_key: what tells this event from all others of its source, in a fixed order; None
            when nothing does, so that it must never be taken for a duplicate.
        user_id: the customer's id for the recipient.
        email: the recipient's address, trimmed, as it came.
        user_agent: of whoever opened or clicked.
        properties: the track call's properties; non-blank trimmed strings only, because a
            warehouse freezes a column's type at its first value.
    """

    collection: Collection
    occurred_at: datetime
    reported_at: datetime | None
    dedupe_key: tuple[str | None, ...] | None
    user_id: str | None
    email: str | None
    user_agent: str | None
    properties: Mapping[str, str]


class Ignored(Struct, frozen=True):
    """Understood, and none of the seven.

    Attributes:
        reason: a short code; one of a fixed few for each source, fit for a metric's label.
        setting: the variable that has it ignored; None where nothing else can be set.
    """

    reason: str
    setting: str | None = None


class Unusable(Struct, frozen=True):
    """A webhook that cannot become an event and is kept as a dead letter.

    Attributes:
        reason: which kind of fault.
        detail: a sentence for the operator, without anything from the body that may be private.
    """

    reason: DeadReason
    detail: str


ParseResult = EmailEvent | Ignored | Unusable
"""What a source makes of a body."""

"""Customer.io's reporting webhooks.

What is said of them here comes from Customer.io's own description of its reporting webhooks
(docs.customer.io/journeys/webhooks, files/journeys-webhooks.json), from its pages on its Segment
source, and, for the older format, from receivers that others run. Its schemas do not always keep
to themselves, so nothing is required but what an event cannot be made without.
"""

import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from email.utils import parseaddr
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from relay.auth import Secrets
from relay.errors import UnreadableError
from relay.events import Collection, DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.sources import Verifier, Webhook
from relay.sources.fields import (
    REPEATABLE,
    address,
    instant,
    occurred,
    read_object,
    said_time,
    text,
    unknown_type,
    word,
)

_COLLECTIONS: Final = {
    "sent": Collection.SENT,
    "delivered": Collection.DELIVERED,
    "opened": Collection.OPENED,
    "clicked": Collection.LINK_CLICKED,
    "unsubscribed": Collection.UNSUBSCRIBED,
    "bounced": Collection.BOUNCED,
    "spammed": Collection.MARKED_AS_SPAM,
}
_OTHER_METRICS: Final = frozenset(
    {"attempted", "converted", "deferred", "drafted", "dropped", "failed", "undeliverable"}
)
_METRICS: Final = frozenset({*_COLLECTIONS, *_OTHER_METRICS})
_OF_A_PERSON: Final = frozenset(
    {
        "subscribed",
        "cio_subscription_preferences_changed",
        "customer_subscription_preferences_changed",
    }
)
_OTHER_CHANNELS: Final = frozenset(
    {"in_app", "inbox", "push", "slack", "sms", "webhook", "whatsapp"}
)

# A colon in it would let bytes move between the time and the body without a change of what is
# signed. 20 digits hold any count of seconds or nanoseconds.
_SENT_AT: Final = re.compile(rb"[0-9]{1,20}")
_SIGNATURE: Final = re.compile(rb"[0-9a-f]{64}")

# Each kind of campaign names itself in a field of its own.
_CAMPAIGNS: Final = {
    "campaign_id": "campaign",
    "broadcast_id": "broadcast",
    "newsletter_id": "newsletter",
    "transactional_message_id": "transactional",
}
# Which property a field becomes; of two, the first that is not blank. `email_id` is the older one.
_PROPERTIES: Final = {
    "delivery_id": "email_id",
    "email_id": "email_id",
    "subject": "email_subject",
    "campaign_name": "campaign_name",
    "link_id": "link_id",
    "href": "link_url",
    "failure_message": "bounce_message",
    "action_id": "action_id",
    "content_id": "content_id",
    "journey_id": "journey_id",
}
# Machines open mails in advance and follow their links, to look at what is in them.
_MACHINE: Final = {
    Collection.OPENED: ("machine_open", ("machine", "proxied", "prefetched", "synthetic")),
    Collection.LINK_CLICKED: ("machine_click", ("machine", "synthetic")),
}

_EXAMPLE: Final = """{
  "object_type": "email",
  "metric": "clicked",
  "event_id": "01KE2Y5Q8WJ4N6T7R9A3B5C7D9",
  "timestamp": 1767225600,
  "data": {
    "campaign_id": 7,
    "action_id": 96,
    "delivery_id": "ZAIAAVTJVG0QcCok0ZKj6yiQ",
    "identifiers": { "id": "2001", "email": "ana@example.com" },
    "recipient": "ana@example.com",
    "subject": "What to sow before the last frost",
    "link_id": 3,
    "href": "https://example.com/garden"
  }
}"""


_CURL: Final = r'''at=$(date +%s)
signature=$(printf 'v0:%s:%s' "$at" "$body" |
  openssl dgst -sha256 -hmac "$RELAY_CUSTOMERIO_SIGNING_KEY" -r | cut -d ' ' -f 1)
curl "$URL/webhooks/customerio" --data-raw "$body" \
  -H "X-CIO-Timestamp: $at" -H "X-CIO-Signature: $signature"'''


class CustomerioSettings(BaseModel):
    """The variables `RELAY_CUSTOMERIO_…`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    signing_key: Secrets = Field(
        default=(),
        description="Signing key that Customer.io shows beside the webhook; several,"
        " comma-separated, while rotating. Without it `/webhooks/customerio` does not exist.",
    )
    tolerance: int = Field(
        default=0,
        ge=0,
        description="Seconds that a webhook's `X-CIO-Timestamp` may be off; 0 for any number, as"
        " retries, which go on for a week, may carry an old one.",
    )
    machine: Annotated[Literal["mark", "drop"], BeforeValidator(str.lower)] = Field(
        default="mark",
        description="What becomes of opens and clicks that Customer.io says a machine made: `mark`"
        " them (`machine_open`, `machine_click`) or `drop` them.",
    )


class Customerio:
    """See `relay.sources.Source`."""

    name: ClassVar[str] = "customerio"
    destination: ClassVar[str] = "segment"
    settings_model: ClassVar[type[BaseModel]] = CustomerioSettings
    signs_body: ClassVar[bool] = True
    blocks_on_error: ClassVar[bool] = True
    curl: ClassVar[str] = _CURL
    example: ClassVar[str] = _EXAMPLE

    def __init__(self, settings: CustomerioSettings) -> None:
        self._keys: Sequence[SecretStr] = settings.signing_key
        self._tolerance = timedelta(seconds=settings.tolerance)
        self._drops_machines = settings.machine == "drop"
        self.configured = bool(settings.signing_key)
        # Events that come back to Customer.io's own destination would be counted there once more.
        self.integrations: Mapping[str, bool] = {"Customer.io": False}

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`. The time is signed with the body."""
        verifier = self.verifier(webhook)
        if verifier is None:
            return False
        verifier.update(webhook.body)
        return verifier.accepts()

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """See `Source.verifier`."""
        sent_at = webhook.header(b"x-cio-timestamp")
        signature = webhook.header(b"x-cio-signature")
        if (
            webhook.path_secret is not None
            or not _SENT_AT.fullmatch(sent_at)
            or not _SIGNATURE.fullmatch(signature)
            or not self._is_recent(sent_at, webhook.received_at)
        ):
            return None
        return _Signature(self._keys, sent_at, signature)

    def _is_recent(self, sent_at: bytes, received_at: datetime) -> bool:
        if not self._tolerance:
            return True
        moment = instant(sent_at.decode())
        return moment is not None and abs(received_at - moment) <= self._tolerance

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        try:
            document = read_object(body)
        except UnreadableError as error:
            return Unusable(DeadReason.UNREADABLE, str(error))
        data = document.get("data")
        data = data if isinstance(data, dict) else {}
        channel, metric = _kind(document, data)
        if none := _none_of_the_seven(channel, metric, data):
            return none
        collection = _COLLECTIONS[metric or ""]
        machine = _machine(collection, data)
        if machine and self._drops_machines:
            return Ignored("machine", "RELAY_CUSTOMERIO_MACHINE")
        user_id, email = _recipient(data)
        if not (user_id or email):
            return Unusable(DeadReason.NO_RECIPIENT, "neither a user id nor an address")
        reported_at = instant(document.get("timestamp"))
        return EmailEvent(
            collection=collection,
            occurred_at=occurred(reported_at, received_at),
            reported_at=reported_at,
            dedupe_key=_identity(document, data, metric, user_id or email),
            user_id=user_id,
            email=email,
            user_agent=None,
            properties=_properties(data) | machine,
        )


SOURCE = Customerio


class _Signature:
    """See `Verifier`. The time is signed with the body."""

    def __init__(self, keys: Sequence[SecretStr], sent_at: bytes, signature: bytes) -> None:
        begun = b"v0:%b:" % sent_at
        self._macs = [hmac.new(key.get_secret_value().encode(), begun, "sha256") for key in keys]
        self._signature = signature

    def update(self, piece: bytes) -> None:
        """See `Verifier.update`."""
        for mac in self._macs:
            mac.update(piece)

    def accepts(self) -> bool:
        """See `Verifier.accepts`."""
        # Every key is tried, so that the time taken does not tell which one matched.
        matches = [
            hmac.compare_digest(mac.hexdigest().encode(), self._signature) for mac in self._macs
        ]
        return any(matches)


def _kind(document: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The channel and the metric; the older format has both in one word."""
    if legacy := word(document.get("event_type")):
        return _split(legacy)
    channel, metric = word(document.get("object_type")), word(document.get("metric"))
    # What is sent to an address, is a delivery, and is called like an email's event is one.
    if (
        channel is None
        and metric in _METRICS
        and _delivery(data)
        and address(data.get("recipient"))
    ):
        channel = "email"
    return channel, metric


def _split(legacy: str) -> tuple[str, str | None]:
    """The channel and the metric in `email_opened`; each may have underscores of its own."""
    for channel in ("email", "customer", *_OTHER_CHANNELS):
        if legacy.startswith(f"{channel}_"):
            return channel, legacy.removeprefix(f"{channel}_")
    for metric in (*_METRICS, *_OF_A_PERSON):
        if legacy.endswith(f"_{metric}"):
            return legacy.removesuffix(f"_{metric}"), metric
    return legacy, None


def _delivery(data: Mapping[str, Any]) -> str | None:
    """What identifies the mail; the second name is the older one."""
    return word(data.get("delivery_id")) or word(data.get("email_id"))


def _none_of_the_seven(
    channel: str | None, metric: str | None, data: Mapping[str, Any]
) -> Ignored | Unusable | None:
    if channel in _OTHER_CHANNELS:
        return Ignored("other_channel")
    # Whoever subscribes or unsubscribes in general does so through a channel, too, and then there
    # is no delivery that it is about.
    if channel == "customer" or metric in _OF_A_PERSON:
        return Ignored("of_a_person")
    if channel != "email":
        return unknown_type(channel)
    if metric == "unsubscribed" and not _delivery(data):
        return Ignored("of_a_person")
    if metric in _OTHER_METRICS:
        return Ignored("other_metric")
    return None if metric in _COLLECTIONS else unknown_type(metric)


def _recipient(data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The user id and the address. `customer_id` is blank once a person is deleted."""
    identifiers = data.get("identifiers")
    identifiers = identifiers if isinstance(identifiers, dict) else {}
    user_id = word(identifiers.get("id")) or word(data.get("customer_id"))
    email = (
        word(identifiers.get("email"))
        or _mailbox(data.get("email_address"))
        or address(data.get("recipient"))
    )
    return user_id, email


def _mailbox(value: object) -> str | None:
    """The address; the older format may have a name before it."""
    said = word(value)
    return (address(parseaddr(said)[1]) or said) if said else None


def _properties(data: Mapping[str, Any]) -> dict[str, str]:
    properties: dict[str, str] = {}
    for field, name in _PROPERTIES.items():
        if name not in properties and (value := text(data.get(field))):
            properties[name] = value
    for field, kind in _CAMPAIGNS.items():
        if campaign := word(data.get(field)):
            return properties | {"campaign_id": campaign, "campaign_type": kind}
    return properties


def _machine(collection: Collection, data: Mapping[str, Any]) -> dict[str, str]:
    """The property that says so, if a machine did it."""
    name, flags = _MACHINE.get(collection, ("", ()))
    return {name: "true"} if any(text(data.get(flag)) == "true" for flag in flags) else {}


def _identity(
    document: Mapping[str, Any],
    data: Mapping[str, Any],
    metric: str | None,
    recipient: str | None,
) -> tuple[str | None, ...] | None:
    """`event_id`, which each try to deliver the event carries; else all that tells events apart."""
    if event_id := word(document.get("event_id")):
        return (event_id,)
    delivery, said = _delivery(data), said_time(document.get("timestamp"))
    if delivery is None or (said is None and _COLLECTIONS[metric or ""] in REPEATABLE):
        return None
    # The time is in seconds: two links of one mail may be followed within one.
    link = (word(data.get("link_id")), word(data.get("href")))
    return (metric, delivery, said, recipient, *(link if any(link) else ()))

"""The source `customerio`: authenticates and parses Customer.io's reporting webhooks.

The facts here come from Customer.io's own description of its reporting webhooks
(docs.customer.io/journeys/webhooks, files/journeys-webhooks.json), from its pages on its Segment
source, and, for the older format, from other people's receivers. Its webhooks do not always follow
its schemas, so relay requires only the fields that an event needs.
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
from relay.sources.fields import (
    REPEATABLE,
    as_address,
    parse_time,
    plausible_time,
    read_object,
    time_text,
    unknown_type,
)
from relay.sources.protocol import WRONG_SIGNATURE, Verifier, Webhook
from relay.texts import as_id, as_object, as_text

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
# About a person's subscription, not about an email.
_ABOUT_A_PERSON: Final = frozenset(
    {
        "subscribed",
        "cio_subscription_preferences_changed",
        "customer_subscription_preferences_changed",
    }
)
_OTHER_CHANNELS: Final = frozenset(
    {"in_app", "inbox", "push", "slack", "sms", "webhook", "whatsapp"}
)

# If a colon were allowed, bytes could move between the time and the body while the signed text
# stays the same. 20 digits hold any number of seconds or nanoseconds.
_SENT_AT: Final = re.compile(rb"[0-9]{1,20}")
_SIGNATURE: Final = re.compile(rb"[0-9a-f]{64}")

# Each kind of campaign has its id in a field of its own.
_CAMPAIGNS: Final = {
    "campaign_id": "campaign",
    "broadcast_id": "broadcast",
    "newsletter_id": "newsletter",
    "transactional_message_id": "transactional",
}
# The property that each field becomes. If two fields become the same property, the first that is
# not blank counts; `email_id` is the older name of `delivery_id`.
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
# Mail servers open emails and follow their links before people do, to check what is in them.
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
    """Settings from the variables `RELAY_CUSTOMERIO_…`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    signing_key: Secrets = Field(
        default=(),
        description="Signing key that Customer.io shows beside the webhook; several, separated by"
        " commas, while rotating. If unset, relay does not serve `/webhooks/customerio`.",
    )
    tolerance: int = Field(
        default=0,
        ge=0,
        description="Seconds that a webhook's `X-CIO-Timestamp` may differ from relay's clock; `0`"
        " allows any difference, because Customer.io retries for a week and a retry may carry an"
        " old time.",
    )
    machine: Annotated[Literal["mark", "drop"], BeforeValidator(str.lower)] = Field(
        default="mark",
        description="What relay does with opens and clicks that Customer.io attributes to a"
        " machine: `mark` them (`machine_open`, `machine_click`) or `drop` them.",
    )


class Customerio:
    """The source `customerio`; see `Source`."""

    name: ClassVar[str] = "customerio"
    destination: ClassVar[str] = "segment"
    collections: ClassVar[type[Collection]] = Collection
    settings_model: ClassVar[type[BaseModel]] = CustomerioSettings
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    signs_body: ClassVar[bool] = True
    takes_secret: ClassVar[bool] = False
    blocks_on_error: ClassVar[bool] = True
    takes_calls: ClassVar[bool] = False
    curl: ClassVar[str] = _CURL
    example: ClassVar[str] = _EXAMPLE

    def __init__(self, settings: CustomerioSettings) -> None:
        self._keys: Sequence[SecretStr] = settings.signing_key
        self._tolerance = timedelta(seconds=settings.tolerance)
        self._drops_machines = settings.machine == "drop"
        self.configured = self.takes_webhooks = bool(settings.signing_key)
        # Segment's Customer.io destination would return the events, to be counted there twice.
        self.integrations: Mapping[str, bool] = {"Customer.io": False}

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`. The signature covers the time and the body."""
        verifier = self.verifier(webhook)
        if verifier is None:
            return False
        verifier.update(webhook.body)
        return verifier.fault() is None

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
        time = parse_time(sent_at.decode())
        return time is not None and abs(received_at - time) <= self._tolerance

    def split(self, body: bytes) -> tuple[bytes, ...]:
        """See `Source.split`."""
        return (body,)

    def split_line(self, line: bytes) -> tuple[bytes, ...]:
        """See `Source.split_line`."""
        return (line,)

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        try:
            document = read_object(body)
        except UnreadableError as error:
            return Unusable(DeadReason.UNREADABLE, str(error))
        data = as_object(document.get("data"))
        channel, metric = _kind(document, data)
        if excluded := _excluded(channel, metric, data):
            return excluded
        collection = _COLLECTIONS[metric or ""]
        machine = _machine(collection, data)
        if machine and self._drops_machines:
            return Ignored("machine", "RELAY_CUSTOMERIO_MACHINE")
        user_id, email = _recipient(data)
        if not (user_id or email):
            return Unusable(DeadReason.NO_RECIPIENT, "neither a user id nor an address")
        reported_at = parse_time(document.get("timestamp"))
        return EmailEvent(
            collection=collection,
            occurred_at=plausible_time(reported_at, received_at),
            reported_at=reported_at,
            dedupe_key=_dedupe_key(document, data, metric, user_id or email),
            user_id=user_id,
            email=email,
            user_agent=None,
            properties=_properties(data) | machine,
        )


class _Signature:
    """A `Verifier` of Customer.io's signature, which covers the time and the body."""

    def __init__(self, keys: Sequence[SecretStr], sent_at: bytes, signature: bytes) -> None:
        start = b"v0:%b:" % sent_at
        self._macs = [hmac.new(key.get_secret_value().encode(), start, "sha256") for key in keys]
        self._signature = signature

    def update(self, piece: bytes) -> None:
        """See `Verifier.update`."""
        for mac in self._macs:
            mac.update(piece)

    def fault(self) -> str | None:
        """See `Verifier.fault`."""
        # Every key is tried, so that the time taken does not depend on which one matches.
        matches = [
            hmac.compare_digest(mac.hexdigest().encode(), self._signature) for mac in self._macs
        ]
        return None if any(matches) else WRONG_SIGNATURE


def _kind(document: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the channel and the metric; the older format has both in one word."""
    if legacy := as_id(document.get("event_type")):
        return _split(legacy)
    channel, metric = as_id(document.get("object_type")), as_id(document.get("metric"))
    # A webhook without a channel is about an email if it has a metric of emails, a delivery and an
    # address as recipient.
    if (
        channel is None
        and metric in _METRICS
        and _delivery(data)
        and as_address(data.get("recipient"))
    ):
        channel = "email"
    return channel, metric


def _split(legacy: str) -> tuple[str, str | None]:
    """Return the channel and the metric in `email_opened`; either may contain underscores."""
    for channel in ("email", "customer", *_OTHER_CHANNELS):
        if legacy.startswith(f"{channel}_"):
            return channel, legacy.removeprefix(f"{channel}_")
    for metric in (*_METRICS, *_ABOUT_A_PERSON):
        if legacy.endswith(f"_{metric}"):
            return legacy.removesuffix(f"_{metric}"), metric
    return legacy, None


def _delivery(data: Mapping[str, Any]) -> str | None:
    """Return the id of the email, which the older format calls `email_id`."""
    return as_id(data.get("delivery_id")) or as_id(data.get("email_id"))


def _excluded(
    channel: str | None, metric: str | None, data: Mapping[str, Any]
) -> Ignored | Unusable | None:
    """Return why the event belongs to no collection; None if it belongs to one."""
    if channel in _OTHER_CHANNELS:
        return Ignored("other_channel")
    # Subscribing or unsubscribing in general has a channel, too, but is not about a delivery.
    if channel == "customer" or metric in _ABOUT_A_PERSON:
        return Ignored("of_a_person")
    if channel != "email":
        return unknown_type(channel)
    if metric == "unsubscribed" and not _delivery(data):
        return Ignored("of_a_person")
    if metric in _OTHER_METRICS:
        return Ignored("other_metric")
    return None if metric in _COLLECTIONS else unknown_type(metric)


def _recipient(data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the user id and the address. `customer_id` is blank once a person is deleted."""
    identifiers = as_object(data.get("identifiers"))
    user_id = as_id(identifiers.get("id")) or as_id(data.get("customer_id"))
    email = (
        as_id(identifiers.get("email"))
        or _mailbox(data.get("email_address"))
        or as_address(data.get("recipient"))
    )
    return user_id, email


def _mailbox(value: object) -> str | None:
    """Return the address; the older format may have a name before it."""
    mailbox = as_id(value)
    return (as_address(parseaddr(mailbox)[1]) or mailbox) if mailbox else None


def _properties(data: Mapping[str, Any]) -> dict[str, str]:
    properties: dict[str, str] = {}
    for field, name in _PROPERTIES.items():
        if name not in properties and (value := as_text(data.get(field))):
            properties[name] = value
    for field, kind in _CAMPAIGNS.items():
        if campaign := as_id(data.get(field)):
            return properties | {"campaign_id": campaign, "campaign_type": kind}
    return properties


def _machine(collection: Collection, data: Mapping[str, Any]) -> dict[str, str]:
    """Return the property that marks what a machine did; nothing for what a person did."""
    name, flags = _MACHINE.get(collection, ("", ()))
    return {name: "true"} if any(as_text(data.get(flag)) == "true" for flag in flags) else {}


def _dedupe_key(
    document: Mapping[str, Any],
    data: Mapping[str, Any],
    metric: str | None,
    recipient: str | None,
) -> tuple[str | None, ...] | None:
    """Return what identifies the event; None if nothing does.

    It is `event_id`, which every retry of a webhook repeats. Without one, it is every field that
    may differ between events.
    """
    if event_id := as_id(document.get("event_id")):
        return (event_id,)
    delivery, time = _delivery(data), time_text(document.get("timestamp"))
    if delivery is None or (time is None and _COLLECTIONS[metric or ""] in REPEATABLE):
        return None
    # The time is in seconds: a person may follow two links of one email within the same second.
    link = (as_id(data.get("link_id")), as_id(data.get("href")))
    return (metric, delivery, time, recipient, *(link if any(link) else ()))


SOURCE: Final = Customerio

"""Vero's webhooks.

Vero documents neither a schema nor a signature. What is said of its payloads here comes from its
help pages (help.getvero.com: setting up webhooks), from Snowplow's published Vero schemas, and
from receivers that others run. Nothing is promised to be present, and the same field has been
seen as a number and as a string, padded with blanks, and under other names in `unsubscribed`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from relay.auth import SecretCheck, Secrets, basic_credentials, bearer_token
from relay.errors import UnreadableError
from relay.events import Collection, DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.sources import Verified, Verifier, Webhook
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
    "complained": Collection.MARKED_AS_SPAM,
}

_OTHER_TYPES: Final = frozenset(
    {"converted", "failed", "resubscribed", "user_created", "user_updated"}
)

# Which property a field becomes. Where two become the same one, the first that is not blank counts;
# the second names are those of `unsubscribed`.
_TOP_LEVEL: Final = {
    "message_id": "email_id",
    "bounce_type": "bounce_type",
    "bounce_code": "bounce_code",
    "bounce_message": "bounce_message",
}
_CAMPAIGN: Final = {
    "message_id": "email_id",
    "subject": "email_subject",
    "email_subject": "email_subject",
    "id": "campaign_id",
    "name": "campaign_name",
    "campaign_title": "campaign_name",
    "type": "campaign_type",
    "group": "campaign_group",
    "series_title": "campaign_series",
    "trigger-event": "trigger_event",
    "variation": "variation",
    "variation_name": "variation",
    "template": "template",
    "locale": "locale",
    "tags": "tags",
}

_UNREAD: Final = "unread "  # before what is no instant, so that it is never taken for one

# The recipient of the sample that Vero's Test button sends.
_SAMPLE_USER: Final = ("123", "steve@getvero.com")


class VeroSettings(BaseModel):
    """The variables `RELAY_VERO_…`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    secret: Secrets = Field(
        default=(),
        description="Secret at the end of the webhook URL, 16 characters or more; several,"
        " comma-separated, while rotating. Without it `/webhooks/vero` does not exist.",
    )
    tests: Annotated[Literal["ignore", "forward"], BeforeValidator(str.lower)] = Field(
        default="ignore",
        description="What becomes of the sample that Vero's Test button sends (user 123,"
        " steve@getvero.com): `ignore` it or `forward` it.",
    )
    loop: Annotated[Literal["block", "allow"], BeforeValidator(str.lower)] = Field(
        default="block",
        description="`block` keeps the events from Segment's own Vero destination, which"
        " unsubscribes people at any event named like “unsubscribe”; `allow` lets them through.",
    )


_EXAMPLE: Final = """{
  "type": "opened",
  "opened_at": 1767225600,
  "message_id": "20260101120000.4f2a91c3@mail.example.com",
  "user": { "id": 2001, "email": "ana@example.com" },
  "campaign": {
    "id": 478,
    "name": "Garden in spring",
    "type": "newsletter",
    "subject": "What to sow before the last frost",
    "sent_to": "ana@example.com"
  },
  "user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X)"
}"""


class Vero:
    """See `relay.sources.Source`."""

    name: ClassVar[str] = "vero"
    destination: ClassVar[str] = "segment"
    settings_model: ClassVar[type[BaseModel]] = VeroSettings
    signs_body: ClassVar[bool] = False
    blocks_on_error: ClassVar[bool] = False
    curl: ClassVar[str] = 'curl "$URL/webhooks/vero/$RELAY_VERO_SECRET" --data-raw "$body"'
    example: ClassVar[str] = _EXAMPLE

    def __init__(self, settings: VeroSettings) -> None:
        self._secrets = SecretCheck(settings.secret)
        self._ignores_samples = settings.tests == "ignore"
        self.configured = bool(settings.secret)
        self.integrations: Mapping[str, bool] = {} if settings.loop == "allow" else {"Vero": False}

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`. Vero itself can only carry a secret in the URL."""
        if webhook.path_secret is not None:
            return self._secrets.accepts(webhook.path_secret.encode())
        return self._secrets.accepts(_credential(webhook.header(b"authorization")))

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """See `Source.verifier`."""
        return Verified() if self.authenticate(webhook) else None

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        try:
            document = read_object(body)
        except UnreadableError as error:
            return Unusable(DeadReason.UNREADABLE, str(error))
        # `user_updated` has been seen with its type under `action`.
        kind = word(document.get("type")) or word(document.get("action"))
        collection = _COLLECTIONS.get(kind or "")
        if kind is None or collection is None:
            return Ignored(kind) if kind in _OTHER_TYPES else unknown_type(kind)
        user = _object(document.get("user"))
        campaign = _object(document.get("campaign"))
        # Vero sends pushes and text messages under the same types; older webhooks name no channel.
        channel = text(campaign.get("channel"))
        if channel and channel.lower() != "email":
            return Ignored("other_channel")
        user_id = word(user.get("id"))
        email = word(user.get("email")) or address(campaign.get("sent_to"))
        if self._ignores_samples and (user_id, email) == _SAMPLE_USER:
            return Ignored("test_sample", "RELAY_VERO_TESTS")
        if not (user_id or email):
            return Unusable(DeadReason.NO_RECIPIENT, "neither a user id nor an address")
        properties = _properties(document, campaign)
        user_agent = text(document.get("user_agent"))
        time = document.get(f"{kind}_at")
        reported_at = instant(time)
        return EmailEvent(
            collection=collection,
            occurred_at=occurred(reported_at, received_at),
            reported_at=reported_at,
            dedupe_key=_identity(
                kind, _when(time, reported_at), user_id or email, user_agent, properties
            ),
            user_id=user_id,
            email=email,
            user_agent=user_agent,
            properties=properties,
        )


SOURCE = Vero


def _credential(authorization: bytes) -> bytes:
    """Return the Bearer token or the Basic password; empty if there is neither."""
    if basic := basic_credentials(authorization):
        return basic[1]
    return bearer_token(authorization) or b""


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _properties(document: dict[str, Any], campaign: dict[str, Any]) -> dict[str, str]:
    properties: dict[str, str] = {}
    for source, names in ((document, _TOP_LEVEL), (campaign, _CAMPAIGN)):
        for key, name in names.items():
            if key in source and name not in properties and (value := text(source[key])):
                properties[name] = value
    return properties


def _when(time: object, reported_at: datetime | None) -> str | None:
    """What tells the time of one event from another's; None where the webhook says no time."""
    if reported_at is not None:
        return str(round(reported_at.timestamp() * 1000))
    said = said_time(time)
    return said and _UNREAD + said


def _identity(
    kind: str,
    when: str | None,
    recipient: str | None,
    user_agent: str | None,
    properties: Mapping[str, str],
) -> tuple[str | None, ...] | None:
    """What tells one webhook from another: Vero sends no id of the event itself.

    `message_id` names the mail, which its opens and clicks share. The instant is the one the
    webhook says, plausible or not: unlike the time of receipt, it is the same each time.
    """
    email_id = properties.get("email_id")
    if when is None and _COLLECTIONS[kind] in REPEATABLE:
        return None
    if email_id is None and (when is None or when.startswith(_UNREAD)):
        return None
    mail = email_id or properties.get("campaign_id") or properties.get("campaign_name")
    return (kind, mail, when, recipient, user_agent)

"""The source `vero`: authenticates and parses Vero's webhooks.

Vero documents neither a schema nor a signature. The facts about its payloads here come from its
help pages (help.getvero.com: setting up webhooks), from Snowplow's published Vero schemas, and
from other people's receivers. Any field may be missing. The same field has been seen as a number
and as a string, padded with blanks, and under other names in `unsubscribed`.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from relay.auth import SecretCheck, Secrets, basic_credentials, bearer_token
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
from relay.sources.protocol import Verified, Verifier, Webhook
from relay.texts import as_id, as_object, as_text

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

# The property that each field becomes. If two fields become the same property, the first that is
# not blank counts; the second names are those in `unsubscribed`.
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

_UNREAD: Final = "unread "  # the prefix of a time that could not be read; no other key has it

# The recipient of the sample that Vero's Test button sends.
_SAMPLE_USER: Final = ("123", "steve@getvero.com")


class VeroSettings(BaseModel):
    """Settings from the variables `RELAY_VERO_…`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    secret: Secrets = Field(
        default=(),
        description="Secret at the end of the webhook URL, 16 characters or more; several,"
        " separated by commas, while rotating. If unset, relay does not serve `/webhooks/vero`.",
    )
    tests: Annotated[Literal["ignore", "forward"], BeforeValidator(str.lower)] = Field(
        default="ignore",
        description="What relay does with the sample that Vero's Test button sends (user 123,"
        " steve@getvero.com): `ignore` it or `forward` it.",
    )
    loop: Annotated[Literal["block", "allow"], BeforeValidator(str.lower)] = Field(
        default="block",
        description="`block` keeps the events from Segment's own Vero destination, which"
        " unsubscribes people at any event with “unsubscribe” in its name; `allow` lets them"
        " through.",
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
    """The source `vero`; see `Source`."""

    name: ClassVar[str] = "vero"
    destination: ClassVar[str] = "segment"
    collections: ClassVar[type[Collection]] = Collection
    settings_model: ClassVar[type[BaseModel]] = VeroSettings
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    signs_body: ClassVar[bool] = False
    takes_secret: ClassVar[bool] = True
    blocks_on_error: ClassVar[bool] = False
    takes_calls: ClassVar[bool] = False
    curl: ClassVar[str] = 'curl "$URL/webhooks/vero/$RELAY_VERO_SECRET" --data-raw "$body"'
    example: ClassVar[str] = _EXAMPLE

    def __init__(self, settings: VeroSettings) -> None:
        self._secrets = SecretCheck(settings.secret)
        self._ignores_samples = settings.tests == "ignore"
        self.configured = self.takes_webhooks = bool(settings.secret)
        self.integrations: Mapping[str, bool] = {} if settings.loop == "allow" else {"Vero": False}

    def authenticate(self, webhook: Webhook) -> bool:
        """See `Source.authenticate`.

        Vero itself can only send a secret in the URL; a proxy before relay may send a header.
        """
        if webhook.path_secret is not None:
            return self._secrets.accepts(webhook.path_secret.encode())
        return self._secrets.accepts(_credential(webhook.header(b"authorization")))

    def verifier(self, webhook: Webhook) -> Verifier | None:
        """See `Source.verifier`."""
        return Verified() if self.authenticate(webhook) else None

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
        # `user_updated` has been seen with its type under `action`.
        kind = as_id(document.get("type")) or as_id(document.get("action"))
        collection = _COLLECTIONS.get(kind or "")
        if kind is None or collection is None:
            return Ignored(kind) if kind in _OTHER_TYPES else unknown_type(kind)
        user = as_object(document.get("user"))
        campaign = as_object(document.get("campaign"))
        # Vero sends pushes and text messages under the same types; older webhooks name no channel.
        channel = as_text(campaign.get("channel"))
        if channel and channel.lower() != "email":
            return Ignored("other_channel")
        user_id = as_id(user.get("id"))
        email = as_id(user.get("email")) or as_address(campaign.get("sent_to"))
        if self._ignores_samples and (user_id, email) == _SAMPLE_USER:
            return Ignored("test_sample", "RELAY_VERO_TESTS")
        if not (user_id or email):
            return Unusable(DeadReason.NO_RECIPIENT, "neither a user id nor an address")
        properties = _properties(document, campaign)
        user_agent = as_text(document.get("user_agent"))
        time = document.get(f"{kind}_at")
        reported_at = parse_time(time)
        return EmailEvent(
            collection=collection,
            occurred_at=plausible_time(reported_at, received_at),
            reported_at=reported_at,
            dedupe_key=_dedupe_key(
                kind, _time_key(time, reported_at), user_id or email, user_agent, properties
            ),
            user_id=user_id,
            email=email,
            user_agent=user_agent,
            properties=properties,
        )


def _credential(authorization: bytes) -> bytes:
    """Return the Bearer token or the Basic password; empty if there is neither."""
    if basic := basic_credentials(authorization):
        return basic[1]
    return bearer_token(authorization) or b""


def _properties(document: dict[str, Any], campaign: dict[str, Any]) -> dict[str, str]:
    properties: dict[str, str] = {}
    for source, names in ((document, _TOP_LEVEL), (campaign, _CAMPAIGN)):
        for key, name in names.items():
            if key in source and name not in properties and (value := as_text(source[key])):
                properties[name] = value
    return properties


def _time_key(time: object, reported_at: datetime | None) -> str | None:
    """Return the time for a dedupe key, in milliseconds if it could be read; None without one."""
    if reported_at is not None:
        return str(round(reported_at.timestamp() * 1000))
    unread = time_text(time)
    return unread and _UNREAD + unread


def _dedupe_key(
    kind: str,
    time: str | None,
    recipient: str | None,
    user_agent: str | None,
    properties: Mapping[str, str],
) -> tuple[str | None, ...] | None:
    """Return what identifies the event, because Vero sends no event id; None if nothing does.

    `message_id` identifies the email, which all its opens and clicks share. The time is the
    reported one, plausible or not: unlike the time of receipt, it is the same in every retry.
    """
    email_id = properties.get("email_id")
    if time is None and _COLLECTIONS[kind] in REPEATABLE:
        return None
    if email_id is None and (time is None or time.startswith(_UNREAD)):
        return None
    email = email_id or properties.get("campaign_id") or properties.get("campaign_name")
    return (kind, email, time, recipient, user_agent)


SOURCE: Final = Vero

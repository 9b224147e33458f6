"""The destination `segment`: renders events as track calls, sends them, and interprets answers.

Messages and requests equal those of Segment's own library, analytics-python; tests check that.
The library itself is not used. Its queue is in memory and drops what it cannot send, its transport
follows redirects, and both cost several times as much as the code below.

The facts about the API are from Segment's documentation of the HTTP Tracking API, of partner
streams and of duplicate data.
"""

import gzip
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from relay import __version__
from relay.addresses import digest
from relay.destinations import urls
from relay.destinations.http import HttpClient, Response
from relay.destinations.message_ids import fingerprint, message_id
from relay.destinations.protocol import Limits, Message, Rendering
from relay.destinations.redaction import without_address
from relay.destinations.responses import (
    MAX_QUOTED,
    denies,
    is_page,
    quoted,
    retry_after,
    status_line,
)
from relay.errors import (
    DestinationError,
    HttpError,
    RefusedError,
    RejectedError,
    UnavailableError,
    UnusableUrlError,
)
from relay.events import DeadReason, EmailEvent, Unusable

MAX_MESSAGE_BYTES: Final = 32_000
"""Most bytes of one message: the documented 32 KB, read as the smaller of its two meanings."""

LIBRARY: Final = {"name": "analytics-python", "version": "2.4.0"}
"""Segment's library, which messages and requests name."""

# segment-docs, guides/regional-segment.md. A host drops events of the other region's workspaces.
_HOSTS: Final = {"us": "https://api.segment.io", "eu": "https://events.eu1.segmentapis.com"}

_REJECTIONS: Final = frozenset({400, 413, 422})
# 460 is Segment's own status for a temporary failure (analytics-java, AnalyticsClient).
_TEMPORARY: Final = frozenset({408, 410, 429, 460})
_PERMANENT: Final = frozenset({501, 505, 511})
# Answers of a proxy or a gateway that does not reach Segment, or does not let relay through.
_NOT_REACHED: Final = frozenset({407, 502, 503, 504})
_GZIP_LEVEL: Final = 1  # costs a third of level 9 and gives a tenth more bytes

_LowerCase = BeforeValidator(str.lower)
_encode = msgspec.json.encode


class SegmentSettings(BaseModel):
    """Settings of the Segment source that relay sends to."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    write_key: SecretStr | None = Field(
        default=None,
        alias="SEGMENT_WRITE_KEY",
        description="Write key of the Segment source that relay sends email events to. Required to"
        " receive any.",
    )
    region: Annotated[Literal["us", "eu"], _LowerCase] = Field(
        default="us",
        alias="SEGMENT_REGION",
        description="Region of the Segment workspace: `us` or `eu`.",
    )
    host: str | None = Field(
        default=None,
        alias="SEGMENT_HOST",
        json_schema_extra={"format": "uri"},
        description="Base URL, without `/v1`, of any API that understands Segment's `/v1/batch`."
        " If set, it overrides the region.",
    )
    anonymous_id: Annotated[Literal["email", "sha256"], _LowerCase] = Field(
        default="email",
        alias="RELAY_ANONYMOUS_ID",
        description="What identifies a recipient without a user id: `email` is the address as"
        " received (each spelling is another person, as with Segment's own Vero source); `sha256`"
        " is the hex SHA-256 of the address in lower case (all spellings are one person). With"
        " either, `context.traits.email` holds the address: see `RELAY_TRAITS_EMAIL`.",
    )
    traits_email: Annotated[Literal["send", "omit"], _LowerCase] = Field(
        default="send",
        alias="RELAY_TRAITS_EMAIL",
        description="Whether relay sends the recipient's address to Segment: `send` puts it into"
        " `context.traits.email`; `omit` needs `RELAY_ANONYMOUS_ID=sha256` and leaves it out"
        " everywhere: in the user id and in properties its SHA-256 replaces it.",
    )

    @field_validator("host")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        return urls.base_url(value, example="https://events.example.com", added="/v1")

    @field_validator("traits_email")
    @classmethod
    def _omitted_everywhere(cls, value: str, info: ValidationInfo) -> str:
        if value == "omit" and info.data.get("anonymous_id", "sha256") != "sha256":
            raise ValueError(
                "omit needs RELAY_ANONYMOUS_ID=sha256; otherwise the address is the anonymous id"
            )
        return value


class Segment:
    """The destination `segment`, one Segment source; see `Destination`."""

    name: ClassVar[str] = "segment"
    title: ClassVar[str] = "Segment"
    settings_model: ClassVar[type[BaseModel]] = SegmentSettings
    credential: ClassVar[str] = "SEGMENT_WRITE_KEY"
    ordered: ClassVar[bool] = False
    limits: ClassVar[Limits] = Limits(
        requests_per_second=50,  # for partners' streams (segment-docs, partners/streams.md)
        in_flight=4,
        batch_messages=100,  # Segment drops messages beyond 2,500 and still answers 200
        batch_bytes=475_000,  # of the documented 500 KB, the envelope takes the rest
        timeout_seconds=15,
        dedupe_window=timedelta(hours=24),  # segment-docs, guides/duplicate-data.md
    )
    curl: ClassVar[str] = (
        'curl "$SEGMENT_HOST/v1/track" -u "$SEGMENT_WRITE_KEY:"'
        " -H 'Content-Type: application/json' --data-raw \"$body\""
    )

    def __init__(
        self, settings: SegmentSettings, *, timeout_seconds: float = limits.timeout_seconds
    ) -> None:
        self.configured = settings.write_key is not None
        self._write_key = settings.write_key.get_secret_value() if settings.write_key else ""
        self._host = settings.host or _HOSTS[settings.region]
        self._url = f"{self._host}/v1/batch"
        self._http = HttpClient(self._host, timeout_seconds)
        login = b64encode(f"{self._write_key}:".encode()).decode()
        self._secrets = (self._write_key, login)
        self._headers = {
            "Authorization": f"Basic {login}",
            "Content-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": f"{LIBRARY['name']}/{LIBRARY['version']}",
        }
        self._omit_address = settings.traits_email == "omit"
        self._hash_anonymous_id = settings.anonymous_id == "sha256"
        # Segment drops a repeated messageId even if it comes from another of its sources. So one
        # webhook must have different ids for two write keys: a fingerprint of the key is in each.
        self._account = fingerprint(self._write_key)

    @property
    def url(self) -> str:
        """See `Destination.url`."""
        return self._host

    def warnings(self) -> list[str]:
        """See `Destination.warnings`."""
        if not urls.goes_in_the_clear(self._host):
            return []
        reason = "over http:// to another machine the write key and all events go in the clear"
        return [f"SEGMENT_HOST: {reason}; use https://"]

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,
    ) -> str:
        """See `Destination.message_id`."""
        return message_id(self._account, source, dedupe_key, reported_at)

    def privilege(self, event: EmailEvent) -> None:
        """See `Destination.privilege`."""

    def render(
        self, event: EmailEvent, *, source: str, message_id: str, integrations: Mapping[str, bool]
    ) -> Rendering | Unusable:
        """See `Destination.render`. The message equals what the SDK's `Client.track` builds."""
        document = self._track_call(event, source, message_id, integrations)
        encoded = _encode(document)
        if len(encoded) > MAX_MESSAGE_BYTES:
            detail = f"{len(encoded)} bytes; Segment takes {MAX_MESSAGE_BYTES}"
            return Unusable(DeadReason.OVERSIZED, detail)
        return Rendering((Message(document, encoded),))

    def _track_call(
        self, event: EmailEvent, source: str, message_id: str, integrations: Mapping[str, bool]
    ) -> dict[str, Any]:
        if self._omit_address:
            event = without_address(event)
        context: dict[str, Any] = {"integration": {"name": source, "version": __version__}}
        if event.email and not self._omit_address:
            context["traits"] = {"email": event.email}
        if event.user_agent:
            context["userAgent"] = event.user_agent
        context["library"] = LIBRARY
        return {
            "integrations": dict(integrations),
            "anonymousId": None if event.user_id else self._anonymous_id(event.email),
            "properties": dict(event.properties),
            "timestamp": event.occurred_at.isoformat(timespec="milliseconds"),
            "context": context,
            "userId": event.user_id,
            "type": "track",
            "event": event.collection.value,
            "messageId": message_id,
        }

    def _anonymous_id(self, email: str | None) -> str | None:
        if email and self._hash_anonymous_id:
            return digest(email)
        return email

    def send(self, batch: Sequence[bytes], *, attempt: int = 1) -> None:
        """See `Destination.send`.

        A 2xx is a refusal if it comes with a page of HTML, which Segment never sends, or with a
        body that reports a failure.
        """
        # Set at each attempt: Segment corrects events' times by the error of `sentAt`.
        envelope = {"sentAt": datetime.now(UTC).isoformat(), "writeKey": self._write_key}
        body = b'{"batch":[%b],%b' % (b",".join(batch), _encode(envelope)[1:])
        retries = {"X-Retry-Count": str(attempt - 1)} if attempt > 1 else {}
        try:
            response = self._http.request(
                "POST",
                self._url,
                body=gzip.compress(body, _GZIP_LEVEL, mtime=0),
                headers=self._headers | retries,
            )
        except UnusableUrlError as error:
            raise RefusedError(str(error)) from None
        except HttpError as error:
            raise UnavailableError(str(error)) from None
        text = self._masked(response.body.decode(errors="replace"))
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _error(response, text)
        if is_page(response, text):
            raise RefusedError(f"{status_line(response)} with a page of HTML: not Segment's answer")
        if denies(text):
            raise RefusedError(f"{status_line(response)}, but it says {quoted(text, body)}")

    def _masked(self, text: str) -> str:
        """Return the text without the write key, which refusals may repeat."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def connect(self) -> str:
        """See `Destination.connect`."""
        try:
            response = self._http.request("GET", self._url)
        except HttpError as error:
            raise UnavailableError(str(error)) from None
        if response.status in _NOT_REACHED:
            raise UnavailableError(status_line(response))
        return "can be reached"


def _error(response: Response, text: str) -> DestinationError:
    """Return what an answer other than 2xx means for the batch."""
    status, answer = response.status, status_line(response)
    if status in _REJECTIONS:
        return RejectedError(answer, text=text[:MAX_QUOTED])
    if status in _TEMPORARY or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PERMANENT
    ):
        return UnavailableError(
            answer, retry_after=retry_after(response.headers.get("Retry-After"))
        )
    # Refusals of relay itself (401, 403, 404, 501, 505, 511), redirects, and every status that
    # Segment does not document: waiting behind a hold loses nothing.
    return RefusedError(answer)


DESTINATION = Segment

"""Segment: an email event as a track call, batches of them, their post, and what an answer means.

Messages and requests are those of Segment's own library, analytics-python; tests hold them to it.
The library itself does not run here: its queue lives in memory and drops what it cannot send, its
transport follows redirects, and both cost several times what the same bytes cost below.

Facts about the API are from Segment's documentation of the HTTP Tracking API, of partner streams
and of duplicate data.
"""

import gzip
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http import HTTPStatus
from http.client import responses
from typing import Any, Final, TypeVar
from uuid import uuid4

import msgspec
from pydantic_core import from_json

from relay import __version__
from relay.addresses import hashed
from relay.destinations.http import Response, Transport
from relay.destinations.redaction import without_address
from relay.errors import (
    BatchRejectedError,
    SegmentError,
    SegmentRefusedError,
    SegmentUnavailableError,
    TransportError,
    UnusableUrlError,
)
from relay.events import EmailEvent

MAX_MESSAGES: Final = 100
"""Messages in a batch. Segment takes 2,500; more than that it drops behind a 200."""
MAX_BATCH_BYTES: Final = 475_000
"""Bytes of a batch's messages; the documented 500 KB leaves room for the envelope."""
MAX_MESSAGE_BYTES: Final = 32_000
"""Bytes of one message: 32 KB, read in the stricter of its two ways."""
MAX_RETRY_AFTER: Final = timedelta(hours=1)
TIMEOUT_SECONDS: Final = 15
"""What a post has, from the look-up of the host's name to the last byte of the answer."""

LIBRARY: Final = {"name": "analytics-python", "version": "2.4.0"}
"""The library whose messages and requests these are."""

_REJECTIONS: Final = frozenset({400, 413, 422})
# 460 is Segment's own: a passing failure (analytics-java, AnalyticsClient).
_PASSING: Final = frozenset({408, 410, 429, 460})
_FINAL: Final = frozenset({501, 505, 511})
_SECONDS: Final = re.compile(r"\d{1,18}", re.ASCII)
_GZIP_LEVEL: Final = 1  # a third of level 9's cost for a tenth more bytes
_QUOTED: Final = 300
# What a proxy or a gateway says where it does not reach the host, or lets nobody through.
_ON_THE_WAY: Final = frozenset({407, 502, 503, 504})
_FAILURES: Final = frozenset(
    {"denied", "error", "fail", "failed", "failure", "invalid", "rejected"}
)
_NAMES_OF_A_STATUS: Final = frozenset({"code", "message", "status", "statuscode", "status_code"})
_NO_ERROR: Final = frozenset({"", "no error", "no errors", "ok", "success"})
_REFUSAL: Final = "|".join(
    re.escape(phrase)
    for status, phrase in responses.items()
    if status >= HTTPStatus.BAD_REQUEST and phrase
)
_REFUSALS: Final = re.compile(rf"(?:[45]\d\d\s+)?(?:{_REFUSAL})[.!]?", re.IGNORECASE)
_ERROR_STATUS: Final = re.compile(r"[45]\d\d\b", re.ASCII)
_JSON: Final = frozenset({"true", "false", "null"})
_TOKEN: Final = re.compile(r"""[^\s{}\[\]",:;]+""")
_PLAIN: Final = re.compile(r"([A-Za-z]{1,20})[.!?]?")
_WORD: Final = re.compile(rb"[a-z]+")
_BREAK: Final = re.compile(r"\s+")

_encode = msgspec.json.encode
_Item = TypeVar("_Item")

Message = dict[str, Any]
"""A track call as it stands in a batch."""


class Segment:
    """One Segment source: knows its write key and where it takes events.

    Args:
        write_key: the source's.
        host: base URL of its API.
        hash_anonymous_id: the anonymous id is the address's SHA-256, and not the address.
        omit_address: nothing that is sent holds the recipient's address.
        timeout_seconds: how long a post may take.
    """

    def __init__(
        self,
        write_key: str,
        host: str,
        *,
        hash_anonymous_id: bool = False,
        omit_address: bool = False,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._write_key = write_key
        self._url = f"{host}/v1/batch"
        self._transport = Transport(host, timeout_seconds)
        login = b64encode(f"{write_key}:".encode()).decode()
        self._secrets = (write_key, login)
        self._headers = {
            "Authorization": f"Basic {login}",
            "Content-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": f"{LIBRARY['name']}/{LIBRARY['version']}",
        }
        self._hash_anonymous_id = hash_anonymous_id or omit_address
        self._omit_address = omit_address
        # Segment drops a repeated messageId whichever source it reaches, so ids of two sources
        # must differ for one webhook: the write key's fingerprint goes into each.
        self._fingerprint = sha256(b"relay write key " + write_key.encode()).digest()

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,
    ) -> str:
        """The `messageId` of the event with this identity; a random one where there is none.

        Equal for equal source, identity, instant and write key: on any machine, for ever.
        It begins with the instant, so that the ids of a day stand together in a sorted index
        and storing one touches pages that are at hand.
        """
        if dedupe_key is None:
            return f"{source}-{uuid4().hex}"
        seconds = 0 if reported_at is None else int(reported_at.timestamp())
        digest = sha256(self._fingerprint)
        digest.update(_encode([*dedupe_key]))
        return f"{source}-{seconds:08x}{digest.hexdigest()[:24]}"

    def track_call(
        self, event: EmailEvent, message_id: str, source: str, integrations: Mapping[str, bool]
    ) -> Message:
        """The message for one event, equal to what the SDK's `Client.track` would build."""
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
            return hashed(email)
        return email

    def post(self, batch: Sequence[bytes], *, retry_count: int = 0) -> None:
        """Post encoded messages; when this returns, Segment has answered 2xx to them.

        Raises:
            SegmentUnavailableError: not now (network, timeout, overload). Segment may have taken
                the batch all the same.
            SegmentRefusedError: the key, the host or the request is refused, a redirect, or a 2xx
                with a page of HTML, which is not Segment's answer, or with JSON that denies it.
            BatchRejectedError: something in the batch is.
        """
        # Set at each post: Segment corrects every event's time by how far it is off (`sentAt`).
        envelope = {"sentAt": datetime.now(UTC).isoformat(), "writeKey": self._write_key}
        body = b'{"batch":[%b],%b' % (b",".join(batch), _encode(envelope)[1:])
        retries = {"X-Retry-Count": str(retry_count)} if retry_count else {}
        try:
            response = self._transport.request(
                "POST",
                self._url,
                body=gzip.compress(body, _GZIP_LEVEL, mtime=0),
                headers=self._headers | retries,
            )
        except UnusableUrlError as error:
            raise SegmentRefusedError(str(error)) from None
        except TransportError as error:
            raise SegmentUnavailableError(str(error)) from None
        said = self._masked(response.body.decode(errors="replace"))
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _meaning(response, said)
        if _is_page(response, said):
            raise SegmentRefusedError(
                f"{_answer(response)} with a page of HTML: not Segment's answer"
            )
        if _denies(said):
            raise SegmentRefusedError(f"{_answer(response)}, but it says {_quoted(said, body)}")

    def _masked(self, said: str) -> str:
        """What was said without the write key, which answers repeat that refuse it."""
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said

    def connect(self) -> None:
        """Ask the host for something of no effect, by the way that posts take.

        Raises:
            SegmentUnavailableError: it cannot be reached, or its certificate is not trusted.
        """
        try:
            response = self._transport.request("GET", self._url)
        except TransportError as error:
            raise SegmentUnavailableError(str(error)) from None
        if response.status in _ON_THE_WAY:
            raise SegmentUnavailableError(_answer(response))


def encode(message: Message) -> bytes:
    """The message as it is posted."""
    return _encode(message)


def batches(
    encoded: Iterable[tuple[_Item, bytes]],
) -> Iterator[list[tuple[_Item, bytes]]]:
    """Cut items, each with its encoded message, into batches that Segment takes, in their order."""
    batch: list[tuple[_Item, bytes]] = []
    total = 0
    for item, message in encoded:
        if batch and (len(batch) == MAX_MESSAGES or total + len(message) > MAX_BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append((item, message))
        total += len(message) + 1  # the comma
    if batch:
        yield batch


def _is_page(response: Response, said: str) -> bool:
    """Whether it is for people: a captive portal's or a gateway's, which took no event."""
    if said.lstrip("\ufeff \t\r\n").startswith("<"):
        return True
    return bool(said) and response.headers.get("Content-Type", "").lower().startswith("text/html")


def _denies(said: str) -> bool:
    """Whether what stands behind a 2xx tells of a failure: JSON, cut off or not, or plain words."""
    return any(
        any(map(_is_failure, document if isinstance(document, list) else [document]))
        for document in _documents(said.lstrip("\ufeff"))
    )


def _documents(said: str) -> list[Any]:
    """What was said: a JSON document, one in each line, one that is cut off, or text."""
    with suppress(ValueError):
        return [from_json(said)]
    with suppress(ValueError):
        return [from_json(line) for line in said.splitlines() if line.strip()]
    with suppress(ValueError):
        if said.lstrip().startswith(("{", "[", '"')):
            return [from_json(said, allow_partial="trailing-strings")]
    return [said]


def _is_failure(document: Any) -> bool:  # noqa: ANN401 (any JSON)
    if isinstance(document, dict):
        return any(_is_failing(name.lower(), value) for name, value in document.items())
    if isinstance(document, str):
        text = document.strip()
        return text.lower().startswith(("error", "fail")) or bool(_REFUSALS.fullmatch(text))
    return document is False


def _is_failing(name: str, value: Any) -> bool:  # noqa: ANN401 (any JSON)
    text = str(value).strip()
    if name in {"success", "ok"}:
        return _is_no(value) or text.lower() in _FAILURES
    if name in _NAMES_OF_A_STATUS:
        return (
            value is False
            or text.lower() in _FAILURES
            or bool(_ERROR_STATUS.match(text) or _REFUSALS.fullmatch(text))
        )
    return name.startswith("error") and not (_is_no(value) or text.lower() in _NO_ERROR)


def _is_no(value: Any) -> bool:  # noqa: ANN401 (any JSON)
    return not value or str(value).strip().lower() in {"0", "false", "no", "none", "null"}


def _quoted(said: str, sent: bytes) -> str:
    """What was said, as a log may hold it: without whatever is no plain word, or was sent."""
    known = {word.decode() for word in _WORD.findall(sent.lower())} - _JSON

    def masked(found: re.Match[str]) -> str:
        plain = _PLAIN.fullmatch(found[0])
        return found[0] if plain and plain[1].lower() not in known else "***"

    return _BREAK.sub(" ", _TOKEN.sub(masked, said))[:_QUOTED]


def _answer(response: Response) -> str:
    return f"{response.status} {responses.get(response.status, '')}".rstrip()


def _meaning(response: Response, said: str) -> SegmentError:
    """What an answer other than 2xx means for the batch."""
    status, answer = response.status, _answer(response)
    if status in _REJECTIONS:
        return BatchRejectedError(answer, said=said[:_QUOTED])
    if status in _PASSING or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _FINAL):
        return SegmentUnavailableError(
            answer, retry_after=retry_after(response.headers.get("Retry-After"))
        )
    # Refusals known to be ours (401, 403, 404, 501, 505, 511), redirects, and whatever Segment
    # does not document: waiting behind a hold loses nothing.
    return SegmentRefusedError(answer)


def retry_after(header: str | None, *, now: datetime | None = None) -> timedelta | None:
    """The wait a `Retry-After` header asks for (seconds or a date), an hour at the most.

    None where it is missing, unreadable, or not in the future.
    """
    value = (header or "").strip()
    if _SECONDS.fullmatch(value):
        wait = timedelta(seconds=min(int(value), MAX_RETRY_AFTER.total_seconds()))
    else:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        wait = moment - (now or datetime.now(UTC))
    return min(wait, MAX_RETRY_AFTER) if wait > timedelta(0) else None

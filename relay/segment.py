"""Segment: an email event as a track call, batches of them, their post, and what an answer means.

The only importer of `segment` and `requests`. Of Segment's library only `post` is used, its wire
format and transport. Its `Client` is not: it queues in memory, and drops what it cannot send.

Facts about the API are from Segment's documentation of the HTTP Tracking API, of partner streams
and of duplicate data, and from analytics-python 2.4.0.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http import HTTPStatus
from http.client import responses
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import requests
from segment.analytics import request as sdk
from segment.analytics.version import VERSION as SDK_VERSION
from urllib3.util import Timeout

from relay import __version__
from relay.errors import (
    BatchRejectedError,
    SegmentError,
    SegmentRefusedError,
    SegmentUnavailableError,
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

Message = dict[str, Any]
"""A track call as it stands in a batch."""

# A redirect would carry the events and the write key to a host nobody configured; `requests`
# would follow a 302 as an empty GET, whose 200 then looks like success.
sdk._session.max_redirects = 0  # noqa: SLF001 (the library offers no other place)

_encode = msgspec.json.encode

_REJECTIONS: Final = frozenset({400, 413, 422})
# 460 is Segment's own: a passing failure (analytics-java, AnalyticsClient).
_PASSING: Final = frozenset({408, 410, 429, 460})
_FINAL: Final = frozenset({501, 505, 511})
_SECONDS: Final = re.compile(r"\d{1,18}", re.ASCII)
_DELETE: Final = b"\x7f"  # the one ASCII character that the SDK escapes and msgspec does not
_SEPARATOR_BYTES: Final = 2
_SAID_LENGTH: Final = 300


class Segment:
    """One Segment source: knows its write key and where it takes events."""

    def __init__(self, write_key: str, host: str, *, hash_anonymous_id: bool = False) -> None:
        self._write_key = write_key
        self._host = host
        self._hash_anonymous_id = hash_anonymous_id
        # Segment drops a repeated messageId whichever source it reaches, so ids of two sources
        # must differ for one webhook: the write key's fingerprint goes into each.
        self._fingerprint = sha256(b"relay write key " + write_key.encode()).digest()

    def message_id(self, provider: str, identity: Iterable[str | None] | None) -> str:
        """The `messageId` of the event with this identity; a random one where there is none.

        Equal for equal provider, identity and write key: on any machine, for ever.
        """
        if identity is None:
            return f"{provider}-{uuid4().hex}"
        digest = sha256(self._fingerprint)
        digest.update(_encode([*identity]))
        return f"{provider}-{digest.hexdigest()[:32]}"

    def track_call(
        self, event: EmailEvent, message_id: str, provider: str, integrations: Mapping[str, bool]
    ) -> Message:
        """The message for one event, equal to what the SDK's `Client.track` would build."""
        context: dict[str, Any] = {"integration": {"name": provider, "version": __version__}}
        if event.email:
            context["traits"] = {"email": event.email}
        if event.user_agent:
            context["userAgent"] = event.user_agent
        context["library"] = {"name": "analytics-python", "version": SDK_VERSION}
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
            return sha256(email.lower().encode()).hexdigest()
        return email

    def post(self, batch: list[Message], *, retry_count: int = 0) -> None:
        """Post one batch; when this returns, Segment has answered 2xx to it.

        Raises:
            SegmentUnavailableError: not now (network, timeout, overload).
            SegmentRefusedError: the key, the host or the request is refused, or a redirect.
            BatchRejectedError: something in the batch is.
        """
        try:
            sdk.post(
                self._write_key,
                self._host,
                gzip=True,
                timeout=Timeout(total=TIMEOUT_SECONDS),
                retry_count=retry_count,
                batch=batch,
            )
        except sdk.APIError as error:
            raise _meaning(error) from None
        except requests.TooManyRedirects as error:
            answer = error.response.status_code if error.response is not None else "3xx"
            raise SegmentRefusedError(f"{answer} redirect") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
            raise SegmentRefusedError(type(error).__name__) from None
        except requests.RequestException as error:
            # Its text may hold the URL, and through a proxy's the credentials.
            raise SegmentUnavailableError(type(error).__name__) from None

    def connect(self) -> None:
        """Open a connection to the host, over TLS for https, and close it again.

        Raises:
            SegmentUnavailableError: it cannot be reached, or its certificate is not trusted.
        """
        url = urlsplit(self._host)
        host, tls = url.hostname or "", url.scheme == "https"
        try:
            with socket.create_connection((host, url.port or (443 if tls else 80)), 10) as plain:
                if tls:
                    context = ssl.create_default_context()
                    context.wrap_socket(plain, server_hostname=host).close()
        except OSError as error:
            raise SegmentUnavailableError(str(error)) from None


def size(message: Message) -> int:
    """Bytes of the message as `post` writes it, or a few more; never fewer.

    The SDK escapes all but ASCII and puts a blank after each separator.
    """
    encoded = _encode(message)
    if encoded.isascii() and _DELETE not in encoded:
        return len(encoded) + encoded.count(b",") + encoded.count(b":")
    return len(json.dumps(message))


def batches(messages: Iterable[tuple[Message, int]]) -> Iterator[list[Message]]:
    """Cut messages, each with its `size`, into batches that Segment takes, in their order."""
    batch: list[Message] = []
    total = 0
    for message, message_bytes in messages:
        taken = message_bytes + _SEPARATOR_BYTES
        if batch and (len(batch) == MAX_MESSAGES or total + taken > MAX_BATCH_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(message)
        total += taken
    if batch:
        yield batch


def _meaning(error: sdk.APIError) -> SegmentError:
    """What an answer other than 2xx means for the batch."""
    status = int(error.status)
    answer = f"{status} {responses.get(status, '')}".rstrip()
    if status in _REJECTIONS:
        return BatchRejectedError(answer, said=str(error.message)[:_SAID_LENGTH])
    if status in _PASSING or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _FINAL):
        header = error.response.headers.get("Retry-After") if error.response is not None else None
        return SegmentUnavailableError(answer, retry_after=retry_after(header))
    # Refusals known to be ours (401, 403, 404, 501, 505, 511), redirects without a target, and
    # whatever Segment does not document: waiting behind a hold loses nothing.
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

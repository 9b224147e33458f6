"""Segment: an email event as a track call, batches of them, their post, and what an answer means.

Messages and requests are those of Segment's own library, analytics-python; tests hold them to it.
The library itself does not run here: its queue lives in memory and drops what it cannot send, its
transport follows redirects, and both cost several times what the same bytes cost below. The only
importer of `urllib3`, on which that library stands too.

Facts about the API are from Segment's documentation of the HTTP Tracking API, of partner streams
and of duplicate data.
"""

import gzip
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http import HTTPStatus
from http.client import responses
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass
from uuid import uuid4

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.response import HTTPResponse

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
"""From a post's beginning to the beginning of its answer, and again to the answer's end."""

LIBRARY: Final = {"name": "analytics-python", "version": "2.4.0"}
"""The library whose messages and requests these are."""

_REJECTIONS: Final = frozenset({400, 413, 422})
# 460 is Segment's own: a passing failure (analytics-java, AnalyticsClient).
_PASSING: Final = frozenset({408, 410, 429, 460})
_FINAL: Final = frozenset({501, 505, 511})
_SECONDS: Final = re.compile(r"\d{1,18}", re.ASCII)
_CONNECTIONS: Final = 10
_GZIP_LEVEL: Final = 1  # a third of level 9's cost for a tenth more bytes
_MOST_SAID: Final = 64 * 1024
_QUOTED: Final = 300

_encode = msgspec.json.encode
_Item = TypeVar("_Item")

Message = dict[str, Any]
"""A track call as it stands in a batch."""


class Segment:
    """One Segment source: knows its write key and where it takes events."""

    def __init__(self, write_key: str, host: str, *, hash_anonymous_id: bool = False) -> None:
        self._write_key = write_key
        self._host = host
        self._pool = _pool(host)
        self._headers = {
            "Authorization": f"Basic {b64encode(f'{write_key}:'.encode()).decode()}",
            "Content-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": f"{LIBRARY['name']}/{LIBRARY['version']}",
        }
        self._hash_anonymous_id = hash_anonymous_id
        # Segment drops a repeated messageId whichever source it reaches, so ids of two sources
        # must differ for one webhook: the write key's fingerprint goes into each.
        self._fingerprint = sha256(b"relay write key " + write_key.encode()).digest()

    def message_id(
        self, provider: str, identity: Iterable[str | None] | None, said_at: datetime | None = None
    ) -> str:
        """The `messageId` of the event with this identity; a random one where there is none.

        Equal for equal provider, identity, instant and write key: on any machine, for ever.
        It begins with the instant, so that the ids of a day stand together in a sorted index
        and storing one touches pages that are at hand.
        """
        if identity is None:
            return f"{provider}-{uuid4().hex}"
        seconds = 0 if said_at is None else int(said_at.timestamp())
        digest = sha256(self._fingerprint)
        digest.update(_encode([*identity]))
        return f"{provider}-{seconds:08x}{digest.hexdigest()[:24]}"

    def track_call(
        self, event: EmailEvent, message_id: str, provider: str, integrations: Mapping[str, bool]
    ) -> Message:
        """The message for one event, equal to what the SDK's `Client.track` would build."""
        context: dict[str, Any] = {"integration": {"name": provider, "version": __version__}}
        if event.email:
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
            return sha256(email.lower().encode()).hexdigest()
        return email

    def post(self, batch: Sequence[bytes], *, retry_count: int = 0) -> None:
        """Post encoded messages; when this returns, Segment has answered 2xx to them.

        Raises:
            SegmentUnavailableError: not now (network, timeout, overload).
            SegmentRefusedError: the key, the host or the request is refused, a redirect, or a page
                of HTML, which is not Segment's answer.
            BatchRejectedError: something in the batch is.
        """
        # Set at each post: Segment corrects every event's time by how far it is off (`sentAt`).
        envelope = {"sentAt": datetime.now(UTC).isoformat(), "writeKey": self._write_key}
        body = b'{"batch":[%b],%b' % (b",".join(batch), _encode(envelope)[1:])
        retries = {"X-Retry-Count": str(retry_count)} if retry_count else {}
        try:
            response = self._pool.request(
                "POST",
                f"{self._host}/v1/batch",
                body=gzip.compress(body, _GZIP_LEVEL, mtime=0),
                headers=self._headers | retries,
                timeout=urllib3.Timeout(total=TIMEOUT_SECONDS),
                retries=False,
                # A redirect would take the events and the write key where nobody sent them.
                redirect=False,
                preload_content=False,
            )
        except LocationValueError as error:
            raise SegmentRefusedError(type(error).__name__) from None
        except HTTPError as error:
            # Its text may hold the URL, and through a proxy's the credentials.
            raise SegmentUnavailableError(type(error).__name__) from None
        said = _read(response)
        if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise _meaning(response, said)
        if _is_page(response, said):
            raise SegmentRefusedError(
                f"{_answer(response)} with a page of HTML: not Segment's answer"
            )

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


def _in_time(connection: HTTPConnection, await_head: Callable[[], HTTPResponse]) -> HTTPResponse:
    """The answer, once its head is there; urllib3 would wait as long for each byte of it."""
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(TIMEOUT_SECONDS, hang_up)
    timer.daemon = True
    timer.start()
    try:
        response = await_head()
    finally:
        timer.cancel()
    if late.is_set():  # a head cut off behind its status would be taken for a whole one
        response.close()
        raise TimeoutError
    return response


class _Connection(HTTPConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        return _in_time(self, super().getresponse)


class _TlsConnection(HTTPSConnection):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        return _in_time(self, super().getresponse)


class _Connections(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsConnections(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _pool(host: str) -> urllib3.PoolManager:
    pool = _manager(host)
    pool.pool_classes_by_scheme = {"http": _Connections, "https": _TlsConnections}
    return pool


def _manager(host: str) -> urllib3.PoolManager:
    """Connections to the host, through the proxy that the environment names for it, if any."""
    url = urlsplit(host)
    proxy = getproxies().get(url.scheme)
    if not proxy or proxy_bypass(url.netloc):
        return urllib3.PoolManager(maxsize=_CONNECTIONS)
    named = urlsplit(proxy)
    login = f"{unquote(named.username or '')}:{unquote(named.password or '')}"
    headers = urllib3.make_headers(proxy_basic_auth=login) if named.username else None
    return urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS, proxy_headers=headers)


def _read(response: urllib3.BaseHTTPResponse) -> str:
    """What Segment said, as far as it said it in time; the status alone decides."""
    said = b""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with suppress(HTTPError, OSError):
        while len(said) < _MOST_SAID and time.monotonic() < deadline:
            chunk = response.read1(_MOST_SAID)
            if not chunk:
                break
            said += chunk
    response.close()  # the connection is kept if all was read
    return said.decode(errors="replace")


def _is_page(response: urllib3.BaseHTTPResponse, said: str) -> bool:
    """Whether it is for people: a captive portal's or a gateway's, which took no event."""
    if said.lstrip("\ufeff \t\r\n").startswith("<"):
        return True
    return bool(said) and response.headers.get("Content-Type", "").lower().startswith("text/html")


def _answer(response: urllib3.BaseHTTPResponse) -> str:
    return f"{response.status} {responses.get(response.status, '')}".rstrip()


def _meaning(response: urllib3.BaseHTTPResponse, said: str) -> SegmentError:
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

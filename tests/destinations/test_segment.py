import gzip
import hashlib
import json
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.client import parse_headers
from itertools import cycle, islice, pairwise
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from segment.analytics import Client
from segment.analytics import request as sdk

from relay import __version__
from relay.destinations import batches
from relay.destinations.responses import retry_after
from relay.destinations.segment import (
    MAX_MESSAGE_BYTES,
    Segment,
)
from relay.errors import (
    DestinationError,
    RefusedError,
    RejectedError,
    UnavailableError,
)
from relay.events import Collection, EmailEvent
from tests.contracts.destination import DestinationContract, email_events
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.routes import segment_at, track_call

WRITE_KEY = "a-write-key"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BLOCKED = {"Vero": False}
LIMITS = Segment.limits

texts = st.text(max_size=40)
names = st.text(min_size=1, max_size=40)


OPENED = EmailEvent(
    collection=Collection.OPENED,
    occurred_at=NOW,
    reported_at=NOW,
    dedupe_key=("opened", "mail-1"),
    user_id="42",
    email="ann@example.com",
    user_agent="Thunderbird",
    properties={"email_id": "mail-1"},
)
MESSAGE = b'{"type":"track","properties":{"email_subject":"Caf\xc3\xa9"}}'
ANONYMOUS = replace(OPENED, user_id=None, email="Ann@Example.com")


def call_for(event: EmailEvent, *, hash_anonymous_id: bool = False) -> dict[str, Any]:
    segment = segment_at(
        "http://unused", WRITE_KEY, RELAY_ANONYMOUS_ID="sha256" if hash_anonymous_id else "email"
    )
    return track_call(event, segment, integrations=BLOCKED)


def as_the_sdk_builds(event: EmailEvent) -> dict[str, Any]:
    context: dict[str, object] = {"integration": {"name": "vero", "version": __version__}}
    if event.email:
        context["traits"] = {"email": event.email}
    if event.user_agent:
        context["userAgent"] = event.user_agent
    _, message = Client(WRITE_KEY, send=False).track(
        user_id=event.user_id,
        anonymous_id=None if event.user_id else event.email,
        event=str(event.collection),
        properties=dict(event.properties),
        context=context,
        timestamp=event.occurred_at,
        integrations=dict(BLOCKED),
        message_id="vero-1",
    )
    built: dict[str, Any] = message
    return built


@pytest.fixture
def segment(server: SegmentServer) -> Segment:
    return segment_at(server.url, WRITE_KEY)


class TestSegment(DestinationContract):
    """See `DestinationContract`."""

    destination_class = Segment
    meanings: ClassVar = {
        UnavailableError: [408, 410, 429, 460, 500, 502, 503, 504, 507, 529],
        RejectedError: [400, 413, 422],
        RefusedError: [
            *(401, 403, 404, 501, 505, 511),
            *(402, 405, 409, 418, 451, 499),  # not documented
            *(300, 301, 302, 303, 304, 307, 308),  # to nowhere
        ],
    }
    accepted = Answer(200, {"Content-Type": "application/json"}, b'{"success":true}')
    secrets = (WRITE_KEY, b64encode(f"{WRITE_KEY}:".encode()).decode())
    retry_header = "X-Retry-Count"

    def destination(
        self, url: str, *, account: str = WRITE_KEY, timeout_seconds: float = 30
    ) -> Segment:
        """Return a Segment source."""
        return segment_at(url, account, timeout_seconds=timeout_seconds)


@given(email_events())
def test_a_track_call_equals_what_the_sdk_builds(event: EmailEvent) -> None:
    ours, theirs = call_for(event), as_the_sdk_builds(event)

    assert ours == theirs
    assert json.dumps(ours) == json.dumps(theirs)


@pytest.mark.parametrize(
    ("event", "hashed", "user_id", "anonymous_id"),
    [
        (OPENED, False, "42", None),
        (OPENED, True, "42", None),
        (ANONYMOUS, False, None, "Ann@Example.com"),
        (ANONYMOUS, True, None, hashlib.sha256(b"ann@example.com").hexdigest()),
    ],
)
def test_a_recipient_without_a_user_id_gets_an_anonymous_id(
    event: EmailEvent, *, hashed: bool, user_id: str | None, anonymous_id: str | None
) -> None:
    message = call_for(event, hash_anonymous_id=hashed)

    assert message["userId"] == user_id
    assert message["anonymousId"] == anonymous_id
    assert message["context"]["traits"] == {"email": event.email}


@pytest.mark.parametrize("spelling", ["ann@example.com", "Ann@Example.com", "ANN@EXAMPLE.COM"])
def test_each_spelling_of_an_address_is_another_id_unless_hashed(spelling: str) -> None:
    anonymous = replace(ANONYMOUS, email=spelling)

    assert call_for(anonymous)["anonymousId"] == spelling
    assert (
        call_for(anonymous, hash_anonymous_id=True)["anonymousId"]
        == hashlib.sha256(b"ann@example.com").hexdigest()
    )


_IN_PROPERTIES = {
    "email_id": "ANN+a@example.com",
    "link_url": "https://example.com/?e=ann%2Ba%40example.com&f=ann%252Ba%2540Example.com",
    "bounce_message": "550 <Ann+A@example.com>, also known as <ann.l@example.com>: no such mailbox",
    "email_subject": "%41nn+a@example.com, look: someone@example.org",
    "campaign_name": "Spring",
}


@pytest.mark.parametrize("user_id", [None, "42", "Ann+a@Example.com", "ann.l@example.com"])
def test_an_omitted_address_is_nowhere_in_the_message(user_id: str | None) -> None:
    event = replace(OPENED, user_id=user_id, email="Ann+a@example.com", properties=_IN_PROPERTIES)
    omitting = segment_at(
        "http://unused", WRITE_KEY, RELAY_ANONYMOUS_ID="sha256", RELAY_TRAITS_EMAIL="omit"
    )
    message = track_call(event, omitting, integrations=BLOCKED)
    text = unquote(unquote(json.dumps(message).encode().decode())).lower()
    hashed = hashlib.sha256(b"ann+a@example.com").hexdigest()
    another = hashlib.sha256(b"ann.l@example.com").hexdigest()
    other = another if user_id == "ann.l@example.com" else "***"

    assert "ann" not in text
    assert "traits" not in message["context"]
    assert message["anonymousId"] == (None if user_id else hashed)
    assert message["userId"] == {None: None, "42": "42", "ann.l@example.com": another}.get(
        user_id, hashed
    )
    assert message["properties"] == {
        "email_id": hashed,
        "link_url": f"https://example.com/?e={hashed}&f={hashed}",
        "bounce_message": f"550 <{hashed}>, also known as <{other}>: no such mailbox",
        "email_subject": f"{hashed}, look: someone@example.org",
        "campaign_name": "Spring",
    }


@pytest.mark.parametrize(
    "email", ["Ann <ann@example.com>", "mailto:ann@example.com", "ann@example.com\u200b"]
)
def test_an_address_is_omitted_with_any_text_around_it(email: str) -> None:
    properties = {"link_url": "https://example.com/?e=ann%40example.com", "email_subject": email}
    event = replace(OPENED, user_id="42", email=email, properties=properties)
    omitting = segment_at(
        "http://unused", WRITE_KEY, RELAY_ANONYMOUS_ID="sha256", RELAY_TRAITS_EMAIL="omit"
    )
    message = track_call(event, omitting, integrations=BLOCKED)

    assert "ann@" not in unquote(json.dumps(message).encode().decode())


def test_omitting_a_very_long_address_is_fast() -> None:
    """Quadratic time would take hours."""
    email = "@" + 500_000 * "a"
    event = replace(OPENED, user_id="42", email=email, properties={"email_subject": email})
    omitting = segment_at(
        "http://unused", WRITE_KEY, RELAY_ANONYMOUS_ID="sha256", RELAY_TRAITS_EMAIL="omit"
    )
    message = track_call(event, omitting, integrations=BLOCKED)

    assert message["properties"] == {"email_subject": hashlib.sha256(email.encode()).hexdigest()}


def test_omitting_the_address_changes_nothing_else() -> None:
    event = replace(OPENED, properties={"email_id": "20260301.7@mail.example.com", "tags": "40 @"})
    omitting = segment_at(
        "http://unused", WRITE_KEY, RELAY_ANONYMOUS_ID="sha256", RELAY_TRAITS_EMAIL="omit"
    )
    message, usual = track_call(event, omitting, integrations=BLOCKED), call_for(event)
    del usual["context"]["traits"]

    assert message == usual


def test_a_message_id_never_changes() -> None:
    """Segment counts an event twice if it comes again under another id."""
    segment = segment_at("http://unused", WRITE_KEY)
    message_id = segment.message_id("vero", ("opened", "mail-1", None), NOW)

    assert message_id == "vero-69a42a4073f1ee2c10c4cb2492af4d7f"


@given(st.lists(st.none() | texts, max_size=6), st.none() | st.datetimes(timezones=st.just(UTC)))
def test_a_message_id_is_short_and_depends_on_the_dedupe_key_only(
    dedupe_key: list[str | None], reported_at: datetime | None
) -> None:
    one, same = (segment_at(host, WRITE_KEY) for host in ("http://one", "http://other"))
    message_id = one.message_id("vero", dedupe_key, reported_at)

    assert message_id == same.message_id("vero", tuple(dedupe_key), reported_at)
    assert message_id.startswith("vero-")
    assert len(message_id) <= 100


@pytest.mark.parametrize("retry_count", [0, 1, 7])
def test_a_request_equals_what_the_sdk_posts(
    segment: Segment, server: SegmentServer, retry_count: int
) -> None:
    messages = [call_for(OPENED), call_for(ANONYMOUS)]
    segment.send([json.dumps(message).encode() for message in messages], attempt=retry_count + 1)
    sdk.post(WRITE_KEY, server.url, gzip=True, retry_count=retry_count, batch=messages)
    ours, theirs = server.received
    ours_sent_at, theirs_sent_at = (
        datetime.fromisoformat(request.payload.pop("sentAt")) for request in server.received
    )

    assert ours.path == theirs.path
    assert ours.payload == theirs.payload
    assert ours_sent_at.utcoffset() == theirs_sent_at.utcoffset()
    for name in (
        "Authorization",
        "Content-Encoding",
        "Content-Type",
        "User-Agent",
        "X-Retry-Count",
    ):
        assert ours.headers.get(name) == theirs.headers.get(name)


def test_sent_at_is_the_time_of_each_post(segment: Segment, server: SegmentServer) -> None:
    """Segment corrects every timestamp by `sentAt`: an old value would shift the events."""
    before = datetime.now(UTC)
    segment.send([MESSAGE])
    between = datetime.now(UTC)
    segment.send([MESSAGE])
    first, second = (datetime.fromisoformat(got.payload["sentAt"]) for got in server.received)

    assert before <= first <= between <= second


def test_requests_share_a_connection_whatever_the_answer(
    segment: Segment, server: SegmentServer
) -> None:
    """A TLS handshake for each batch would cost more than the batch."""
    server.answers.extend([Answer(), Answer(503), Answer(400, body=b"x" * 10_000), Answer(302)])
    for _ in range(5):
        with suppress(DestinationError):
            segment.send([MESSAGE])

    assert len({request.connection for request in server.received}) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_acceptance(segment: Segment, server: SegmentServer, status: int) -> None:
    server.answers.append(Answer(status, body=b""))
    segment.send([MESSAGE])

    assert len(server.accepted) == 1


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b'{"success":true}'),
        ("text/plain", b"OK"),  # RudderStack's
        ("text/html", b""),
        ("application/json", b'{"success":"true","error":null,"errors":[],"errorCode":"0"}'),
        ("application/json", b'{"status":"ok","statusCode":200,"error_count":0,"error":false}'),
        ("application/json", b'{"data":{"error":"of something else"}}'),
        ("application/json", b'{"status":"200 OK","code":200,"errorCode":"SUCCESS"}'),
        ("application/json", b'{"status":1,"code":0,"error":"OK"}'),
        ("application/json", b'{"status":1767225600,"code":20000,"errors":{},"error":" "}'),
        ("application/json", b'{"success":true}\n{"success":true}'),
        ("text/plain", b"200 OK"),
        ("text/plain", b"Accepted"),
        ("application/json", b'[{"success":true},{}]'),
        ("application/json", b"[]"),
        ("application/json", b"null"),
        ("application/json", b'"OK"'),
        ("application/json", b'{"success":tr'),
        ("application/json", b'{"batch":[' + b'"x",' * 50_000),
        ("application/json", b"[" * 100_000),
        ("text/plain", b"no errors"),
        ("text/plain", b"\xff\xfe\0"),
    ],
)
def test_any_2xx_that_reports_no_failure_is_acceptance(
    segment: Segment, server: SegmentServer, kind: str, body: bytes
) -> None:
    server.answers.append(Answer(headers={"Content-Type": kind}, body=body))
    segment.send([MESSAGE])

    assert len(server.accepted) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"success": false}',
        b'\xef\xbb\xbf\n{"Success":"false"}',
        b'{"success":null}',
        b'{"ok":false}',
        b'{"success":true,"error":"invalid write key"}',
        b'{"error":{"code":7}}',
        b'{"errors":[{"message":"invalid"}]}',
        b'{"errorMessage":"Task timed out","errorType":"Sandbox.Timedout"}',
        b'{"status":"error"}',
        b'{"status":401,"message":"Unauthorized"}',
        b'{"statusCode":500}',
        b'{"statusCode":"401"}',
        b'{"status":"500 Internal Server Error"}',
        b'{"code":403,"message":"Forbidden"}',
        b'{"status":"Unauthorized"}',
        b'{"status":false}',
        b'{"success":"failed"}',
        b'{"success":true}\n{"success":false}',
        b"Unauthorized",
        b"401 Unauthorized",
        b'"Forbidden"',
        b"Service Unavailable\n",
        b'[{"success":true},{"success":false}]',
        b"false",
        b'"error"',
        b"Error: no such source",
        b"FAILED",
        b'{"success":false,"batch":[' + b'"x",' * 50_000,
        b'{"errors":["' + b"x" * 100_000,
    ],
)
def test_a_2xx_that_reports_a_failure_is_a_refusal(
    segment: Segment, server: SegmentServer, body: bytes
) -> None:
    server.answers.append(Answer(body=body))

    with pytest.raises(RefusedError, match=r"^200 OK, but it says .{4,300}$"):
        segment.send([MESSAGE])


@pytest.mark.parametrize(
    ("answer", "repeated"),
    [
        ('{"success":false,"error":"Invalid key."}', '{"success":false,"error":"Invalid ***"}'),
        ('{"error":\r\n"no  source"}', '{"error": "no source"}'),
        ('{"error":"ann@example.com, Ann, 42"}', '{"error":"***, ***, ***"}'),
        ('{"error":"ann%40example.com \\u0061nn"}', '{"error":"*** ***"}'),
        ('{"error":"a-write-key YS13cml0ZS1rZXk6"}', '{"error":"*** ***"}'),
        ('{"error":"\\u001b[2K\u2028Zoë"}', '{"error":"***[*** ***"}'),
        ('{"error":"' + "wrong " * 1_000, '{"error":"' + "wrong " * 48 + "wr"),
    ],
)
def test_an_error_repeats_only_plain_words_that_were_not_sent(
    segment: Segment, server: SegmentServer, answer: str, repeated: str
) -> None:
    """The message of the error stands in the log and at `/readyz`."""
    server.answers.append(Answer(body=answer.encode()))
    message = json.dumps(call_for(replace(OPENED, email="ann@example.com"))).encode()

    with pytest.raises(RefusedError) as caught:
        segment.send([message])

    assert str(caught.value) == f"200 OK, but it says {repeated}"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "text/html"}, b"<html>Log in"),
        ({"Content-Type": "Text/HTML; charset=utf-8"}, b"Log in to go on"),
        ({"Content-Type": "application/json"}, b"\xef\xbb\xbf\r\n <!DOCTYPE html>"),
        ({}, b"<" * 100_000),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"<html>Log in", mtime=0)),
    ],
)
def test_a_page_of_html_is_a_refusal(
    segment: Segment, server: SegmentServer, headers: dict[str, str], body: bytes
) -> None:
    """A captive portal answers any request with 200 and its own page."""
    server.answers.append(Answer(headers=headers, body=body))

    with pytest.raises(RefusedError, match=r"^200 OK with a page of HTML"):
        segment.send([MESSAGE])


@pytest.mark.parametrize(
    ("body", "repeated"),
    [
        (b'{"message": "no such thing"}', '{"message": "no such thing"}'),
        (b"<html>" + b"x" * 10_000, "<html>" + "x" * 294),
    ],
)
def test_a_rejection_repeats_the_beginning_of_segments_answer(
    segment: Segment, server: SegmentServer, body: bytes, repeated: str
) -> None:
    server.answers.append(Answer(400, body=body))

    with pytest.raises(RejectedError) as caught:
        segment.send([MESSAGE])

    assert caught.value.text == repeated


@pytest.mark.parametrize("answer", [f"no such key: {WRITE_KEY}", f"{'x' * 295}{WRITE_KEY}"])
def test_a_rejection_does_not_repeat_the_write_key(
    segment: Segment, server: SegmentServer, answer: str
) -> None:
    login = b64encode(f"{WRITE_KEY}:".encode()).decode()
    server.answers += [Answer(400, body=each.encode()) for each in (answer, f"Basic {login}")]
    for beginning in (answer.partition(WRITE_KEY)[0], "Basic "):
        with pytest.raises(RejectedError) as caught:
            segment.send([MESSAGE])

        assert caught.value.text == f"{beginning}***"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Yield the URL of a host that answers one request with these bytes, then closes."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as request:
            request.readline()
            request.read(int(parse_headers(request)["Content-Length"]))
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Thread(target=serve)
        server.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.join()


@pytest.mark.parametrize(
    ("meaning", "answer"),
    [
        (UnavailableError, b""),
        (UnavailableError, b"220 mail.example.com ready\r\n\r\n"),
        (UnavailableError, b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\ncut o"),
        (RejectedError, b"HTTP/1.1 400 No\r\nContent-Length: 100\r\n\r\ncut o"),
        (RefusedError, b"HTTP/1.1 302 There\r\nLocation: http://[\xff\r\n\r\n"),
    ],
)
def test_the_status_of_a_broken_answer_counts(
    meaning: type[DestinationError], answer: bytes
) -> None:
    with answering(answer) as host, pytest.raises(meaning):
        segment_at(host, WRITE_KEY).send([MESSAGE])


def test_a_2xx_with_a_truncated_body_is_acceptance() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{") as host:
        segment_at(host, WRITE_KEY).send([MESSAGE])


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("", None),
        ("0", None),
        ("30", timedelta(seconds=30)),
        (" 30 ", timedelta(seconds=30)),
        ("315360000", timedelta(hours=1)),
        ("9" * 400, None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 01 Mar 2026 12:00:09 GMT", timedelta(seconds=9)),
        ("Sun, 01 Mar 2026 14:00:09 +0200", timedelta(seconds=9)),
        ("Sun, 01 Mar 2026 12:00:09 -0000", timedelta(seconds=9)),
        ("Sun, 01 Mar 2026 11:59:59 GMT", None),
        ("Sun, 01 Mar 2036 12:00:00 GMT", timedelta(hours=1)),
        ("Sun, 01 Mar 20026 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_up_to_an_hour(
    header: str | None, wait: timedelta | None
) -> None:
    assert retry_after(header, now=NOW) == wait


@given(
    st.integers(0, 500),
    st.lists(st.integers(1, MAX_MESSAGE_BYTES), min_size=1, max_size=10),
)
def test_batches_hold_every_message_once_in_order_and_are_full(
    count: int, sizes: list[int]
) -> None:
    messages = [(n, bytes(size)) for n, size in enumerate(islice(cycle(sizes), count))]
    cut = list(batches(messages, LIMITS))
    bytes_of = [len(b",".join(message for _, message in batch)) for batch in cut]

    assert [message for batch in cut for message in batch] == messages
    assert all(0 < len(batch) <= LIMITS.batch_messages for batch in cut)
    assert all(size <= LIMITS.batch_bytes for size in bytes_of)
    assert all(
        len(batch) == LIMITS.batch_messages or size + len(b"," + after[0][1]) > LIMITS.batch_bytes
        for (batch, after), size in zip(pairwise(cut), bytes_of, strict=False)
    )

"""What every destination is held to: each has a test class that inherits this suite."""

import json
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.destinations import Destination, Message, Rendering, destination_classes
from relay.errors import DestinationError, RefusedError, RejectedError, UnavailableError
from relay.events import Collection, DeadReason, EmailEvent, Event, Ignored, Unusable
from tests.harness.fakes import Answer
from tests.harness.processes import closed_port

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVENT = EmailEvent(
    collection=Collection.OPENED,
    occurred_at=NOON,
    reported_at=NOON,
    dedupe_key=("opened", "mail-1"),
    user_id="user-4711",
    email="ann@example.com",
    user_agent="Thunderbird",
    properties={"email_id": "mail-1", "email_subject": "What to sow"},
)

_TEXTS = st.text(max_size=40)
_NAMES = st.text(min_size=1, max_size=40)
_KEYS = st.lists(st.none() | _TEXTS, max_size=6)

_law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def email_events(draw: st.DrawFn) -> EmailEvent:
    """Draw any email event that a source may give."""
    has_id, has_address = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return EmailEvent(
        collection=draw(st.sampled_from(Collection)),
        occurred_at=NOON + timedelta(microseconds=draw(st.integers(-(10**15), 10**15))),
        reported_at=None,
        dedupe_key=None,
        user_id=draw(_NAMES) if has_id else None,
        email=draw(_NAMES) if has_address else None,
        user_agent=draw(st.none() | _NAMES),
        properties=draw(st.dictionaries(_TEXTS, _TEXTS, max_size=8)),
    )


class Api:
    """An HTTP API on loopback that gives the answers set out for it, one for each request.

    Attributes:
        answers: to the next requests.
        requests: the method, the headers and the body of each request, oldest first.
        paths: the path of each request.
    """

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.requests: list[tuple[str, Mapping[str, str], bytes]] = []
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def serve(self) -> None:
        """Answer requests until `close`."""
        self._server.serve_forever(poll_interval=0.01)

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


def _handler(api: Api) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            api.requests.append((self.command, dict(self.headers), body))
            api.paths.append(self.path)
            answer = api.answers.popleft()
            if not answer.status:  # lingering for no time makes close() send a reset
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 (the library's names)

        def log_message(self, *_args: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving() -> Iterator[Api]:
    """Run an API."""
    api = Api()
    threading.Thread(target=api.serve, daemon=True).start()
    yield api
    api.close()


@contextmanager
def dripping() -> Iterator[str]:
    """Run a host that answers with a byte now and then, and never ends; yield its URL."""
    ended = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            while not ended.wait(0.05):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join(10)


class DestinationContract:
    """See `relay.destinations.Destination`.

    Attributes:
        destination_class: the class under test.
        meanings: the error for each status other than 2xx; design of the destination decides.
        accepted: an answer by which the destination says that it has the batch.
        secrets: texts of its settings that no error may repeat.
        retry_header: the header that counts retries; None if the destination knows none.
        event: an event that it takes, in one message.
        events: any event that its sources may report.
        takes_every_event: whether it takes any of them; otherwise some are ignored or unusable.
        growing: the fields of an event, any of which may make it too large.
        batch_size: messages in the batches that are sent.
    """

    destination_class: ClassVar[type[Destination]]
    meanings: ClassVar[Mapping[type[DestinationError], Sequence[int]]]
    accepted: ClassVar[Answer]
    secrets: ClassVar[Sequence[str]]
    retry_header: ClassVar[str | None]
    event: ClassVar[Event] = EVENT
    events: ClassVar[st.SearchStrategy[Event]] = email_events()
    takes_every_event: ClassVar[bool] = True
    growing: ClassVar[Sequence[str]] = ("user_id", "user_agent", "email", "properties")
    batch_size: ClassVar[int] = 2

    @pytest.fixture
    def api(self) -> Iterator[Api]:
        """Run an API for one test."""
        with serving() as api:
            yield api

    def destination(
        self, url: str, *, account: str = "an-account", timeout_seconds: float = 30
    ) -> Destination:
        """Return the destination at this URL, with the secrets of one of its accounts."""
        raise NotImplementedError

    def batch(self, count: int | None = None) -> list[bytes]:
        """Return encoded messages."""
        ids = [f"vero-{number}" for number in range(count or self.batch_size)]
        return [self.message(self.event, message_id=each).encoded for each in ids]

    def message(self, event: Event, *, message_id: str = "vero-1") -> Message:
        """Return the message for an event that can be sent."""
        rendering = self.rendered(event, message_id=message_id)
        assert isinstance(rendering, Rendering)
        (message,) = rendering.messages
        return message

    def rendered(
        self, event: Event, *, message_id: str = "vero-1"
    ) -> Rendering | Ignored | Unusable:
        """Return what an event is rendered as."""
        destination = self.destination("http://unused.invalid")
        return destination.render(event, source="vero", message_id=message_id, integrations={})

    def error(self, destination: Destination) -> DestinationError:
        """Return the error of a batch that is sent and not accepted."""
        with pytest.raises(DestinationError) as caught:
            destination.send(self.batch(), attempt=1)
        return caught.value

    def test_it_is_found_by_its_name(self) -> None:
        name = self.destination_class.name

        assert destination_classes()[name] is self.destination_class
        assert name.isidentifier()
        assert name.islower()
        assert self.destination_class.title

    def test_its_limits_are_sane(self) -> None:
        limits = self.destination("http://unused.invalid").limits

        assert 1 <= limits.requests_per_second <= 1_000
        assert 1 <= limits.in_flight <= 100
        assert 1 <= limits.batch_messages <= 10_000
        assert 1_000 <= limits.batch_bytes <= 10_000_000
        assert 1 <= limits.timeout_seconds <= 60

    def test_its_url_and_its_warnings_hold_no_secret(self) -> None:
        destination = self.destination("http://api.example.com")
        texts = [destination.url, *destination.warnings(), destination.curl]

        assert destination.url == "http://api.example.com"
        assert not any(secret in text for secret in self.secrets for text in texts)

    def test_equal_events_have_equal_message_ids(self) -> None:
        one, other = (self.destination(f"http://{host}.invalid") for host in ("one", "other"))

        @_law
        @given(_KEYS, st.none() | st.datetimes(timezones=st.just(UTC)))
        def check(key: list[str | None], reported_at: datetime | None) -> None:
            message_id = one.message_id("s" * 20, key, reported_at)

            assert message_id == other.message_id("s" * 20, tuple(key), reported_at)
            assert len(message_id) <= 100
            assert message_id.isascii()

        check()

    def test_different_events_have_different_message_ids(self) -> None:
        one, other = (self.destination("http://unused.invalid", account=each) for each in "ab")
        ids = [
            one.message_id("vero", ("opened", "mail-1"), NOON),
            one.message_id("vero", ("opened", "mail-2"), NOON),
            one.message_id("vero", ("opened", "mail-1", None), NOON),
            one.message_id("vero", ("openedmail-1",), NOON),
            one.message_id("vero", (None, "opened"), NOON),
            one.message_id("vero", ("opened", None), NOON),
            one.message_id("vero", ("opened", "mail-1"), NOON + timedelta(seconds=1)),
            one.message_id("vero", ("opened", "mail-1")),
            one.message_id("customerio", ("opened", "mail-1"), NOON),
            other.message_id("vero", ("opened", "mail-1"), NOON),
        ]

        assert len({*ids}) == len(ids)

    def test_a_message_id_without_a_key_is_random(self) -> None:
        destination = self.destination("http://unused.invalid")
        ids = [destination.message_id("s" * 20, None, NOON) for _ in range(100)]

        assert len({*ids}) == 100
        assert all(len(each) <= 100 for each in ids)

    def test_any_event_gives_the_same_messages_each_time(self) -> None:
        limits = self.destination("http://unused.invalid").limits

        @_law
        @given(self.events)
        def check(event: Event) -> None:
            rendering = self.rendered(event)
            messages = rendering.messages if isinstance(rendering, Rendering) else ()

            assert rendering == self.rendered(event)
            assert messages or not self.takes_every_event
            assert messages or not isinstance(rendering, Rendering)
            for message in messages:
                assert json.loads(message.encoded) == message.document
                assert len(message.encoded) <= limits.batch_bytes
                assert not any(secret.encode() in message.encoded for secret in self.secrets)

        check()

    def test_any_event_is_sent_in_the_same_lanes_each_time(self) -> None:
        destination = self.destination("http://unused.invalid")

        @_law
        @given(self.events)
        def check(event: Event) -> None:
            rendering = self.rendered(event)
            if isinstance(rendering, Rendering):
                assert len({*rendering.lanes}) == len(rendering.lanes)
                assert bool(rendering.lanes) == destination.ordered
            assert destination.privilege(event) == destination.privilege(event)

        check()

    def test_an_event_that_is_too_large_is_a_dead_letter(self) -> None:
        limits = self.destination("http://unused.invalid").limits
        text = "private " * (limits.batch_bytes // len("private ") + 1)
        for field in self.growing:
            value: Any = {"email_subject": text} if field == "properties" else text
            unusable = self.rendered(replace(self.event, **{field: value}))

            assert isinstance(unusable, Unusable), field
            assert unusable.reason is DeadReason.OVERSIZED
            assert "private" not in unusable.detail

    def test_an_accepted_batch_is_sent_once(self, api: Api) -> None:
        api.answers.append(self.accepted)
        self.destination(api.url).send(self.batch(), attempt=1)

        assert len(api.requests) == 1

    def test_each_status_has_its_meaning(self, api: Api) -> None:
        destination = self.destination(api.url)
        statuses = [status for each in self.meanings.values() for status in each]
        found: dict[int, tuple[type, str]] = {}
        for status in statuses:
            api.answers.append(Answer(status, body=b""))
            error = self.error(destination)
            found[status] = (type(error), str(error)[:3])

        assert {UnavailableError, RefusedError, RejectedError} == self.meanings.keys()
        assert found == {
            status: (meaning, str(status))
            for meaning, each in self.meanings.items()
            for status in each
        }

    def test_no_error_repeats_a_secret_or_the_batch(self, api: Api) -> None:
        destination = self.destination(api.url)
        (message,) = self.batch(1)
        body = b" ".join([*(secret.encode() for secret in self.secrets), message])
        statuses = [200, *(status for each in self.meanings.values() for status in each)]
        errors = []
        for status in statuses:
            answer = Answer(status, {"X-Secret": self.secrets[0]}, b'{"error":"' + body + b'"}')
            api.answers.append(answer)
            errors.append(self.error(destination))
        texts = [str(error) for error in errors]
        words = [error.text for error in errors if isinstance(error, RejectedError)]

        assert not any(secret in text for secret in self.secrets for text in (*texts, *words))
        assert not any(private in text for private in ("ann@", "user-4711") for text in texts)
        assert all(len(text) <= 500 for text in (*texts, *words))

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_refused_and_not_followed(self, api: Api, status: int) -> None:
        """Following it would carry the events and the key to a host that nobody configured."""
        with socket.create_server(("127.0.0.1", 0)) as target:
            location = f"http://127.0.0.1:{target.getsockname()[1]}/"
            api.answers.append(Answer(status, {"Location": location}))
            error = self.error(self.destination(api.url))
            connecting, _, _ = select.select([target], [], [], 0)

        assert isinstance(error, RefusedError)
        assert not connecting

    @pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", "application/json"])
    def test_a_page_of_html_is_refused_whatever_its_status(self, api: Api, kind: str) -> None:
        api.answers.append(Answer(200, {"Content-Type": kind}, b"<html>Log in"))

        assert isinstance(self.error(self.destination(api.url)), RefusedError)

    def test_retries_are_numbered(self, api: Api) -> None:
        if self.retry_header is None:
            pytest.skip("this destination does not count retries")
        destination = self.destination(api.url)
        for attempt in (1, 2, 8):
            api.answers.append(self.accepted)
            destination.send(self.batch(), attempt=attempt)

        numbers = [headers.get(self.retry_header) for _, headers, _ in api.requests]
        assert numbers == [None, "1", "7"]

    def test_the_time_that_it_asks_to_wait_is_read(self, api: Api) -> None:
        destination = self.destination(api.url)
        waits = []
        for status in (429, 503):
            for seconds in ("7", "86400"):
                api.answers.append(Answer(status, {"Retry-After": seconds}))
                error = self.error(destination)
                assert isinstance(error, UnavailableError)
                waits.append(error.retry_after)

        assert waits == [timedelta(seconds=7), timedelta(hours=1)] * 2

    def test_a_batch_without_an_answer_may_pass_later(self, api: Api) -> None:
        api.answers.append(Answer(0))

        assert isinstance(self.error(self.destination(api.url)), UnavailableError)
        assert isinstance(
            self.error(self.destination(f"http://127.0.0.1:{closed_port()}")), UnavailableError
        )

    def test_an_answer_that_never_ends_is_cut_off_in_time(self) -> None:
        with dripping() as url:
            begun = monotonic()
            error = self.error(self.destination(url, timeout_seconds=0.5))
            taken = monotonic() - begun

        assert isinstance(error, UnavailableError)
        assert str(error) == "TimeoutError"
        assert 0.4 < taken < 10

    def is_harmless(self, body: bytes) -> bool:
        """Return whether a request with this body changes nothing at the destination."""
        return body == b""

    def test_connect_changes_nothing(self, api: Api) -> None:
        api.answers.append(Answer(404))
        found = self.destination(api.url).connect()
        ((_, _, body),) = api.requests

        assert self.is_harmless(body)
        assert not any(secret in found for secret in self.secrets)

    def test_connect_fails_if_nobody_listens(self) -> None:
        with pytest.raises(UnavailableError):
            self.destination(f"http://127.0.0.1:{closed_port()}").connect()

    def test_connect_fails_without_tls(self, api: Api) -> None:
        with pytest.raises(UnavailableError):
            self.destination(api.url.replace("http:", "https:")).connect()

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_connect_fails_if_a_gateway_does_not_reach_it(self, api: Api, status: int) -> None:
        api.answers.append(Answer(status))

        with pytest.raises(UnavailableError, match=f"^{status}"):
            self.destination(api.url).connect()

    def test_connect_ends_in_time(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(UnavailableError, match=r"^TimeoutError$"):
                self.destination(url, timeout_seconds=0.5).connect()

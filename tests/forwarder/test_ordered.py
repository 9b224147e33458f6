"""A destination that gets the calls of one person in their order, one after the other."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import pytest
from msgspec import json
from pydantic import BaseModel

from relay.destinations import Limits, Message, Rendering
from relay.errors import RefusedError, RejectedError, UnavailableError
from relay.events import Call, CallType, DeadReason, ParseResult, Unusable
from relay.forwarder.connections import REGAIN_SECONDS
from relay.forwarder.forwarder import Forwarder
from relay.outbox.entries import HistoryEvent, Query, State, StoredEntry
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from relay.sources import Verified, Verifier, Webhook
from tests.harness.fakes import Clock
from tests.harness.processes import within

MINUTE = timedelta(minutes=1)
FIVE_MINUTES = 5 * MINUTE


class NoSettings(BaseModel):
    """Nothing to set."""


class Said:
    """A source of calls: `{"who": …, "what": …, "then": …, "fault": …}`."""

    name: ClassVar[str] = "said"
    destination: ClassVar[str] = "ordered"
    collections: ClassVar[type[CallType]] = CallType
    takes_calls: ClassVar[bool] = False
    settings_model: ClassVar[type[BaseModel]] = NoSettings
    methods: ClassVar[tuple[str, ...]] = ("POST",)
    takes_webhooks: ClassVar[bool] = True
    signs_body: ClassVar[bool] = False
    takes_secret: ClassVar[bool] = True
    blocks_on_error: ClassVar[bool] = False
    curl: ClassVar[str] = "curl"
    example: ClassVar[str] = "{}"
    configured: ClassVar[bool] = True
    integrations: ClassVar[Mapping[str, bool]] = {}

    def __init__(self, settings: NoSettings | None = None) -> None:
        """Need no settings."""

    def authenticate(self, webhook: Webhook) -> bool:  # noqa: ARG002 (as every source)
        """See `Source.authenticate`."""
        return True

    def verifier(self, webhook: Webhook) -> Verifier | None:  # noqa: ARG002 (as every source)
        """See `Source.verifier`."""
        return Verified()

    def split(self, body: bytes) -> Sequence[bytes]:
        """See `Source.split`."""
        return (body,)

    def split_line(self, line: bytes) -> Sequence[bytes]:
        """See `Source.split_line`."""
        return (line,)

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Source.parse`."""
        document = json.decode(body)
        return Call(
            type=CallType.TRACK,
            occurred_at=received_at,
            reported_at=None,
            dedupe_key=(document["who"], document["what"]),
            user_id=document["who"],
            properties=document,
        )


class Ordered:
    """A destination that keeps the requests it gets, and answers as a test says.

    Attributes:
        judge: called with who and what; may raise an error.
        requests: who and what of each request, in their order.
        most_at_once: the most requests that were under way at a time.
    """

    name: ClassVar[str] = "ordered"
    title: ClassVar[str] = "The ordered one"
    settings_model: ClassVar[type[BaseModel]] = NoSettings
    ordered: ClassVar[bool] = True
    credential: ClassVar[str] = "NONE"
    configured: ClassVar[bool] = True
    curl: ClassVar[str] = "curl"
    url: ClassVar[str] = "http://ordered.invalid"
    limits: ClassVar[Limits] = Limits(
        requests_per_second=1_000,
        in_flight=8,
        batch_messages=1,
        batch_bytes=100_000,
        timeout_seconds=10,
        dedupe_window=FIVE_MINUTES,
    )

    def __init__(self, _settings: NoSettings | None = None) -> None:
        self.judge: Callable[[str, str], object] = lambda _who, _what: None
        self.requests: list[tuple[str, str]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def warnings(self) -> list[str]:
        """See `Destination.warnings`."""
        return []

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,  # noqa: ARG002 (as every destination)
    ) -> str:
        """See `Destination.message_id`."""
        return "-".join([source, *(part or "" for part in dedupe_key or ())])

    def render(
        self,
        event: Call,
        *,
        source: str,  # noqa: ARG002 (as every destination)
        message_id: str,  # noqa: ARG002
        integrations: Mapping[str, bool],  # noqa: ARG002
    ) -> Rendering | Unusable:
        """See `Destination.render`."""
        whats = [event.properties["what"], *event.properties.get("then", [])]
        fault = event.properties.get("fault")
        lanes = tuple(name for name in (event.user_id, event.properties.get("also")) if name)
        return Rendering(
            tuple(
                Message(
                    {"who": event.user_id, "what": what},
                    json.encode([event.user_id, what]),
                    repeatable=what == "state",
                )
                for what in whats
            ),
            Unusable(DeadReason.UNKNOWN_TYPE, fault) if fault else None,
            lanes,
        )

    def send(self, batch: Sequence[bytes], *, attempt: int) -> None:  # noqa: ARG002 (as every one)
        """See `Destination.send`."""
        (message,) = batch
        who, what = json.decode(message)
        with self._counted():
            self.requests.append((who, what))
            self.judge(who, what)

    def privilege(self, event: Call) -> None:
        """See `Destination.privilege`."""

    def connect(self) -> str:
        """See `Destination.connect`."""
        return "can be reached"

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


class Relay:
    """An outbox and a forwarder to the ordered destination, under a clock that a test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.destination = Ordered()
        self.routes = Routes([Said()], [self.destination])
        self.open()

    def open(self) -> None:
        """Begin as a new process does."""
        self.outbox = SqliteOutbox(self.path, clock=self.clock.now, elapsed=self.clock.monotonic)
        self.forwarder = Forwarder(
            self.outbox,
            self.destination,
            self.routes,
            clock=self.clock.monotonic,
            now=self.clock.now,
            sleep=self.clock.sleep,
            jitter=lambda bound: bound,
        )

    def add(self, *calls: Mapping[str, object]) -> None:
        """Store calls as the receiver does."""
        arrivals = []
        for call in calls:
            arrival = self.routes["said"].accept(json.encode(call), self.clock.now())
            assert not hasattr(arrival, "setting")
            arrivals.append(arrival)
        assert all(self.outbox.add(arrivals))

    def forward(self) -> None:
        """Step until nothing is due."""
        while self.forwarder.step():
            pass

    def pass_time(self, *, hours: float) -> None:
        """Let time pass, and forward whatever becomes due."""
        end = self.clock.monotonic() + 3_600 * hours
        while self.clock.monotonic() < end:
            self.forward()
            self.clock.sleep(60)

    def entry(self, who: str, what: str) -> StoredEntry:
        """Return the entry of a call, with its history."""
        entries = self.outbox.entries.find(Query(), 1_000, with_history=True)
        (found,) = [entry for entry in entries if entry.message_id == f"said-{who}-{what}"]
        return found

    def history(self, who: str, what: str) -> list[str]:
        """Return the history of a call."""
        return [_line(event) for event in self.entry(who, what).history]


def _line(event: HistoryEvent) -> str:
    return f"{event.what}: {event.detail}"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path / "relay.db")
    yield relay
    relay.outbox.close()


def call(who: str, what: str, **more: object) -> dict[str, object]:
    return {"who": who, "what": what, **more}


def fails(*people: str, error: Exception | None = None) -> Callable[[str, str], None]:
    """Return a judge that fails at these people's calls, and takes those of others."""

    def judge(who: str, _what: str) -> None:
        if who in people:
            raise error or UnavailableError("500 Internal Server Error", affects_all=False)

    return judge


def test_each_message_of_a_call_is_sent_before_the_next_call(relay: Relay) -> None:
    relay.add(call("ann", "1", then=["1 tags"]), call("ann", "2"))
    relay.forward()

    assert relay.destination.requests == [("ann", "1"), ("ann", "1 tags"), ("ann", "2")]


def test_after_a_crash_between_two_messages_the_first_is_not_repeated(relay: Relay) -> None:
    class CrashError(BaseException):
        """Stands for the end of the process."""

    def crash(_who: str, what: str) -> None:
        if what == "1 tags":
            raise CrashError

    relay.add(call("ann", "1", then=["1 tags", "1 more"]))
    relay.destination.judge = crash
    with pytest.raises(CrashError):
        relay.forward()
    relay.outbox.close()
    relay.open()
    relay.destination.judge = lambda _who, _what: None
    relay.forward()

    assert relay.destination.requests == [
        ("ann", "1"),
        ("ann", "1 tags"),
        ("ann", "1 tags"),
        ("ann", "1 more"),
    ]


def test_what_cannot_be_sent_of_a_call_is_a_dead_letter_once_the_rest_is_sent(relay: Relay) -> None:
    relay.add(call("ann", "1", fault="its tags are no list"), call("ann", "2"))
    relay.forward()
    entry = relay.entry("ann", "1")

    assert relay.destination.requests == [("ann", "1"), ("ann", "2")]
    assert (entry.state, entry.detail, entry.step) == (State.DEAD, "its tags are no list", 1)


def test_a_call_in_no_lane_waits_for_no_other(relay: Relay) -> None:
    relay.destination.judge = fails("bob")
    relay.add(call("bob", "1"), call("", "1"))
    relay.forward()

    assert relay.destination.requests == [("bob", "1"), ("", "1")]


def test_a_person_whose_calls_fail_holds_only_their_own(relay: Relay) -> None:
    relay.destination.judge = fails("bob")
    relay.add(call("bob", "1"), call("bob", "2"), *(call(f"p{n}", "1") for n in range(20)))
    relay.forward()

    assert {who for who, _ in relay.destination.requests} == {"bob", *(f"p{n}" for n in range(20))}
    assert [who for who, _ in relay.destination.requests].count("bob") == 1
    assert relay.outbox.destination_status("ordered").failures == 0


def test_a_person_whose_calls_fail_is_tried_again_after_longer_and_longer_pauses(
    relay: Relay,
) -> None:
    relay.destination.judge = fails("bob")
    relay.add(call("bob", "1"))
    relay.pass_time(hours=1)
    tries = len(relay.destination.requests)
    relay.destination.judge = lambda _who, _what: None
    relay.pass_time(hours=0.2)

    assert 12 <= tries <= 24
    assert relay.entry("bob", "1").state is State.DELIVERED


def test_a_call_that_fails_for_four_hours_while_others_are_taken_is_a_dead_letter(
    relay: Relay,
) -> None:
    relay.destination.judge = fails("bob")
    relay.add(call("bob", "1"), call("bob", "2"))
    for number in range(9):
        relay.add(call("eve", str(number)))
        relay.pass_time(hours=0.5)
    first = relay.entry("bob", "1")

    assert first.state is State.DEAD
    assert first.reason == DeadReason.POISON
    assert first.detail == (
        "The ordered one has failed at it for 4 h and took others: 500 Internal Server Error"
    )
    assert ("bob", "2") in relay.destination.requests
    assert relay.entry("bob", "2").state is State.PENDING


def test_a_call_that_fails_while_nothing_else_is_sent_waits_for_as_long_as_it_takes(
    relay: Relay,
) -> None:
    relay.destination.judge = fails("bob")
    relay.add(call("bob", "1"))
    relay.pass_time(hours=9)

    assert relay.entry("bob", "1").state is State.PENDING


def test_a_call_that_failed_throughout_an_outage_gets_four_hours_afterwards(relay: Relay) -> None:
    relay.destination.judge = fails("bob", "eve")
    relay.add(call("bob", "1"), call("eve", "1"))
    relay.pass_time(hours=9)
    relay.destination.judge = fails("bob")
    relay.pass_time(hours=1)

    assert relay.entry("eve", "1").state is State.DELIVERED
    assert relay.entry("bob", "1").state is State.PENDING


def test_a_destination_that_fails_at_several_people_is_down(relay: Relay) -> None:
    relay.destination.judge = fails(*(f"p{n}" for n in range(20)))
    relay.add(*(call(f"p{n}", "1") for n in range(20)))
    before = relay.clock.monotonic()
    for _ in range(4):
        relay.forwarder.step()

    assert len(relay.destination.requests) == 4
    assert relay.clock.monotonic() > before
    assert relay.outbox.destination_status("ordered").failures > 0

    relay.destination.judge = lambda _who, _what: None
    relay.pass_time(hours=0.5)
    assert {entry.state for entry in relay.outbox.entries.find(Query(), 100)} == {State.DELIVERED}


def test_too_many_requests_pause_all_for_as_long_as_the_destination_asks(relay: Relay) -> None:
    error = UnavailableError(
        "429 Too Many Requests", retry_after=timedelta(seconds=90), too_many=True
    )
    relay.destination.judge = fails("bob", error=error)
    relay.add(call("bob", "1"), call("eve", "1"))
    relay.forwarder.step()
    before = relay.clock.monotonic()
    relay.destination.judge = lambda _who, _what: None
    relay.forward()

    assert relay.clock.monotonic() - before >= 90
    assert relay.destination.requests == [("bob", "1"), ("bob", "1"), ("eve", "1")]


def test_a_refusal_of_relay_itself_holds_all_and_kills_nothing(relay: Relay) -> None:
    relay.destination.judge = fails("bob", error=RefusedError("401 Unauthorized"))
    relay.add(call("bob", "1"), call("eve", "1"))
    relay.forwarder.step()

    assert relay.outbox.destination_status("ordered").hold == "401 Unauthorized"
    assert relay.entry("bob", "1").state is State.PENDING


_GONE = RejectedError("404 Not Found", text="no such user", done_if_repeated=True)


def test_what_an_earlier_attempt_may_have_done_is_delivered(relay: Relay) -> None:
    lost = UnavailableError("TimeoutError", affects_all=False, may_have_arrived=True)
    relay.add(call("ann", "rename"))
    relay.destination.judge = fails("ann", error=lost)
    relay.forward()
    relay.destination.judge = fails("ann", error=_GONE)
    relay.pass_time(hours=0.1)

    assert relay.entry("ann", "rename").state is State.DELIVERED
    assert relay.history("ann", "rename") == [
        "posted: TimeoutError; it may have arrived",
        "posted: 404 Not Found: taken as done, as an earlier attempt may have arrived",
    ]


@pytest.mark.parametrize("before", [None, UnavailableError("503 Service Unavailable")])
def test_what_no_earlier_attempt_can_have_done_is_a_dead_letter(
    relay: Relay, before: UnavailableError | None
) -> None:
    relay.add(call("ann", "rename"))
    if before:
        relay.destination.judge = fails("ann", error=before)
        relay.forwarder.step()
    relay.destination.judge = fails("ann", error=_GONE)
    relay.pass_time(hours=0.1)

    assert relay.entry("ann", "rename").state is State.DEAD


def test_what_may_be_sent_twice_without_harm_is_not_noted(relay: Relay) -> None:
    lost = UnavailableError("TimeoutError", affects_all=False, may_have_arrived=True)
    relay.add(call("ann", "state"))
    relay.destination.judge = fails("ann", error=lost)
    relay.forwarder.step()
    relay.clock.sleep(6 * 60)
    relay.destination.judge = lambda _who, _what: None
    relay.forward()

    assert relay.entry("ann", "state").state is State.DELIVERED
    assert relay.history("ann", "state") == ["posted: TimeoutError; it may have arrived"]


def test_what_is_sent_again_when_the_destination_has_forgotten_it_says_so(relay: Relay) -> None:
    again = (
        "sent again 6 min after an attempt that may have arrived:"
        " The ordered one may count it twice"
    )
    lost = UnavailableError("TimeoutError", affects_all=False, may_have_arrived=True)
    relay.add(call("ann", "bought"))
    relay.destination.judge = fails("ann", error=lost)
    relay.forwarder.step()
    relay.clock.sleep(6 * 60)
    relay.destination.judge = lambda _who, _what: None
    relay.forward()

    assert relay.history("ann", "bought") == [
        "posted: TimeoutError; it may have arrived",
        f"posted: {again}",
    ]


def test_half_as_many_requests_are_under_way_after_too_many_and_more_by_and_by(
    relay: Relay,
) -> None:
    connections = relay.forwarder._connections  # noqa: SLF001 (nothing else shows it)
    allowed = [connections.allowed]
    for _ in range(4):
        connections.halve()
        allowed.append(connections.allowed)
    for _ in range(9):
        relay.clock.sleep(REGAIN_SECONDS)
        allowed.append(connections.allowed)

    assert allowed == [8, 4, 2, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8]


def test_no_request_more_than_allowed_is_under_way(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "relay.db")
    destination = Ordered()
    routes = Routes([Said()], [destination])
    enough, under_way = threading.Event(), threading.Semaphore(0)

    def judge(_who: str, _what: str) -> None:
        under_way.release()
        enough.wait(30)

    destination.judge = judge
    calls = [call(f"p{n}", "1") for n in range(50)]
    outbox.add([routes["said"].accept(json.encode(each), Clock().now()) for each in calls])  # type: ignore[misc]
    forwarder = Forwarder(outbox, destination, routes)
    forwarder._connections.halve()  # noqa: SLF001 (as after an answer that there are too many)
    forwarder.start()
    for _ in range(4):
        assert under_way.acquire(timeout=30)
    enough.set()
    done = within(60, lambda: len(destination.requests) == len(calls))
    forwarder.stop(10)
    outbox.close()

    assert done
    assert destination.most_at_once == 4


def test_the_next_call_of_a_person_waits_for_nothing_but_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.forwarder.forwarder.LOOK_SECONDS", 60)
    monkeypatch.setattr("relay.forwarder.forwarder.POLL_SECONDS", 60)
    outbox = SqliteOutbox(tmp_path / "relay.db")
    destination = Ordered()
    routes = Routes([Said()], [destination])
    calls = [call("ann", str(n)) for n in range(200)]
    outbox.add([routes["said"].accept(json.encode(each), Clock().now()) for each in calls])  # type: ignore[misc]
    forwarder = Forwarder(outbox, destination, routes)
    forwarder.start()
    done = within(40, lambda: len(destination.requests) == len(calls))
    forwarder.stop_soon()

    assert done
    outbox.close()


def test_threads_keep_the_order_of_each_person_and_send_at_once_for_others(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "relay.db")
    destination = Ordered()
    routes = Routes([Said()], [destination])
    pause = threading.Event()
    destination.judge = lambda _who, _what: pause.wait(0.005)
    calls = [
        call(f"p{n % 7}", str(n), also=f"p{(n + 1) % 7}" if n % 5 == 0 else None)
        for n in range(210)
    ]
    arrivals = [routes["said"].accept(json.encode(each), Clock().now()) for each in calls]
    outbox.add(arrivals)  # type: ignore[arg-type]
    forwarder = Forwarder(outbox, destination, routes)
    forwarder.start()
    done = within(60, lambda: len(destination.requests) == len(calls))
    forwarder.stop(10)
    outbox.close()
    order = defaultdict(list)
    for who, what in destination.requests:
        order[who].append(int(what))

    assert done
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert 1 < destination.most_at_once <= 8

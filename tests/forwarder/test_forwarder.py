import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil, log2
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec import structs
from structlog.testing import capture_logs

from relay import __version__
from relay.destinations.segment import Segment
from relay.errors import OutboxError
from relay.events import EmailEvent, ParseResult
from relay.forwarder.forwarder import STUCK_SECONDS, Forwarder
from relay.outbox.entries import Arrival, Entry, total
from relay.outbox.sqlite.store import SqliteOutbox
from relay.sources.vero import Vero, VeroSettings
from relay.throttle import Throttle
from tests.harness.fakes import Answer, Clock, SegmentServer
from tests.harness.processes import within
from tests.harness.routes import routes, segment_at
from tests.harness.stores import StoredRow, run_sql, stored

T = TypeVar("T")
LEASE = timedelta(seconds=60)
LINEAGE = 7

Judge = Callable[[list[dict[str, Any]]], Answer]


class FaultyVero(Vero):
    """Fails at whatever mentions poison."""

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Vero.parse`."""
        if b"poison" in body:
            raise KeyError("poison")
        return super().parse(body, received_at)


def faulty_vero(**settings: str) -> Vero:
    return FaultyVero(VeroSettings.model_validate(settings))


def clicked(email_id: str, *, user: object = 42, **campaign: str) -> bytes:
    webhook = {
        "type": "clicked",
        "clicked_at": 1_772_366_400,
        "user": {"id": user, "email": "ann@example.com"},
        "message_id": email_id,
        "campaign": {"id": 7, "name": "Spring", **campaign},
        "user_agent": "Thunderbird",
    }
    return json.dumps(webhook).encode()


def mails(count: int) -> list[bytes]:
    return [clicked(f"mail-{number}") for number in range(count)]


_REFUSE_DEAD_LETTERS = """
    CREATE TRIGGER refused BEFORE UPDATE OF state ON entries WHEN NEW.state = 'dead'
    BEGIN SELECT RAISE(ABORT, 'refused'); END
"""


class Relay:
    """An outbox and a forwarder as `relay serve` joins them, under a clock that a test moves."""

    def __init__(
        self, path: Path, server: SegmentServer, store: type[SqliteOutbox] = SqliteOutbox
    ) -> None:
        self.clock = Clock()
        self.server = server
        self.segment = segment_at(server.url)
        self.path = path
        self.outbox = store(path, clock=self.clock.now, elapsed=self.clock.monotonic)
        self.forwarder = self.forwarder_with(faulty_vero())

    def forwarder_with(self, *sources: Vero) -> Forwarder:
        """A forwarder that lets the test's clock pass where it would wait."""
        clock = self.clock
        return Forwarder(
            self.outbox,
            self.segment,
            routes(sources, self.segment),
            clock=clock.monotonic,
            lineage=LINEAGE,
            sleep=clock.sleep,
            jitter=lambda bound: bound,
        )

    def add(self, *bodies: bytes) -> None:
        """Store webhooks as the receiver does."""
        now = self.clock.now()
        arrivals = []
        for body in bodies:
            event = Vero(VeroSettings(tests="forward")).parse(body, now)
            assert isinstance(event, EmailEvent)
            message_id = self.segment.message_id("vero", event.dedupe_key, event.reported_at)
            arrivals.append(Arrival("vero", "segment", message_id, now, body))
        assert all(self.outbox.add(arrivals))

    def forward(self) -> None:
        """Step until nothing is due."""
        while self.forwarder.step():
            pass

    def entries(self) -> dict[str, StoredRow]:
        """Every entry as it stands in the file, by email id."""
        return {json.loads(entry.body)["message_id"]: entry for entry in stored(self.path)}

    def dead(self) -> dict[str, str | None]:
        """The reason of each dead letter, by email id."""
        entries = self.entries().items()
        return {name: entry.reason for name, entry in entries if entry.state == "dead"}

    def counts(self) -> tuple[int, int, int]:
        """How many entries are pending, delivered and dead."""
        counts = total(self.outbox.counts())
        return counts.pending, counts.delivered, counts.dead


@pytest.fixture
def relay(tmp_path: Path, server: SegmentServer) -> Iterator[Relay]:
    relay = Relay(tmp_path / "relay.db", server)
    yield relay
    relay.outbox.close()


def email_ids(batch: list[dict[str, Any]]) -> list[str]:
    return [message["properties"]["email_id"] for message in batch]


def refuses(*guilty: str) -> Judge:
    def judge(batch: list[dict[str, Any]]) -> Answer:
        if set(guilty) & set(email_ids(batch)):
            return Answer(400, body=b"not this one")
        return Answer()

    return judge


def test_a_webhook_arrives_as_its_track_call(relay: Relay) -> None:
    relay.add(clicked("mail-1"))
    relay.forward()
    (message,) = relay.server.accepted
    library = message["context"].pop("library")

    assert library["name"] == "analytics-python"
    assert message == {
        "type": "track",
        "event": "Email Link Clicked",
        "userId": "42",
        "anonymousId": None,
        "timestamp": "2026-03-01T12:00:00.000+00:00",
        "messageId": relay.entries()["mail-1"].message_id,
        "properties": {"email_id": "mail-1", "campaign_id": "7", "campaign_name": "Spring"},
        "context": {
            "traits": {"email": "ann@example.com"},
            "userAgent": "Thunderbird",
            "integration": {"name": "vero", "version": __version__},
        },
        "integrations": {"Vero": False},
    }
    assert relay.counts() == (0, 1, 0)


def test_nothing_is_sent_when_nothing_is_due(relay: Relay) -> None:
    assert not relay.forwarder.step()
    assert not relay.server.received


def test_many_webhooks_share_a_request_and_each_is_sent_once(relay: Relay) -> None:
    relay.add(*mails(250))
    relay.forward()

    assert [len(request.batch) for request in relay.server.received] == [100, 100, 50]
    assert len({message["messageId"] for message in relay.server.accepted}) == 250
    assert relay.counts() == (0, 250, 0)


def test_requests_keep_to_segments_rate(relay: Relay) -> None:
    relay.add(*mails(5_100))
    relay.forward()

    assert len(relay.server.received) == 51
    assert relay.clock.monotonic() >= 1


def test_while_segment_is_down_one_probe_goes_after_each_backoff(relay: Relay) -> None:
    relay.server.judge = lambda _batch: Answer(503)
    relay.add(*mails(150))
    probes = []
    for _ in range(12):
        relay.forwarder.step()
        probes.append(relay.clock.monotonic())
    waits = [round(later - earlier) for earlier, later in pairwise(probes)]

    assert len(relay.server.received) == 12
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert relay.outbox.destination_status("segment").hold is None
    assert relay.outbox.destination_status("segment").failures == 12
    assert relay.outbox.destination_status("segment").answer == "503 Service Unavailable"


@pytest.mark.slow
def test_waiting_counts_no_attempt_against_an_entry(relay: Relay) -> None:
    relay.server.judge = lambda _batch: Answer(503)
    relay.add(*mails(12))
    for _ in range(400):
        relay.forwarder.step()
    waiting = relay.counts()
    relay.server.judge = lambda _batch: Answer()
    relay.forward()

    assert waiting == (12, 0, 0)
    assert relay.counts() == (0, 12, 0)


@pytest.mark.parametrize(
    ("asked", "waited"), [("30", 30), ("1", 4), ("86400", 3_600), ("soon", 4), ("-30", 4)]
)
def test_retry_after_is_kept(relay: Relay, asked: str, waited: int) -> None:
    """By the third failure relay's own wait is 4 s."""
    relay.server.answers.extend([Answer(503), Answer(503), Answer(429, {"Retry-After": asked})])
    relay.add(clicked("mail-1"))
    for _ in range(3):
        relay.forwarder.step()
    failed_at = relay.clock.monotonic()
    relay.forwarder.step()

    assert round(relay.clock.monotonic() - failed_at) == waited
    assert relay.counts() == (0, 1, 0)


def test_a_retry_carries_its_number(relay: Relay) -> None:
    relay.server.answers.extend([Answer(503), Answer(0), Answer(429)])
    relay.add(clicked("mail-1"))
    relay.forward()
    counts = [request.headers.get("X-Retry-Count") for request in relay.server.received]

    assert counts == [None, "1", "2", "3"]


class AbsentOutbox(SqliteOutbox):
    """A real outbox that can be away."""

    away = False

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """See `Outbox.throttle`."""
        if self.away:
            raise OutboxError("away")
        return super().throttle(destination, change)


def test_a_probe_that_fails_while_the_outbox_is_away_does_not_block_later_ones(
    tmp_path: Path, server: SegmentServer
) -> None:
    relay = Relay(tmp_path / "relay.db", server, AbsentOutbox)
    assert isinstance(relay.outbox, AbsentOutbox)
    outbox = relay.outbox

    def answer_and_part(_batch: list[dict[str, Any]]) -> Answer:
        outbox.away = True
        return Answer(503)

    relay.add(clicked("mail-1"))
    server.answers.append(Answer(503))
    relay.forwarder.step()
    server.judge = answer_and_part
    relay.forwarder.step()
    server.judge = lambda _batch: Answer()
    with pytest.raises(OutboxError):
        relay.forwarder.step()
    outbox.away = False
    back_at = relay.clock.monotonic()
    relay.forward()
    waited = relay.clock.monotonic() - back_at
    outbox.close()

    assert relay.entries()["mail-1"].state == "delivered"
    assert waited < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (Answer(401), "401 Unauthorized"),
        (Answer(404), "404 Not Found"),
        (Answer(302, {"Location": "https://elsewhere.invalid/"}), "302 Found"),
    ],
)
def test_a_refusal_holds_everything_until_it_is_mended(
    relay: Relay, answer: Answer, named: str
) -> None:
    relay.server.judge = lambda _batch: answer
    relay.add(*mails(120))
    for _ in range(50):
        relay.forwarder.step()
    held, waiting, probes = (
        relay.outbox.destination_status("segment").hold,
        relay.counts(),
        len(relay.server.received),
    )
    waited = relay.clock.monotonic()
    relay.server.judge = lambda _batch: Answer()
    relay.forward()

    assert held == named
    assert waiting == (120, 0, 0)
    assert probes == 50
    assert round(waited / 60) == 49
    assert relay.outbox.destination_status("segment").hold is None
    assert relay.counts() == (0, 120, 0)


@pytest.mark.parametrize("guilty", [(0,), (99,), (49, 50), (0, 20, 40, 60, 99)])
def test_only_the_guilty_messages_of_a_rejected_batch_become_dead_letters(
    relay: Relay, guilty: tuple[int, ...]
) -> None:
    names = [f"mail-{number}" for number in guilty]
    relay.server.judge = refuses(*names)
    relay.add(*mails(100))
    relay.forward()
    details = {relay.entries()[name].detail for name in names}

    assert relay.dead() == dict.fromkeys(names, "rejected")
    assert details == {"400 Bad Request: not this one"}
    assert relay.counts() == (0, 100 - len(names), len(names))
    assert Counter(email_ids(relay.server.accepted)).most_common(1)[0][1] == 1
    assert len(relay.server.received) <= 1 + 2 * len(names) * ceil(log2(100))


def test_a_batch_too_large_for_segment_is_halved_until_it_fits(relay: Relay) -> None:
    relay.server.judge = lambda batch: Answer(413 if len(batch) > 10 else 200)
    relay.add(*mails(100))
    relay.forward()

    assert relay.counts() == (0, 100, 0)


def test_halving_continues_after_an_outage_in_the_middle_of_it(relay: Relay) -> None:
    relay.server.judge = refuses("mail-70")
    relay.server.answers.extend([Answer(400), Answer(), Answer(400), Answer(503)])
    relay.add(*mails(100))
    relay.forward()

    assert relay.dead() == {"mail-70": "rejected"}
    assert relay.counts() == (0, 99, 1)


def test_a_message_that_segment_would_drop_behind_a_200_is_never_sent(relay: Relay) -> None:
    relay.add(clicked("large", subject="x" * 40_000), clicked("mail-1"))
    relay.forward()

    assert relay.dead() == {"large": "oversized"}
    assert email_ids(relay.server.accepted) == ["mail-1"]


def test_a_webhook_that_makes_rendering_fail_stops_no_other(relay: Relay) -> None:
    relay.add(clicked("bad", subject="poison"), clicked("mail-1"))
    relay.forward()

    assert relay.dead() == {"bad": "poison"}
    assert relay.entries()["bad"].detail == "the mapping failed: KeyError"
    assert email_ids(relay.server.accepted) == ["mail-1"]


def test_an_entry_of_a_removed_source_is_a_dead_letter(relay: Relay) -> None:
    relay.add(clicked("mail-1"))
    relay.forwarder = relay.forwarder_with()
    relay.forward()

    assert relay.dead() == {"mail-1": "poison"}
    assert not relay.server.received


def test_an_accepted_entry_that_is_ignored_today_is_a_dead_letter(relay: Relay) -> None:
    sample = json.loads(clicked("sample", user="123"))
    sample["user"]["email"] = "steve@getvero.com"
    relay.add(json.dumps(sample).encode())
    relay.forward()

    assert relay.dead() == {"sample": "ignored"}
    assert relay.entries()["sample"].detail == "test_sample: set by RELAY_VERO_TESTS"
    assert not relay.server.received


def test_a_holder_of_an_older_claim_settles_nothing(relay: Relay) -> None:
    taken = []

    def judge(_batch: list[dict[str, Any]]) -> Answer:
        relay.clock.sleep(61)
        taken.extend(relay.outbox.claim("segment", 100, lease=LEASE))
        return Answer()

    relay.server.judge = judge
    relay.add(clicked("mail-1"))
    relay.forwarder.step()
    left_alone = relay.counts()
    relay.outbox.ack(taken)

    assert left_alone == (1, 0, 0)
    assert relay.counts() == (0, 1, 0)


class MortalOutbox(SqliteOutbox):
    """A real outbox of a process that can die: from then on it settles nothing."""

    dead = False

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        """See `Outbox.ack`."""
        if self.dead:
            raise OutboxError("dead")
        super().ack(entries, note)

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """See `Outbox.release`."""
        if self.dead:
            raise OutboxError("dead")
        super().release(entries, answer)


def test_a_message_that_crashes_relay_in_isolation_is_a_dead_letter(
    tmp_path: Path, server: SegmentServer
) -> None:
    """The forwarder alone dies each time, as what supervises it tells the next one."""
    lives: list[Relay] = []
    crashed_over: list[int] = []

    def judge(batch: list[dict[str, Any]]) -> Answer:
        if "deadly" not in email_ids(batch):
            return Answer()
        crashed_over.append(len(batch))
        outbox = lives[-1].outbox
        assert isinstance(outbox, MortalOutbox)
        outbox.dead = True
        return Answer(0)

    def live() -> bool:
        """Whether it lives until nothing is due."""
        lives.append(Relay(tmp_path / "relay.db", server, MortalOutbox))
        with closing(lives[-1].outbox):
            if len(lives) == 1:
                lives[-1].add(*mails(150), clicked("deadly"), clicked("mail-150"))
            lives[-1].outbox.count_crash(LINEAGE)
            with suppress(OutboxError):
                lives[-1].forward()
                return True
        return False

    server.judge = judge
    survived = [live() for _ in range(6)]
    entries = lives[-1].entries()

    assert survived == [False] * 5 + [True]
    assert crashed_over == [52, 52, 1, 1, 1]
    assert lives[-1].dead() == {"deadly": "poison"}
    assert entries["deadly"].detail == "relay crashed 3 times with no other entry claimed"
    assert Counter(entry.state for entry in entries.values()) == {"delivered": 151, "dead": 1}
    assert Counter(email_ids(server.accepted)).most_common(1)[0][1] == 1


class KilledError(BaseException):
    """What ends a process and is caught by nothing."""


class DeadlyVero(Vero):
    """Ends the process at whatever mentions it."""

    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """See `Vero.parse`."""
        if b"deadly" in body:
            raise KilledError
        return super().parse(body, received_at)


def test_a_message_that_crashes_relay_while_rendered_is_found_among_others(
    tmp_path: Path, server: SegmentServer
) -> None:
    """As where the whole machine runs out of memory each time: nothing tells the next process."""
    crashes = 0
    for life in range(6):
        relay = Relay(tmp_path / "relay.db", server, MortalOutbox)
        relay.forwarder = relay.forwarder_with(DeadlyVero(VeroSettings()))
        with closing(relay.outbox):
            if life == 0:
                relay.add(*mails(150), clicked("deadly"), clicked("mail-150"))
            try:
                relay.forward()
            except KilledError:
                crashes += 1

    assert crashes == 5
    assert relay.dead() == {"deadly": "poison"}
    assert Counter(entry.state for entry in relay.entries().values()) == {
        "delivered": 151,
        "dead": 1,
    }


def test_kills_of_relay_while_segment_is_silent_condemn_no_message(
    tmp_path: Path, server: SegmentServer
) -> None:
    lives: list[Relay] = []

    def judge(_batch: list[dict[str, Any]]) -> Answer:
        outbox = lives[-1].outbox
        assert isinstance(outbox, MortalOutbox)
        outbox.dead = len(lives) <= 12
        return Answer(0 if outbox.dead else 200)

    server.judge = judge
    for life in range(13):
        lives.append(Relay(tmp_path / "relay.db", server, MortalOutbox))
        with closing(lives[-1].outbox):
            if life == 0:
                lives[-1].add(clicked("mail-1"))
            with suppress(OutboxError):
                lives[-1].forward()

    assert len(server.received) == 13
    assert lives[-1].entries()["mail-1"].state == "delivered"


@pytest.fixture
def running(relay: Relay) -> Iterator[None]:
    """Forwards by itself, in real time."""
    forwarder = Forwarder(relay.outbox, relay.segment, routes(destination=relay.segment))
    forwarder.start()
    yield
    forwarder.stop(10)


@pytest.mark.usefixtures("running")
def test_a_started_forwarder_forwards_by_itself(relay: Relay) -> None:
    relay.add(clicked("mail-1"))

    assert within(20, lambda: relay.counts() == (0, 1, 0))


def test_a_permit_is_released_when_claiming_fails(relay: Relay) -> None:
    """Half of the claim was mapped; nothing may wait for its answer for ever."""
    relay.add(*[clicked(f"mail-{number}", name="n" * 30_000) for number in range(20)])
    relay.server.answers.append(Answer(503))
    relay.forwarder.step()
    relay.add(clicked("poison"))
    run_sql(relay.path, _REFUSE_DEAD_LETTERS)
    with pytest.raises(OutboxError):
        relay.forwarder.step()
    run_sql(relay.path, "DROP TRIGGER refused")
    for _ in range(4):
        relay.forwarder.step()

    assert relay.counts() == (0, 20, 1)


def test_forwarding_goes_on_when_the_outbox_works_again(relay: Relay) -> None:
    relay.add(clicked("mail-1"))
    run_sql(relay.path, "ALTER TABLE entries RENAME TO away")
    forwarder = Forwarder(relay.outbox, relay.segment, routes(destination=relay.segment))
    with capture_logs() as lines:
        forwarder.start()
        failed = within(20, lambda: any(line["event"] == "forward.outbox_failed" for line in lines))
    run_sql(relay.path, "ALTER TABLE away RENAME TO entries")
    delivered = within(20, lambda: relay.counts() == (0, 1, 0))
    forwarder.stop(10)

    assert failed
    assert delivered


def test_at_most_four_requests_are_in_flight(relay: Relay) -> None:
    in_flight: list[int] = []
    over = threading.Event()

    def judge(batch: list[dict[str, Any]]) -> Answer:
        in_flight.append(len(batch))
        over.wait(30)
        return Answer()

    relay.server.judge = judge
    relay.add(*mails(1_000))
    forwarder = Forwarder(relay.outbox, relay.segment, routes(destination=relay.segment))
    forwarder.start()
    four = within(20, lambda: len(in_flight) >= 4)
    more = within(0.3, lambda: len(in_flight) > 4)
    over.set()
    delivered = within(20, lambda: relay.counts() == (0, 1_000, 0))
    forwarder.stop(10)

    assert four
    assert not more
    assert delivered


def test_stopping_makes_unanswered_entries_due_at_once(relay: Relay) -> None:
    asked, over = threading.Event(), threading.Event()

    def judge(_batch: list[dict[str, Any]]) -> Answer:
        asked.set()
        over.wait(30)
        return Answer()

    relay.server.judge = judge
    relay.add(*mails(10))
    forwarder = Forwarder(relay.outbox, relay.segment, routes(destination=relay.segment))
    forwarder.start()
    assert asked.wait(30)
    hidden = relay.outbox.claim("segment", 100, lease=LEASE)
    forwarder.stop(0)
    due = relay.outbox.claim("segment", 100, lease=LEASE)
    over.set()
    forwarder.stop(30)

    assert hidden == []
    assert len(due) == 10
    assert relay.counts() == (10, 0, 0)


class Away(SqliteOutbox):
    """An outbox of which nothing can be claimed."""

    def claim(self, *_given: object, **_named: object) -> list[Entry]:
        """See `Outbox.claim`."""
        raise OutboxError("away")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "answer"),
    [
        (SqliteOutbox, Answer(401)),
        (SqliteOutbox, Answer(503)),
        (SqliteOutbox, Answer(429, headers={"Retry-After": "3600"})),
        (Away, Answer(200)),
    ],
)
def test_waiting_is_no_hang(
    tmp_path: Path,
    server: SegmentServer,
    monkeypatch: pytest.MonkeyPatch,
    store: type[SqliteOutbox],
    answer: Answer,
) -> None:
    # With one worker all of its time is the clock's.
    monkeypatch.setattr(Segment, "limits", structs.replace(Segment.limits, in_flight=1))
    relay = Relay(tmp_path / "relay.db", server, store)
    server.judge = lambda _: answer
    relay.add(clicked("mail-1"))
    silent: list[int] = []
    enough = threading.Event()

    def sleep(seconds: float) -> None:
        before = int(relay.clock.monotonic())
        relay.clock.sleep(seconds)
        silent.extend(
            forwarder.heartbeats.check() for _ in range(before, int(relay.clock.monotonic()))
        )
        if len(silent) > 7_200:
            enough.set()
            threading.Event().wait(0.001)

    forwarder = Forwarder(
        relay.outbox,
        relay.segment,
        routes(destination=relay.segment),
        clock=relay.clock.monotonic,
        sleep=sleep,
    )
    forwarder.start()
    waited = enough.wait(60)
    forwarder.stop(60)
    relay.outbox.close()

    assert waited
    assert max(silent) < STUCK_SECONDS / 2

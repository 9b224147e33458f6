import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Self

import apsw
import psycopg
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from relay.cli import main
from relay.events import DeadReason
from relay.forwarder.forwarder import Forwarder
from relay.metrics.definitions import ALL, FORWARDING
from relay.metrics.exporter import AcceptedVsStored, OutboxExporter, from_counters
from relay.outbox.counters import Change, CounterRow
from relay.outbox.entries import Arrival, total
from relay.outbox.sqlite.store import SqliteOutbox
from relay.throttle import Permit, Throttle
from tests.harness.fakes import Answer, Clock, SegmentServer
from tests.harness.postgres import query
from tests.harness.processes import (
    ForwarderProcess,
    PostgresStore,
    RelayProcess,
    SqliteStore,
    Store,
    closed_port,
    pending,
    run_sql,
    within,
)
from tests.harness.routes import routes, segment_at

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-the-tests"
NOBODY = "http://127.0.0.1:1"


def opened(mail: object, **changed: object) -> bytes:
    user = {"id": 42, "email": "reader@example.com"}
    webhook = {"type": "opened", "opened_at": 1_772_366_400, "user": user, "message_id": f"{mail}"}
    return json.dumps(webhook | changed).encode()


def fetch(port: int, path: str = "/metrics", **headers: str) -> tuple[int, Mapping[str, str], str]:
    """Return the status, headers and text that a reader gets."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()


class Page:
    """One reading of the metrics."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))

    @classmethod
    def of(cls, port: int) -> Self:
        """Read the page at the port."""
        status, _, text = fetch(port)
        assert status == 200
        return cls(text)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples with this name and these labels; None if there is none."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None


def comes_true(port: int, name: str, value: float, **labels: str) -> bool:
    return within(20, lambda: Page.of(port).value(name, **labels) == value)


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def store(request: pytest.FixtureRequest) -> Store:
    name = {"SQLite": "sqlite_store", "PostgreSQL": "postgres_store"}[request.param]
    found: Store = request.getfixturevalue(name)
    return found


@pytest.fixture
def segment() -> Iterator[SegmentServer]:
    with SegmentServer() as server:
        yield server


def test_the_readme_has_the_table_of_metrics() -> None:
    table = CliRunner().invoke(main, ["metrics"]).stdout

    assert table.count("\n") == 2 + len(ALL)
    assert f"\n\n{table}\n" in (ROOT / "README.md").read_text("utf-8")


def test_the_page_has_every_defined_metric_once_and_no_other(
    sqlite_store: SqliteStore, segment: SegmentServer
) -> None:
    with RelayProcess(sqlite_store, segment.url, RELAY_MAX_BACKLOG="1000") as relay:
        relay.post(opened(1))
        assert comes_true(relay.port, "relay_delivery_seconds_count", 1)
        page = Page.of(relay.port)
        families = [family.name for family in page.families]

    own = [name for name in families if name.startswith("relay_")]
    assert sorted(own) == sorted(metric.name.removesuffix("_total") for metric in ALL)
    assert len({*families}) == len(families)
    assert page.value("relay_backlog_limit_entries") == 1000
    assert page.value("relay_webhooks_total", outcome="unavailable") == 0
    assert {"process_cpu_seconds", "python_info", "python_gc_collections"} <= {*families}


def test_each_destination_has_its_series_from_the_start(sqlite_store: SqliteStore) -> None:
    with RelayProcess(sqlite_store, NOBODY) as relay:
        segment = {"destination": "segment"}
        assert comes_true(relay.port, "relay_delivery_seconds_count", 0, **segment)
        page = Page.of(relay.port)

    for name in (
        "relay_backlog_entries",
        "relay_backlog_seconds",
        "relay_hold",
        "relay_events_delivered_total",
    ):
        assert page.value(name, **segment) == 0
    for reason in DeadReason:
        assert page.value("relay_events_dead_lettered_total", **segment, reason=reason) == 0
    for name in ("relay_batches_total", "relay_messages_total"):
        assert page.value(name, **segment, answer="accepted") == 0


def test_events_are_counted_by_collection_and_state(store: Store, segment: SegmentServer) -> None:
    with RelayProcess(store, segment.url) as relay:
        segment.judge = lambda batch: Answer(400 if "bad" in json.dumps(batch) else 200)
        for body in (opened(1), opened(2), opened(2), opened("bad"), b"no JSON"):
            relay.post(body)
        assert within(20, lambda: pending(store) == 0)
        segment.judge = lambda _batch: Answer(401)
        relay.post(opened(3))
        assert comes_true(relay.port, "relay_hold", 1)
        time.sleep(1)  # so long, the same reading is answered
        page = Page.of(relay.port)

    here = {"source": "vero", "collection": "Email Opened"}
    assert page.value("relay_events", **here, state="delivered") == 2
    assert page.value("relay_events", **here, state="pending") == 1
    assert page.value("relay_events", **here, state="dead", reason="rejected") == 1
    assert page.value("relay_events", collection="", state="dead", reason="unreadable") == 1
    assert page.value("relay_events") == page.value("relay_events_received_total") == 5
    assert page.value("relay_events_received_total", **here) == 4
    assert page.value("relay_events_delivered_total") == 2
    assert page.value("relay_events_dead_lettered_total", reason="rejected") == 1
    assert page.value("relay_events_forgotten_total") == 0
    assert page.value("relay_events_missing") == 0
    assert page.value("relay_backlog_entries") == 1
    assert 0 < (page.value("relay_backlog_seconds") or 0) < 60
    assert page.value("relay_webhooks_total", outcome="accepted") == 4
    assert page.value("relay_answer_seconds_count") == 6
    assert page.value("relay_commit_webhooks_sum") == 6


def test_segments_answers_are_counted_by_a_bounded_word(
    sqlite_store: SqliteStore, segment: SegmentServer
) -> None:
    page_of_html = Answer(200, {"Content-Type": "text/html"}, b"<p>reader@example.com</p>")
    segment.answers.extend([Answer(503), Answer(0), page_of_html, Answer(302), Answer(599)])
    clock, names = Clock(), ["503", "ProtocolError", "200", "302", "599", "accepted"]
    outbox = SqliteOutbox(sqlite_store.path, clock=clock.now, elapsed=clock.monotonic)
    forwarder = _forwarder(outbox, segment.url, clock)
    before = [_messages(name) for name in names]
    with closing(outbox):
        outbox.add([_arrival(mail, clock.now()) for mail in range(2)])
        while total(outbox.counts()).pending:
            forwarder.step()
        after = [_messages(name) for name in names]

    assert [new - old for new, old in zip(after, before, strict=True)] == [2] * 6


def test_a_delivery_is_timed_from_the_receipt(
    sqlite_store: SqliteStore, segment: SegmentServer
) -> None:
    clock = Clock()
    outbox = SqliteOutbox(sqlite_store.path, clock=clock.now, elapsed=clock.monotonic)
    forwarder = _forwarder(outbox, segment.url, clock)
    before = _sample(FORWARDING, "relay_delivery_seconds_sum", destination="segment")
    with closing(outbox):
        outbox.add([_arrival(1, clock.now() - timedelta(hours=2))])
        outbox.add([_arrival(2, clock.now() + timedelta(hours=1))])  # the clock was put back since
        assert forwarder.step()

    assert (
        _sample(FORWARDING, "relay_delivery_seconds_sum", destination="segment") - before == 7_200
    )


def _forwarder(outbox: SqliteOutbox, url: str, clock: Clock) -> Forwarder:
    segment = segment_at(url)
    return Forwarder(
        outbox,
        segment,
        routes(destination=segment),
        clock=clock.monotonic,
        now=clock.now,
        sleep=clock.sleep,
        jitter=lambda bound: bound,
    )


def _arrival(mail: int, received_at: datetime, destination: str = "segment") -> Arrival:
    return Arrival("vero", destination, f"vero-{mail}", received_at, opened(mail))


def _messages(answer: str) -> float:
    return _sample(FORWARDING, "relay_messages_total", destination="segment", answer=answer)


def _sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0


def row(
    change: Change, entries: int, collection: str | None = "Email Opened", reason: str | None = None
) -> CounterRow:
    return CounterRow(
        None, "vero", "segment", collection, change, reason, entries, datetime.now(UTC)
    )


COUNTERS = [
    row(Change.RECEIVED, 10),
    row(Change.RECEIVED, 2, None),
    row(Change.DELIVERED, 6),
    row(Change.DEAD_LETTERED, 2, None, "unreadable"),
    row(Change.DEAD_LETTERED, 3, reason="rejected"),
    row(Change.LEFT_DEAD, 2, reason="rejected"),  # one of them replayed, one erased
    row(Change.REQUEUED, 1),
    row(Change.LEFT_DELIVERED, 4),  # purged
]


def test_counters_give_what_is_in_the_outbox_and_what_ever_was() -> None:
    values = samples(from_counters(COUNTERS, ["segment"]))

    assert {key[1:]: value for key, value in values.items() if key[0] == "relay_events"} == {
        ("vero", "segment", "Email Opened", "pending", ""): 2,
        ("vero", "segment", "Email Opened", "delivered", ""): 2,
        ("vero", "segment", "Email Opened", "dead", "rejected"): 1,
        ("vero", "segment", "", "dead", "unreadable"): 2,
    }
    assert values["relay_events_received_total", "vero", "Email Opened"] == 10
    assert values["relay_events_received_total", "vero", ""] == 2
    assert values["relay_events_delivered_total", "segment"] == 6
    assert values["relay_events_forgotten_total",] == 5
    assert dead_letters(values, "segment") == dict.fromkeys(DeadReason, 0) | {
        "unreadable": 2,
        "rejected": 3,
    }


def test_counters_are_kept_apart_by_destination() -> None:
    values = samples(from_counters(COUNTERS, ["new", "segment"]))
    without_routes = samples(from_counters(COUNTERS, []))

    assert values["relay_events_delivered_total", "new"] == 0
    assert values["relay_events_delivered_total", "segment"] == 6
    assert dead_letters(values, "new") == dict.fromkeys(DeadReason, 0)
    assert without_routes["relay_events_delivered_total", "segment"] == 6
    assert dead_letters(without_routes, "segment") == {"unreadable": 2, "rejected": 3}


def samples(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in metrics
        for sample in metric.samples
    }


def dead_letters(values: Mapping[tuple[str, ...], float], destination: str) -> dict[str, float]:
    """Return how many events of the destination became dead letters, by reason."""
    return {
        key[2]: value
        for key, value in values.items()
        if key[:2] == ("relay_events_dead_lettered_total", destination)
    }


def test_backlog_and_hold_are_those_of_each_destination(sqlite_store: SqliteStore) -> None:
    clock = Clock()
    outbox = SqliteOutbox(sqlite_store.path, clock=clock.now, elapsed=clock.monotonic)
    with closing(outbox):
        minutes = timedelta(minutes=5)
        outbox.add([_arrival(1, clock.now() - minutes), _arrival(2, clock.now())])
        outbox.add([_arrival(3, clock.now() - minutes * 2, destination="removed")])
        outbox.throttle("segment", _refuse)
        exporter = OutboxExporter(
            outbox, ["segment", "new"], max_backlog=None, min_free_disk=0, clock=clock.now
        )
        page = Page(exporter.read().decode())

    def by_destination(name: str) -> dict[str, float | None]:
        names = ("segment", "new", "removed", "another")
        return {each: page.value(name, destination=each) for each in names}

    assert by_destination("relay_backlog_entries") == {
        "segment": 2,
        "new": 0,
        "removed": 1,
        "another": None,
    }
    assert by_destination("relay_backlog_seconds") == {
        "segment": 300,
        "new": 0,
        "removed": 600,
        "another": None,
    }
    assert by_destination("relay_hold") == {"segment": 1, "new": 0, "removed": 0, "another": None}


def _refuse(throttle: Throttle, now: float) -> None:
    permit = throttle.acquire(now, 1)
    assert isinstance(permit, Permit)
    throttle.refused(permit, now, "401")


def test_events_from_elsewhere_make_none_missing() -> None:
    start = AcceptedVsStored(accepted=100, received=700)

    assert AcceptedVsStored(accepted=105, received=705).missing_since(start) == 0
    assert AcceptedVsStored(accepted=105, received=900).missing_since(start) == 0
    assert AcceptedVsStored(accepted=105, received=703).missing_since(start) == 2


def test_no_event_is_missing_while_webhooks_come(
    sqlite_store: SqliteStore, segment: SegmentServer
) -> None:
    with RelayProcess(sqlite_store, segment.url) as relay:
        relay.post(opened("before"))
        come = threading.Event()

        def post(sender: int) -> int:
            count = 0
            while not come.is_set():
                relay.post(opened(f"{sender}-{count}"))
                count += 1
            return count

        with ThreadPoolExecutor(4) as senders:
            posting = [senders.submit(post, sender) for sender in range(4)]
            missing = []
            for _ in range(4):
                time.sleep(1)  # so long, the same reading is answered
                missing.append(Page.of(relay.port).value("relay_events_missing"))
            come.set()
            posted = sum(done.result() for done in posting)
        time.sleep(1)
        page = Page.of(relay.port)

    assert missing == [0] * 4
    assert page.value("relay_webhooks_total", outcome="accepted") == posted + 1
    assert page.value("relay_events_received_total") == posted + 1


def test_events_are_missing_from_an_outbox_that_went_back_to_an_earlier_state(
    sqlite_store: SqliteStore,
) -> None:
    with RelayProcess(sqlite_store, NOBODY) as relay:
        for mail in range(3):
            relay.post(opened(mail))
        assert comes_true(relay.port, "relay_events_received_total", 3)
        assert Page.of(relay.port).value("relay_events_missing") == 0
        run_sql(relay.outbox, "UPDATE counters SET entries = entries - 1 WHERE change = 'received'")

        assert comes_true(relay.port, "relay_events_missing", 1)


def test_the_other_metrics_stay_while_the_outbox_is_away(sqlite_store: SqliteStore) -> None:
    with RelayProcess(sqlite_store, NOBODY) as relay:
        relay.post(opened(1))
        run_sql(relay.outbox, "ALTER TABLE entries RENAME TO away")
        answer = relay.post(opened(2))
        assert comes_true(relay.port, "relay_outbox_up", 0)
        page = Page.of(relay.port)
        run_sql(relay.outbox, "ALTER TABLE away RENAME TO entries")

        assert answer.status == 503
        assert page.value("relay_webhooks_total", outcome="accepted") == 1
        assert page.value("relay_webhooks_total", outcome="unavailable") == 1
        assert page.value("relay_answer_seconds_count") == 1
        assert page.value("relay_backlog_entries") is None
        assert comes_true(relay.port, "relay_outbox_up", 1)


def test_an_outbox_that_hangs_holds_up_neither_readers_nor_health(
    postgres_store: PostgresStore,
) -> None:
    with (
        RelayProcess(postgres_store, NOBODY) as relay,
        psycopg.connect(postgres_store.url) as other,
    ):
        other.execute("LOCK TABLE relay.counters IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor(20) as readers:
            reading = readers.map(Page.of, [relay.port] * 20)
            one_hangs = within(20, lambda: query(postgres_store.url, _HANGING) == [(1,)])
            time.sleep(1)  # for others to hang, too, if they would
            hanging = query(postgres_store.url, _HANGING)
            answer = relay.ask("GET", "/healthz")
            pages = list(reading)
        other.rollback()

        assert one_hangs
        assert hanging == [(1,)]
        assert {page.value("relay_outbox_up") for page in pages} == {0}
        assert answer.status == 200
        assert comes_true(relay.port, "relay_outbox_up", 1)


# Readings only: the forwarder, which looks at the tables as it opens them, waits for the lock, too.
_HANGING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND query LIKE '%FROM relay.counters%GROUP BY slot%'
"""


@pytest.mark.parametrize("command", ["serve", "forward"])
def test_only_readers_with_the_token_get_the_page(
    sqlite_store: SqliteStore, segment: SegmentServer, command: str
) -> None:
    port = closed_port()
    SqliteOutbox(sqlite_store.path).close()
    with (
        RelayProcess(sqlite_store, segment.url, port=port, RELAY_METRICS_TOKEN=TOKEN)
        if command == "serve"
        else LoneForwarder(sqlite_store, segment.url, port=port, RELAY_METRICS_TOKEN=TOKEN)
    ) as relay:
        assert within(20, lambda: fetch(port, "/healthz")[0] == 200)
        guesses = ["", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9"]
        refused = [fetch(port)] + [fetch(port, Authorization=guess) for guess in guesses]
        status, _, text = fetch(port, Authorization=f"bearer {TOKEN}")
        doors = [line["door"] for line in relay.log() if line["event"] == "credentials.wrong"]
        log = json.dumps(relay.log())

    assert {status for status, _, _ in refused} == {401}
    assert {headers["www-authenticate"] for _, headers, _ in refused} == {"Bearer"}
    assert not [text for _, _, text in refused if "relay_" in text]
    assert status == 200
    assert "relay_" in text
    assert doors == ["metrics"]
    wrong = 'relay_wrong_credentials_total{credential="token",door="metrics"}'
    assert (command == "forward") or f"{wrong} {len(guesses)}.0" in text
    assert TOKEN not in text + log
    assert "metrics_token" not in log


class LoneForwarder(ForwarderProcess):
    """`relay forward`, with its metrics at the port."""

    def _command(self) -> list[str]:
        return ["forward", "--metrics-port", str(self.port)]


def test_a_lone_forwarder_has_a_page_of_its_own(store: Store, segment: SegmentServer) -> None:
    port = closed_port()
    with (
        RelayProcess(store, segment.url, options=["--no-forward"]) as receiver,
        LoneForwarder(store, segment.url, port=port) as forwarder,
    ):
        receiver.post(opened(1))
        assert comes_true(port, "relay_delivery_seconds_count", 1)
        page, receivers_page = Page.of(port), Page.of(receiver.port)
        health = forwarder.ask("GET", "/healthz")
        forwarder.terminate()
        code = forwarder.wait(20)

    assert health.content == {"status": "alive"}
    assert page.value("relay_messages_total", answer="accepted") == 1
    assert page.value("relay_outbox_up") is None
    assert receivers_page.value("relay_delivery_seconds_count") is None
    assert code == 0


def test_a_token_that_could_be_guessed_is_refused() -> None:
    done = CliRunner().invoke(main, ["check"], env={"RELAY_METRICS_TOKEN": "short"})

    assert done.exit_code == 2
    assert "RELAY_METRICS_TOKEN: a token needs at least 16 characters" in done.output


def test_a_webhook_stored_too_late_for_its_answer_is_not_timed(sqlite_store: SqliteStore) -> None:
    with RelayProcess(sqlite_store, NOBODY) as relay:
        with closing(apsw.Connection(str(relay.outbox))) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = relay.post(opened(1))
        assert comes_true(relay.port, "relay_events_received_total", 1)
        relay.post(opened(2))
        page = Page.of(relay.port)

    assert answer.status == 503
    assert page.value("relay_webhooks_total", outcome="unavailable") == 1
    assert page.value("relay_commit_webhooks_sum") == 2
    assert page.value("relay_answer_seconds_count") == 1

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import apsw
import psycopg
import pytest
from click.testing import CliRunner

from relay.cli import main
from relay.events import DeadReason
from relay.metrics.definitions import ALL
from relay.outbox.sqlite.store import SqliteOutbox
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.postgres import query
from tests.harness.processes import ForwarderProcess, RelayProcess, closed_port, within
from tests.harness.stores import PostgresStore, SqliteStore, Store, pending, run_sql
from tests.harness.webhooks import opened
from tests.metrics.page import Page, comes_true, fetch

pytestmark = pytest.mark.slow

TOKEN = "a-token-for-the-tests"
NOBODY = "http://127.0.0.1:1"


def test_the_page_has_every_defined_metric_once_and_no_other(
    sqlite_store: SqliteStore, server: SegmentServer
) -> None:
    with RelayProcess(sqlite_store, server.url, RELAY_MAX_BACKLOG="1000") as relay:
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


def test_events_are_counted_by_collection_and_state(store: Store, server: SegmentServer) -> None:
    with RelayProcess(store, server.url) as relay:
        server.judge = lambda batch: Answer(400 if "bad" in json.dumps(batch) else 200)
        for body in (opened(1), opened(2), opened(2), opened("bad"), b"no JSON"):
            relay.post(body)
        assert within(20, lambda: pending(store) == 0)
        server.judge = lambda _batch: Answer(401)
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


def test_no_event_is_missing_while_webhooks_come(
    sqlite_store: SqliteStore, server: SegmentServer
) -> None:
    with RelayProcess(sqlite_store, server.url) as relay:
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
    sqlite_store: SqliteStore, server: SegmentServer, command: str
) -> None:
    port = closed_port()
    SqliteOutbox(sqlite_store.path).close()
    with (
        RelayProcess(sqlite_store, server.url, port=port, RELAY_METRICS_TOKEN=TOKEN)
        if command == "serve"
        else LoneForwarder(sqlite_store, server.url, port=port, RELAY_METRICS_TOKEN=TOKEN)
    ) as relay:
        assert within(20, lambda: fetch(port, "/healthz")[0] == 200)
        guesses = ["", TOKEN, "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xe9"]
        refused = [fetch(port)] + [fetch(port, Authorization=guess) for guess in guesses]
        status, _, text = fetch(port, Authorization=f"bearer {TOKEN}")
        pages = [line["page"] for line in relay.log() if line["event"] == "credentials.wrong"]
        log = json.dumps(relay.log())

    assert {status for status, _, _ in refused} == {401}
    assert {headers["www-authenticate"] for _, headers, _ in refused} == {"Bearer"}
    assert not [text for _, _, text in refused if "relay_" in text]
    assert status == 200
    assert "relay_" in text
    assert pages == ["metrics"]
    wrong = 'relay_wrong_credentials_total{credential="token",page="metrics"}'
    assert (command == "forward") or f"{wrong} {len(guesses)}.0" in text
    assert TOKEN not in text + log
    assert "metrics_token" not in log


class LoneForwarder(ForwarderProcess):
    """`relay forward`, with its metrics at the port."""

    def _command(self) -> list[str]:
        return ["forward", "--metrics-port", str(self.port)]


def test_a_lone_forwarder_has_a_page_of_its_own(store: Store, server: SegmentServer) -> None:
    port = closed_port()
    with (
        RelayProcess(store, server.url, options=["--no-forward"]) as receiver,
        LoneForwarder(store, server.url, port=port) as forwarder,
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

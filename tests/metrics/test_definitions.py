from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from relay.cli import main
from relay.forwarder.forwarder import Forwarder
from relay.metrics.definitions import ALL, FORWARDING
from relay.outbox.entries import Arrival, total
from relay.outbox.sqlite.store import SqliteOutbox
from tests.harness.fakes import Answer, Clock, SegmentServer
from tests.harness.routes import routes, segment_at
from tests.harness.stores import SqliteStore
from tests.harness.webhooks import opened

ROOT = Path(__file__).parents[2]


def test_the_documentation_has_the_table_of_metrics() -> None:
    table = CliRunner().invoke(main, ["metrics"]).stdout

    assert table.count("\n") == 2 + len(ALL)
    assert f"\n\n{table}\n" in (ROOT / "docs/operate.md").read_text("utf-8")


def test_answers_are_counted_by_a_bounded_word(
    sqlite_store: SqliteStore, server: SegmentServer
) -> None:
    page_of_html = Answer(200, {"Content-Type": "text/html"}, b"<p>reader@example.com</p>")
    server.answers.extend([Answer(503), Answer(0), page_of_html, Answer(302), Answer(599)])
    clock, names = Clock(), ["503", "ProtocolError", "200", "302", "599", "accepted"]
    outbox = SqliteOutbox(sqlite_store.path, clock=clock.now, elapsed=clock.monotonic)
    forwarder = _forwarder(outbox, server.url, clock)
    before = [_messages(name) for name in names]
    with closing(outbox):
        outbox.add([_arrival(mail, clock.now()) for mail in range(2)])
        while total(outbox.counts()).pending:
            forwarder.step()
        after = [_messages(name) for name in names]

    assert [new - old for new, old in zip(after, before, strict=True)] == [2] * 6


def test_a_delivery_is_timed_from_the_receipt(
    sqlite_store: SqliteStore, server: SegmentServer
) -> None:
    clock = Clock()
    outbox = SqliteOutbox(sqlite_store.path, clock=clock.now, elapsed=clock.monotonic)
    forwarder = _forwarder(outbox, server.url, clock)
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


def _arrival(mail: int, received_at: datetime) -> Arrival:
    return Arrival("vero", "segment", f"vero-{mail}", received_at, opened(mail))


def _messages(answer: str) -> float:
    return _sample(FORWARDING, "relay_messages_total", destination="segment", answer=answer)


def _sample(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(name, labels) or 0

from collections.abc import Iterable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta

from prometheus_client.metrics_core import Metric

from relay.events import DeadReason
from relay.metrics.exporter import AcceptedVsStored, OutboxExporter, from_counters
from relay.outbox.counters import Change, CounterRow
from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.throttle import Permit, Throttle
from tests.harness.fakes import Clock
from tests.harness.stores import SqliteStore
from tests.harness.webhooks import opened
from tests.metrics.page import Page


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


def _arrival(mail: int, received_at: datetime, destination: str = "segment") -> Arrival:
    return Arrival("vero", destination, f"vero-{mail}", received_at, opened(mail))

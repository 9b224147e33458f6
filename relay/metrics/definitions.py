"""Every counter, gauge and histogram, each with the question it answers.

Receiver and forwarder are separate processes, so each has its own registry. The metrics of the
outbox are in neither: `relay.metrics.exporter` reads them from the outbox when Prometheus asks. No
name occurs twice, so one page can show all of them, and those of prometheus_client, too.

A label holds one of relay's own words, the name of a source or destination, a collection of email
events or a type of calls, the status of an answer, or the kind of network error. It never holds an
address, a secret or any text from a body.

A constant is named like its metric, without `relay_` and `_total`.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric


class Definition(Struct, frozen=True):
    """The name and meaning of a metric, for its page and for the documentation."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    question: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> list[str]:
        """The names by which queries select it."""
        if self.kind == "histogram":
            return [f"{self.name}_{part}" for part in ("bucket", "sum", "count")]
        return [self.name]

    def with_values(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """Return the metric as a counter or gauge with these values, each under its labels."""
        family = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = family(self.name, self.question, labels=self.labels)
        for labels, value in values.items():
            metric.add_metric(labels, value)
        return metric


ALL: Final[list[Definition]] = []
"""Every metric of relay's own."""

RECEIVING: Final = CollectorRegistry()
FORWARDING: Final = CollectorRegistry()


def _counter(
    name: str, question: str, *labels: str, registry: CollectorRegistry = RECEIVING
) -> Counter:
    ALL.append(Definition(name, "counter", question, labels))
    return Counter(name, question, labels, registry=registry)


def _histogram(
    name: str,
    question: str,
    buckets: Iterable[float],
    *labels: str,
    registry: CollectorRegistry = RECEIVING,
) -> Histogram:
    ALL.append(Definition(name, "histogram", question, labels))
    return Histogram(name, question, labels, buckets=tuple(buckets), registry=registry)


def _of_outbox(
    name: str, question: str, *labels: str, kind: Literal["counter", "gauge"] = "gauge"
) -> Definition:
    ALL.append(Definition(name, kind, question, labels))
    return ALL[-1]


# Without this, each counter and histogram has a second series: the time when it was created.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it comes without annotations

# The receiver's.

WEBHOOKS: Final = _counter(
    "relay_webhooks_total",
    "What came in, and how was it answered?",
    *("source", "outcome", "what"),
)
"""Each call of a request counts.

`outcome` is the answer's `status`; `what` is the collection or the type of call, or the reason why
there is none.
"""
WRONG_CREDENTIALS: Final = _counter(
    "relay_wrong_credentials_total",
    "How many wrong passwords, links, sessions and tokens were tried?",
    *("page", "credential"),
)
ANSWER_SECONDS: Final = _histogram(
    "relay_answer_seconds",
    "How long after it was read was a stored webhook or call answered?",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
)
COMMIT_WEBHOOKS: Final = _histogram(
    "relay_commit_webhooks",
    "How many webhooks, or requests with calls, share a commit?",
    (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
)
COMMIT_SECONDS: Final = _histogram(
    "relay_commit_seconds",
    "How long does a commit to the outbox take?",
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
CONNECTIONS_SHED: Final = _counter(
    "relay_connections_shed_total",
    "How many connections were closed because there were too many?",
)
RECEIVER_LOG_LINES_DROPPED: Final = _counter(
    "relay_receiver_log_lines_dropped_total",
    "How many lines of the receiver's log were dropped because nobody read them in time?",
)

# The forwarder's.

BATCHES: Final = _counter(
    "relay_batches_total",
    "How many requests were sent, and what did the destination answer?",
    *("destination", "answer"),
    registry=FORWARDING,
)
"""`answer` is `accepted`, the status of any other answer, or the kind of network error.

It is `200` if a page of HTML, or words that deny it, came behind that status. It is `none` if relay
itself failed.
"""
MESSAGES: Final = _counter(
    "relay_messages_total",
    "How many messages were sent, and what did the destination answer? Each attempt counts.",
    *("destination", "answer"),
    registry=FORWARDING,
)
DELIVERY_SECONDS: Final = _histogram(
    "relay_delivery_seconds",
    "How long after its receipt was an event delivered? Waits, holds and replays count.",
    (0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3_600, 6 * 3_600, 86_400, 7 * 86_400),
    "destination",
    registry=FORWARDING,
)
FORWARDER_LOG_LINES_DROPPED: Final = _counter(
    "relay_forwarder_log_lines_dropped_total",
    "How many lines of the forwarder's log were dropped because nobody read them in time?",
    registry=FORWARDING,
)

# The outbox's.

OUTBOX_UP: Final = _of_outbox(
    "relay_outbox_up", "Does the outbox answer? If not, its other metrics are absent."
)
BACKLOG_ENTRIES: Final = _of_outbox(
    "relay_backlog_entries", "How many events are pending?", "destination"
)
BACKLOG_SECONDS: Final = _of_outbox(
    "relay_backlog_seconds", "How long has the oldest pending event waited?", "destination"
)
BACKLOG_LIMIT_ENTRIES: Final = _of_outbox(
    "relay_backlog_limit_entries",
    "How many events may be pending, for all destinations together? Absent without"
    " `RELAY_MAX_BACKLOG`.",
)
HOLD: Final = _of_outbox(
    "relay_hold",
    "Is forwarding on hold because the destination refuses the key, the host or the request?",
    "destination",
)
OUTBOX_FREE_BYTES: Final = _of_outbox(
    "relay_outbox_free_bytes",
    "How much room is left on the outbox's disk? Absent if that cannot be known.",
)
OUTBOX_MIN_FREE_BYTES: Final = _of_outbox(
    "relay_outbox_min_free_bytes", "How much room must be left, or else nothing more is stored?"
)
OUTBOX_LOG_BYTES: Final = _of_outbox(
    "relay_outbox_log_bytes", "How large is the log of writes beside the SQLite file?"
)
OUTBOX_LOG_HELD: Final = _of_outbox(
    "relay_outbox_log_held", "Does a reader of the SQLite file keep its log from being emptied?"
)
EVENTS: Final = _of_outbox(
    "relay_events",
    "What has become of the events in the outbox?",
    *("source", "destination", "collection", "state", "reason"),
)
"""`collection` may be a type of calls, and is empty if none could be read; `reason` is of dead
letters."""
EVENTS_RECEIVED: Final = _of_outbox(
    "relay_events_received_total",
    "How many events were stored? Duplicates do not count.",
    *("source", "collection"),
    kind="counter",
)
EVENTS_DELIVERED: Final = _of_outbox(
    "relay_events_delivered_total",
    "How often was an event delivered? A delivery after a replay counts again.",
    "destination",
    kind="counter",
)
EVENTS_DEAD_LETTERED: Final = _of_outbox(
    "relay_events_dead_lettered_total",
    "How often did an event become a dead letter?",
    *("destination", "reason"),
    kind="counter",
)
EVENTS_FORGOTTEN: Final = _of_outbox(
    "relay_events_forgotten_total",
    "How many events were erased, or deleted at the end of their retention?",
    kind="counter",
)
EVENTS_MISSING: Final = _of_outbox(
    "relay_events_missing",
    "How many events has this receiver answered `accepted` that the outbox does not have?",
)


def start_at_zero(destination: str) -> None:
    """Create the forwarder's series for a destination at 0, so that the first count is growth.

    Series of answers other than `accepted` are created when such an answer comes.
    """
    BATCHES.labels(destination, "accepted")
    MESSAGES.labels(destination, "accepted")
    DELIVERY_SECONDS.labels(destination)

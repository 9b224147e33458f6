"""Every counter, gauge and histogram, each with the question it answers.

Receiver and forwarder are processes of their own, and have a registry each. The metrics of the
outbox are read when somebody asks (`relay.metrics.exporter`). What prometheus_client tells of a
process itself is in its own registry. No name occurs twice, so that one page holds them all.

Labels hold words of relay's own, and of answers their status or the kind of network error: never an
address, a secret or anything else from a body.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric


class Described(Struct, frozen=True):
    """A metric, as the documentation tells it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    question: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> list[str]:
        """The names that queries know it by."""
        if self.kind == "histogram":
            return [f"{self.name}_{part}" for part in ("bucket", "sum", "count")]
        return [self.name]

    def with_values(self, values: Mapping[tuple[str, ...], float]) -> Metric:
        """Return a counter or gauge with these values, each by its labels."""
        family = CounterMetricFamily if self.kind == "counter" else GaugeMetricFamily
        metric = family(self.name, self.question, labels=self.labels)
        for labels, value in values.items():
            metric.add_metric(labels, value)
        return metric


ALL: Final[list[Described]] = []
"""Every metric of relay's own."""

RECEIVING: Final = CollectorRegistry()
FORWARDING: Final = CollectorRegistry()


def _counter(
    name: str, question: str, *labels: str, registry: CollectorRegistry = RECEIVING
) -> Counter:
    ALL.append(Described(name, "counter", question, labels))
    return Counter(name, question, labels, registry=registry)


def _histogram(
    name: str,
    question: str,
    buckets: Iterable[float],
    *labels: str,
    registry: CollectorRegistry = RECEIVING,
) -> Histogram:
    ALL.append(Described(name, "histogram", question, labels))
    return Histogram(name, question, labels, buckets=tuple(buckets), registry=registry)


def _of_outbox(
    name: str, question: str, *labels: str, kind: Literal["counter", "gauge"] = "gauge"
) -> Described:
    ALL.append(Described(name, kind, question, labels))
    return ALL[-1]


# Each would come with a second series that nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it comes without annotations

WEBHOOKS: Final = _counter(
    "relay_webhooks_total",
    "What came in, and what was it answered?",
    *("source", "outcome", "what"),
)
"""`outcome` is the answer's status; `what` the collection, or the reason why it is none."""
WRONG_CREDENTIALS: Final = _counter(
    "relay_wrong_credentials_total",
    "How many wrong passwords, links, sessions and tokens were tried?",
    *("door", "credential"),
)
ANSWERS: Final = _histogram(
    "relay_answer_seconds",
    "How long does a stored webhook wait for its answer, once it is read?",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3),
)
GROUPS: Final = _histogram(
    "relay_commit_webhooks",
    "How many webhooks share a commit?",
    (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000),
)
COMMITS: Final = _histogram(
    "relay_commit_seconds",
    "How long does the outbox take for a commit?",
    (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)

BATCHES: Final = _counter(
    "relay_batches_total",
    "What did the destination answer to requests?",
    *("destination", "answer"),
    registry=FORWARDING,
)
"""`accepted`; the status of what was not, `200` for a page of HTML
or words that deny it; the kind of network error; or
`none` where relay itself failed."""
MESSAGES: Final = _counter(
    "relay_messages_total",
    "What did the destination answer to requests, by the messages in them, sent again or not?",
    *("destination", "answer"),
    registry=FORWARDING,
)
DELIVERIES: Final = _histogram(
    "relay_delivery_seconds",
    "How long after its receipt was an event delivered, waits, holds and replays included?",
    (0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3_600, 6 * 3_600, 86_400, 7 * 86_400),
    "destination",
    registry=FORWARDING,
)
SHED: Final = _counter(
    "relay_connections_shed_total",
    "How many connections were closed, because there were too many?",
)
RECEIVER_LINES_DROPPED: Final = _counter(
    "relay_receiver_log_lines_dropped_total",
    "How many lines of the receiver's log were dropped, because nobody read them in time?",
)
FORWARDER_LINES_DROPPED: Final = _counter(
    "relay_forwarder_log_lines_dropped_total",
    "How many lines of the forwarder's log were dropped, because nobody read them in time?",
    registry=FORWARDING,
)

OUTBOX_UP: Final = _of_outbox(
    "relay_outbox_up", "Does the outbox answer? Where not, what follows from it is left out."
)
BACKLOG: Final = _of_outbox("relay_backlog_entries", "How many events wait?", "destination")
BACKLOG_AGE: Final = _of_outbox(
    "relay_backlog_seconds", "How long has the oldest waiting event waited?", "destination"
)
BACKLOG_LIMIT: Final = _of_outbox(
    "relay_backlog_limit_entries", "How many may wait, where `RELAY_MAX_BACKLOG` is set?"
)
HOLD: Final = _of_outbox(
    "relay_hold",
    "Is forwarding on hold, because the destination refuses the key, the host or the request?",
    "destination",
)
FREE: Final = _of_outbox(
    "relay_outbox_free_bytes", "How much room has the outbox's disk, where that can be known?"
)
LEAST_FREE: Final = _of_outbox(
    "relay_outbox_min_free_bytes", "Below how much room there is nothing taken any more?"
)
LOG_BYTES: Final = _of_outbox(
    "relay_outbox_log_bytes", "How long is SQLite's log of writes, beside the file?"
)
LOG_HELD: Final = _of_outbox(
    "relay_outbox_log_held",
    "Does somebody who reads from the SQLite file keep its log from being emptied?",
)
EVENTS: Final = _of_outbox(
    "relay_events",
    "What has become of the events that the outbox holds?",
    *("source", "destination", "collection", "state", "reason"),
)
"""`reason` of dead letters; no `collection` where none could be read."""
RECEIVED: Final = _of_outbox(
    "relay_events_received_total",
    "How many events were ever stored, copies not counted?",
    *("source", "collection"),
    kind="counter",
)
DELIVERED: Final = _of_outbox(
    "relay_events_delivered_total",
    "How many times was an event delivered, again after a replay included?",
    "destination",
    kind="counter",
)
DEAD_LETTERED: Final = _of_outbox(
    "relay_events_dead_lettered_total",
    "How many times did an event become a dead letter?",
    *("destination", "reason"),
    kind="counter",
)
FORGOTTEN: Final = _of_outbox(
    "relay_events_forgotten_total",
    "How many events were erased, or forgotten after their retention?",
    kind="counter",
)
MISSING: Final = _of_outbox(
    "relay_events_missing",
    "How many events has this receiver answered `accepted` that the outbox does not know of?",
)

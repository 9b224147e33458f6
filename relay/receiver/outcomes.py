"""Counts and logs what becomes of what comes in."""

from functools import cache
from typing import Final

import structlog

from relay.errors import OutboxError
from relay.events import Ignored
from relay.logs.sampling import LogSampler
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.entries import Arrival
from relay.receiver.answers import Answer, RequestRefusedError, answer_to
from relay.receiver.committer import StoreResult
from relay.sources import Source

_log: Final = structlog.get_logger()
_counter: Final = cache(WEBHOOKS.labels)


def counted_answer(
    source: Source, arrival: Arrival | Ignored, result: StoreResult | None = None
) -> Answer:
    """Count and log an event, and return the answer to a webhook with this event alone.

    Args:
        source: the source that sent it.
        arrival: what the route made of it.
        result: the result of storing it; None if it is ignored.
    """
    answer = answer_to(source, arrival, result)
    if isinstance(result, OutboxError):
        count_unstored(source, result)
        return answer
    outcome = answer.content["status"]
    what = answer.content.get("reason") or getattr(arrival, "collection", None) or ""
    count(source, outcome, what)
    details = {name: value for name, value in answer.content.items() if name != "status"}
    _log.debug("webhook." + outcome, source=source.name, what=what, **details)
    return answer


def count_unstored(source: Source, error: OutboxError, events: int = 1) -> None:
    """Count and log the events of a request that could not be stored."""
    _log.error("webhook.not_stored", source=source.name, error=str(error))
    count(source, "unavailable", "outbox", events)


def count(source: Source | None, outcome: str, what: str, events: int = 1) -> None:
    """Count what came from the source; None is an unknown one."""
    _counter(source.name if source else "unknown", outcome, what).inc(events)


class Refusals:
    """A log of refused requests in which each kind is written once a minute."""

    def __init__(self) -> None:
        self._sampler = LogSampler()

    def report(self, source: Source | None, refusal: RequestRefusedError) -> None:
        """Count the refusal; log it unless the same kind was logged lately."""
        status = refusal.answer.status
        count(source, "refused", str(status))
        name = source.name if source else "unknown"
        more = self._sampler.sample((name, status, refusal.why))
        if more is not None:
            _log.info("webhook.refused", source=name, status=status, why=refusal.why, more=more)

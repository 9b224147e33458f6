"""Replay: today's mapping over stored bodies, sent again under the `messageId` each has."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct, field

from relay.events import Unusable
from relay.outbox.entries import Operation, Requeue, State, StoredEntry, keys_of
from relay.outbox.protocol import EntryStore
from relay.routes import Rendered, Routes

DEDUPLICATION: Final = timedelta(hours=24)
"""For how long Segment recognises a `messageId` (segment-docs, guides/duplicate-data.md)."""
STEP: Final = 500
"""Entries made pending at a time: nothing else waits long for so few."""

_SETTLED: Final = ("dead", "delivered", "replayed")


class Plan(Struct):
    """What a replay would do.

    Attributes:
        to_send: of these, how many will be sent.
        again: of those, how many Segment has had before.
        too_late: of those, how many it no longer recognises, and will count twice.
        pending: already on their way.
        done: settled since the replay began, by itself before it was interrupted most likely.
        unusable: nothing can be sent for these, by today's reason.
        examples: some of what will be sent.
    """

    to_send: int = 0
    again: int = 0
    too_late: int = 0
    pending: int = 0
    done: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[StoredEntry, Rendered]] = []

    @property
    def found(self) -> int:
        """How many were looked at."""
        return self.to_send + self.pending + self.done + sum(self.unusable.values())


def plan(
    entries: Iterable[StoredEntry],
    routes: Routes,
    *,
    now: datetime,
    began_at: datetime,
    examples: int = 3,
) -> Plan:
    """What a replay of the records, begun then, would do; nothing is changed.

    The records come with their histories.
    """
    planned = Plan()
    for entry in entries:
        if entry.state is State.PENDING:
            planned.pending += 1
            continue
        if _is_done(entry, began_at):
            planned.done += 1
            continue
        rendered = routes.render(entry)
        if isinstance(rendered, Unusable):
            planned.unusable[rendered.reason] += 1
            continue
        planned.to_send += 1
        if sent_at := _last_delivered_at(entry):
            planned.again += 1
            planned.too_late += now - sent_at > DEDUPLICATION
        if len(planned.examples) < examples:
            planned.examples.append((entry, rendered))
    return planned


def _last_delivered_at(entry: StoredEntry) -> datetime | None:
    if entry.delivered_at is not None:
        return entry.delivered_at
    earlier = [event.at for event in entry.history if event.what == "delivered"]
    return earlier[-1] if earlier else None


def replay(
    outbox: EntryStore,
    entries: Iterable[StoredEntry],
    routes: Routes,
    operation: Operation,
    *,
    began_at: datetime,
) -> Iterator[tuple[int, int]]:
    """Make the records pending again that something can be sent for.

    What has been settled since the replay began is left alone: begun again after an interruption
    it sends nothing twice, and what comes in meanwhile is none of its business. The records come
    with their histories.

    Yields:
        After each step: how many records were looked at, and how many of them made pending.
    """
    looked_at = 0
    step: list[Requeue] = []
    for entry in entries:
        looked_at += 1
        to_do = entry.state is not State.PENDING and not _is_done(entry, began_at)
        rendered = routes.render(entry) if to_do else None
        if isinstance(rendered, Rendered):
            event = rendered.event
            step.append(Requeue(entry.id, event.collection, keys_of(event)))
        if looked_at == STEP:
            yield looked_at, outbox.requeue(step, operation)
            looked_at, step = 0, []
    yield looked_at, outbox.requeue(step, operation) if step else 0


def _is_done(entry: StoredEntry, began_at: datetime) -> bool:
    settled = [event.at for event in entry.history if event.what in _SETTLED]
    settled += [entry.received_at, *([entry.delivered_at] if entry.delivered_at else [])]
    # Stores keep milliseconds.
    return max(settled) >= began_at.replace(microsecond=began_at.microsecond // 1000 * 1000)

"""Makes entries pending again; each is rendered by today's mapping and keeps its `messageId`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

from msgspec import Struct, field

from relay.events import DeadReason, Unusable
from relay.outbox.entries import Operation, Requeue, State, StoredEntry, keys_of
from relay.outbox.protocol import EntryStore
from relay.routes import Rendered, Routes

BATCH_ROWS: Final = 500
"""Entries requeued in one transaction: few enough that nothing else waits long."""

_SETTLED: Final = ("dead", "delivered", "replayed")


class Plan(Struct):
    """What a replay would do.

    Attributes:
        to_send: how many entries will be sent.
        in_lanes: of those, how many are put at the end of their lanes, and so come after what was
            received later, by the title of their destination.
        again: how many of `to_send` were delivered before, by the title of their destination.
        too_late: of those, how many the destination no longer recognises and may count twice.
        pending: how many are waiting to be sent already.
        done: how many were settled since the replay began; most likely this replay sent them
            before it was interrupted.
        unusable: how many are not sent, by today's reason. Among them are those of which only the
            part is left that cannot be sent, and those that were forbidden and are not chosen.
        examples: some of the entries that will be sent.
    """

    to_send: int = 0
    in_lanes: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    too_late: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    done: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[StoredEntry, Rendered]] = []

    @property
    def found(self) -> int:
        """The number of entries that were looked at."""
        return self.to_send + self.pending + self.done + sum(self.unusable.values())


def plan(
    entries: Iterable[StoredEntry],
    routes: Routes,
    *,
    now: datetime,
    began_at: datetime,
    chosen: bool = True,
    examples: int = 3,
) -> Plan:
    """Return what a replay of the entries would do; change nothing.

    Args:
        entries: with their histories.
        routes: every route.
        now: the time of day.
        began_at: when the replay began; before `now` if it was interrupted.
        chosen: whether the operator has chosen the entries by their ids or their reason.
        examples: how many examples to keep.
    """
    planned = Plan()
    for entry in entries:
        if entry.state is State.PENDING:
            planned.pending += 1
            continue
        if _is_done(entry, began_at):
            planned.done += 1
            continue
        rendered = _sendable(entry, routes, chosen=chosen)
        if isinstance(rendered, Unusable):
            planned.unusable[rendered.reason] += 1
            continue
        destination = routes[entry.source].destination
        planned.to_send += 1
        if rendered.lanes:
            planned.in_lanes[destination.title] += 1
        if sent_at := _last_delivered_at(entry):
            planned.again[destination.title] += 1
            is_late = now - sent_at > destination.limits.dedupe_window
            if is_late and not rendered.repeatable:
                planned.too_late[destination.title] += 1
        if len(planned.examples) < examples:
            planned.examples.append((entry, rendered))
    return planned


def _sendable(entry: StoredEntry, routes: Routes, *, chosen: bool) -> Rendered | Unusable:
    """Render an entry that is not pending; return why nothing of it is to be sent, if so."""
    if entry.reason == DeadReason.FORBIDDEN and not chosen:
        return Unusable(DeadReason.FORBIDDEN, "only a replay of this reason or id sends it")
    rendered = routes.render(entry)
    if isinstance(rendered, Rendered) and rendered.fault and entry.state is State.DEAD:
        return rendered if entry.step < len(rendered.messages) else rendered.fault
    return rendered


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
    chosen: bool = True,
) -> Iterator[tuple[int, int]]:
    """Make every entry pending again that can be sent.

    Entries that were settled or received after the replay began stay as they are. So a replay that
    is interrupted and started again sends nothing twice.

    Args:
        outbox: the store of the entries.
        entries: with their histories.
        routes: every route.
        operation: the record of this replay.
        began_at: when the replay began.
        chosen: see `plan`.

    Yields:
        After each batch: how many entries were looked at, and how many of them became pending.
    """
    looked_at = 0
    batch: list[Requeue] = []
    for entry in entries:
        looked_at += 1
        to_do = entry.state is not State.PENDING and not _is_done(entry, began_at)
        rendered = _sendable(entry, routes, chosen=chosen) if to_do else None
        if isinstance(rendered, Rendered):
            event = rendered.event
            keys = keys_of(event)
            batch.append(Requeue(entry.id, event.collection, keys, rendered.lanes))
        if looked_at == BATCH_ROWS:
            yield looked_at, outbox.requeue(batch, operation)
            looked_at, batch = 0, []
    yield looked_at, outbox.requeue(batch, operation) if batch else 0


def _is_done(entry: StoredEntry, began_at: datetime) -> bool:
    settled = [event.at for event in entry.history if event.what in _SETTLED]
    settled += [entry.received_at, *([entry.delivered_at] if entry.delivered_at else [])]
    # Stores keep milliseconds only.
    return max(settled) >= began_at.replace(microsecond=began_at.microsecond // 1000 * 1000)

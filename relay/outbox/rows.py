"""Turns rows of either store into the outbox's values.

Both stores select the same columns in the same order. They differ in how they hold a time, so each
function takes a function that turns a stored time into an aware datetime in UTC.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from relay.outbox.counters import Change, CounterRow, in_states
from relay.outbox.entries import Counts, HistoryEvent, Keys, Operation, Query, State, StoredEntry
from relay.outbox.protocol import MAX_SORTED_ENTRIES

STORED_ENTRY: Final = (
    "id, source, destination, message_id, state, collection, received_at, attempts, delivered_at,"
    " reason, detail, user_key, address_key, email_key, body, step"
)
HISTORY: Final = "entry, at, what, detail"
OPERATION: Final = "id, kind, what, started_at, finished_at, entries"
COUNTER: Final = "slot, source, destination, collection, change, reason, entries, latest"

Time = Callable[[Any], datetime]
Row = Sequence[Any]


def stored_entry(row: Row, time: Time) -> StoredEntry:
    """Return the entry of a row of `STORED_ENTRY` and `retry_at`, without its history."""
    id_, source, destination, message_id, state, collection, received_at, attempts, *rest = row
    delivered_at, reason, detail, user, address, email, body, step, retry_at = rest
    return StoredEntry(
        id=id_,
        source=source,
        destination=destination,
        message_id=message_id,
        state=State(state),
        collection=collection,
        received_at=time(received_at),
        attempts=attempts,
        delivered_at=None if delivered_at is None else time(delivered_at),
        reason=reason,
        detail=detail,
        keys=Keys(user, address, email),
        body=body,
        step=step,
        retry_at=None if retry_at is None else time(retry_at),
    )


def histories(rows: Iterable[Row], time: Time) -> dict[int, tuple[HistoryEvent, ...]]:
    """Return the histories of entries by their ids, from rows of `HISTORY`, oldest first."""
    found: dict[int, list[HistoryEvent]] = {}
    for entry, at, what, detail in rows:
        found.setdefault(entry, []).append(HistoryEvent(time(at), what, detail))
    return {entry: tuple(history) for entry, history in found.items()}


def lanes(rows: Iterable[Row]) -> dict[int, tuple[int, ...]]:
    """Return the lanes of entries by their ids, from rows of an entry and one of its lanes."""
    found: dict[int, list[int]] = {}
    for entry, lane in rows:
        found.setdefault(entry, []).append(lane)
    return {entry: tuple(lanes) for entry, lanes in found.items()}


def operation(row: Row, time: Time) -> Operation:
    """Return the operation of a row of `OPERATION`."""
    id_, kind, what, started_at, finished_at, entries = row
    finished = None if finished_at is None else time(finished_at)
    return Operation(id_, kind, what, time(started_at), finished, entries)


def counter_row(row: Row, slot_time: Callable[[Any], datetime | None], time: Time) -> CounterRow:
    """Return the counter of a row of `COUNTER`."""
    slot, source, destination, collection, change, reason, entries, latest = row
    return CounterRow(
        since=slot_time(slot),
        source=source,
        destination=destination,
        collection=collection or None,
        change=Change(change),
        reason=reason or None,
        entries=entries,
        latest=time(latest),
    )


def states(changes: Iterable[tuple[str, str, int]]) -> dict[str, dict[State, int]]:
    """Count the entries of each destination by state, from counts of their changes."""
    by_destination: dict[str, dict[Change, int]] = {}
    for destination, change, entries in changes:
        by_destination.setdefault(destination, {})[Change(change)] = entries
    return {destination: in_states(made) for destination, made in by_destination.items()}


def counts(in_state: Mapping[State, int], waiting_since: datetime | None) -> Counts:
    """Return a destination's counts."""
    return Counts(
        pending=in_state[State.PENDING],
        delivered=in_state[State.DELIVERED],
        dead=in_state[State.DEAD],
        waiting_since=waiting_since,
    )


def are_few(query: Query, changes: Callable[[], Iterable[tuple[str, str, int]]]) -> bool:
    """Return whether few entries meet the query, so that to sort them is quicker than a scan.

    Args:
        query: the conditions.
        changes: asks the store for the argument of `states`.
    """
    if query.states not in {(State.PENDING,), (State.DELIVERED,)}:
        return False
    return sum(each[query.states[0]] for each in states(changes()).values()) <= MAX_SORTED_ENTRIES

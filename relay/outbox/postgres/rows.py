"""The rows of a PostgreSQL outbox as values, and values as rows.

The server sends times in its own time zone; all values have theirs in UTC.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from relay.outbox.counters import Change, CounterRow
from relay.outbox.entries import Entry, HistoryEvent, Keys, Operation, State, StoredEntry

Row = Sequence[Any]


def entry_from_row(row: Row) -> Entry:
    """Return the claimed entry."""
    id_, source, destination, message_id, received_at, attempts, claim, body, crashes = row
    return Entry(
        id=id_,
        source=source,
        destination=destination,
        message_id=message_id,
        received_at=_utc(received_at),
        attempts=attempts,
        claim=claim,
        body=body,
        crashes=crashes,
    )


def stored_entry_from_row(row: Row) -> StoredEntry:
    """Return the entry, without its history."""
    (id_, source, destination, message_id, state, collection, received_at, attempts, *rest) = row
    delivered_at, reason, detail, user, address, email, body = rest
    return StoredEntry(
        id=id_,
        source=source,
        destination=destination,
        message_id=message_id,
        state=State(state),
        collection=collection,
        received_at=_utc(received_at),
        attempts=attempts,
        delivered_at=delivered_at and _utc(delivered_at),
        reason=reason,
        detail=detail,
        keys=Keys(user, address, email),
        body=body,
    )


def history_event_from_row(row: Row) -> HistoryEvent:
    """Return the line of an entry's history."""
    at, what, detail = row
    return HistoryEvent(_utc(at), what, detail)


def operation_from_row(row: Row) -> Operation:
    """Return the operation."""
    id_, kind, what, started_at, finished_at, entries = row
    return Operation(
        id=id_,
        kind=kind,
        what=what,
        started_at=_utc(started_at),
        finished_at=finished_at and _utc(finished_at),
        entries=entries,
    )


def counter_from_row(row: Row) -> CounterRow:
    """Return the counter. None stands for an empty collection or reason, and for the epoch."""
    slot, source, destination, collection, change, reason, entries, latest = row
    return CounterRow(
        since=_utc(slot) if slot.timestamp() else None,
        source=source,
        destination=destination,
        collection=collection or None,
        change=Change(change),
        reason=reason or None,
        entries=entries,
        latest=_utc(latest),
    )


def values_of(entry: StoredEntry) -> dict[str, Any]:
    """Return the entry's values by the names that a statement has for them."""
    return {
        "source": entry.source,
        "destination": entry.destination,
        "message_id": entry.message_id,
        "state": entry.state.value,
        "collection": entry.collection,
        "received_at": entry.received_at,
        "attempts": entry.attempts,
        "delivered_at": entry.delivered_at,
        "reason": entry.reason,
        "detail": None if entry.detail is None else as_text(entry.detail),
        "user": entry.keys.user,
        "address": entry.keys.address,
        "email": entry.keys.email,
        "body": entry.body,
    }


def as_text(value: str) -> str:
    """Return the text as PostgreSQL can hold it, without NUL."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _utc(at: datetime) -> datetime:
    return at.astimezone(UTC)

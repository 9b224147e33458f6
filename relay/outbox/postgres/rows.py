"""Converts values to and from rows of a PostgreSQL outbox; see also `relay.outbox.rows`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from relay.outbox.entries import Entry, StoredEntry
from relay.outbox.rows import stored_entry


def utc(at: datetime) -> datetime:
    """Return the time in UTC; the server sends it in a time zone of its own."""
    return at.astimezone(UTC)


def slot_time(slot: datetime) -> datetime | None:
    """Return the beginning of a counter's slot; None for the epoch: all old slots together."""
    return utc(slot) if slot.timestamp() else None


def entry_from_row(row: Sequence[Any]) -> Entry:
    """Return the claimed entry of a row."""
    id_, source, destination, message_id, received_at, attempts, claim, body, *rest = row
    crashes, ordered, step, failing_since = rest
    return Entry(
        id=id_,
        source=source,
        destination=destination,
        message_id=message_id,
        received_at=utc(received_at),
        attempts=attempts,
        claim=claim,
        body=body,
        crashes=crashes,
        ordered=ordered,
        step=step,
        failing_since=None if failing_since is None else utc(failing_since),
    )


def stored_entry_from_row(row: Sequence[Any]) -> StoredEntry:
    """Return the entry of a row of `STORED_ENTRY`, `retry_at` and its lanes; no history."""
    *columns, lanes = row
    entry = stored_entry(columns, utc)
    return structs.replace(entry, lanes=tuple(lanes)) if lanes else entry


def values_of(entry: StoredEntry) -> dict[str, Any]:
    """Return the entry's values by the names of a statement's parameters."""
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
        "step": entry.step,
    }


def as_text(value: str) -> str:
    """Return the text without NUL, which PostgreSQL cannot hold."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")

"""What is told of an entry, whoever asks."""

from datetime import datetime
from typing import Any

from relay.events import Unusable
from relay.outbox.entries import Record
from relay.routes import Mapped


def summary(record: Record, mapped: Mapped | Unusable) -> dict[str, Any]:
    """What an entry is, but for its body."""
    event = mapped.event if isinstance(mapped, Mapped) else None
    return {
        "id": record.id,
        "message_id": record.message_id,
        "provider": record.provider,
        "state": record.state,
        "collection": record.collection,
        "reason": record.reason,
        "detail": record.detail,
        "received_at": moment(record.received_at),
        "delivered_at": moment(record.delivered_at),
        "attempts": record.attempts,
        "user_id": event.user_id if event else None,
        "address": event.email if event else None,
        "email_id": event.properties.get("email_id") if event else None,
    }


def full(record: Record, mapped: Mapped | Unusable) -> dict[str, Any]:
    """All that is known of an entry: its raw webhook, its history, its track call as of today."""
    none = f"{mapped.reason}: {mapped.detail}" if isinstance(mapped, Unusable) else None
    return {
        **summary(record, mapped),
        "history": [
            {"at": moment(happening.at), "what": happening.what, "said": happening.said}
            for happening in record.history
        ],
        "body": record.body.decode(errors="replace"),
        "track": mapped.message if isinstance(mapped, Mapped) else None,
        "no_track_because": none,
    }


def moment(value: datetime | None) -> str | None:
    """The moment, as it stands in tables and in JSON."""
    return (
        None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )

"""What is told of an entry, whoever asks."""

from datetime import datetime
from typing import Any

from relay.events import Unusable
from relay.outbox.entries import StoredEntry
from relay.routes import Rendered


def summary(entry: StoredEntry, rendered: Rendered | Unusable) -> dict[str, Any]:
    """What an entry is, but for its body."""
    event = rendered.event if isinstance(rendered, Rendered) else None
    return {
        "id": entry.id,
        "message_id": entry.message_id,
        "source": entry.source,
        "destination": entry.destination,
        "state": entry.state,
        "collection": entry.collection,
        "reason": entry.reason,
        "detail": entry.detail,
        "received_at": moment(entry.received_at),
        "delivered_at": moment(entry.delivered_at),
        "attempts": entry.attempts,
        "user_id": event.user_id if event else None,
        "address": event.email if event else None,
        "email_id": event.properties.get("email_id") if event else None,
    }


def detail(entry: StoredEntry, rendered: Rendered | Unusable) -> dict[str, Any]:
    """All that is known of an entry: its raw webhook, its history, its track call as of today."""
    none = f"{rendered.reason}: {rendered.detail}" if isinstance(rendered, Unusable) else None
    return {
        **summary(entry, rendered),
        "history": [
            {"at": moment(event.at), "what": event.what, "detail": event.detail}
            for event in entry.history
        ],
        "body": entry.body.decode(errors="replace"),
        "track": rendered.document if isinstance(rendered, Rendered) else None,
        "no_track_because": none,
    }


def moment(value: datetime | None) -> str | None:
    """The moment, as it stands in tables and in JSON."""
    return (
        None if value is None else value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )

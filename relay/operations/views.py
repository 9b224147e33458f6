"""Turns an entry into a document, the same one for the commands and the console."""

from typing import Any

from relay.events import Unusable
from relay.outbox.entries import StoredEntry
from relay.routes import Rendered
from relay.times import isoformat


def summary(entry: StoredEntry, rendered: Rendered | Unusable) -> dict[str, Any]:
    """Return everything about an entry but its body and its history."""
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
        "received_at": isoformat(entry.received_at),
        "delivered_at": entry.delivered_at and isoformat(entry.delivered_at),
        "attempts": entry.attempts,
        "user_id": event.user_id if event else None,
        "address": event.email if event else None,
        "email_id": event.email_id if event else None,
    }


def detail(entry: StoredEntry, rendered: Rendered | Unusable) -> dict[str, Any]:
    """Return everything about an entry: also its webhook, its history and its track call now."""
    fault = f"{rendered.reason}: {rendered.detail}" if isinstance(rendered, Unusable) else None
    return {
        **summary(entry, rendered),
        "history": [
            {"at": isoformat(event.at), "what": event.what, "detail": event.detail}
            for event in entry.history
        ],
        "body": entry.body.decode(errors="replace"),
        "track": rendered.document if isinstance(rendered, Rendered) else None,
        "no_track_because": fault,
    }

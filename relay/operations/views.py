"""Turns an entry into a document, the same one for the commands and the console."""

from collections.abc import Mapping
from typing import Any

from relay.events import Call, CallType, Event, Unusable
from relay.outbox.entries import State, StoredEntry
from relay.routes import Rendered
from relay.sources import Source
from relay.times import isoformat


def summary(entry: StoredEntry, event: Event | None) -> dict[str, Any]:
    """Return everything about an entry but its body, its history and what is sent for it.

    Args:
        entry: with its history.
        event: the event in it; None if it has none.
    """
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


def detail(
    entry: StoredEntry, event: Event | None, rendered: Rendered | Unusable
) -> dict[str, Any]:
    """Return everything about an entry: also its body, its history and what would be sent now.

    `sent` says how many of the messages the destination has. `not_sent_because` says why there are
    no messages, or why a part of the event is in none of them.
    """
    fault = fault_of(rendered)
    return {
        **summary(entry, event),
        "history": [
            {"at": isoformat(event.at), "what": event.what, "detail": event.detail}
            for event in entry.history
        ],
        "body": entry.body.decode(errors="replace"),
        "messages": documents(rendered),
        "sent": sent(entry, rendered),
        "not_sent_because": f"{fault.reason}: {fault.detail}" if fault else None,
    }


def who(event: Event | None) -> str | None:
    """Return the user id or the address of the recipient, or of the person a call is about."""
    if event is None:
        return None
    return event.user_id or event.email or next(iter(event.people), None)


def name_of(event: Event | None) -> str | None:
    """Return the name of what a person did or looked at, by a call; None without one."""
    return event.event if isinstance(event, Call) else None


def documents(rendered: Rendered | Unusable) -> list[Mapping[str, Any]]:
    """Return the messages for an entry, in the order in which they are sent; none if unusable."""
    if isinstance(rendered, Unusable):
        return []
    return [message.document for message in rendered.messages]


def fault_of(rendered: Rendered | Unusable) -> Unusable | None:
    """Return why the event, or a part of it, cannot be sent; None if all of it can."""
    return rendered if isinstance(rendered, Unusable) else rendered.fault


def sent(entry: StoredEntry, rendered: Rendered | Unusable) -> int:
    """Return how many of the messages for the entry, by today's mapping, have been sent."""
    count = len(documents(rendered))
    return count if entry.state is State.DELIVERED else min(entry.step, count)


def noun(source: Source | None) -> str:
    """Return what the bodies of a source are: webhooks or calls."""
    return "call" if source and source.collections is CallType else "webhook"

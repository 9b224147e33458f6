"""Finds out what pending entries wait for."""

from collections.abc import Mapping
from datetime import datetime

from msgspec import Struct

from relay.outbox.entries import Counts, State, StoredEntry
from relay.outbox.protocol import Outbox
from relay.routes import Routes
from relay.throttle import DestinationStatus


class Wait(Struct, frozen=True):
    """What a pending entry waits for.

    Attributes:
        status: how forwarding to its destination stands; None if that is not configured.
        behind: the entry that comes before it in a lane, because both concern the same person;
            None if there is none.
        retry_at: when it is tried again after a failure; None if it is due.
    """

    status: DestinationStatus | None
    behind: int | None = None
    retry_at: datetime | None = None


def wait_of(outbox: Outbox, entry: StoredEntry, routes: Routes, now: datetime) -> Wait | None:
    """Return what the entry waits for; None if it is not pending."""
    if entry.state is not State.PENDING:
        return None
    if entry.destination not in _configured(routes):
        return Wait(None)
    return Wait(
        outbox.destination_status(entry.destination),
        outbox.entries.blocked_by(entry.id),
        entry.retry_at if entry.retry_at and entry.retry_at > now else None,
    )


def stranded(counts: Mapping[str, Counts], routes: Routes) -> list[str]:
    """Return a sentence for each destination that entries wait for and that is not configured."""
    credentials = {route.destination.name: route.destination.credential for route in routes}
    return [
        f"{each.pending:,} {'entry waits' if each.pending == 1 else 'entries wait'} for {name},"
        f" which is not configured{_remedy(credentials.get(name))}"
        for name, each in counts.items()
        if each.pending and name not in _configured(routes)
    ]


def _remedy(credential: str | None) -> str:
    return f": set {credential}" if credential else ""


def _configured(routes: Routes) -> set[str]:
    return {destination.name for destination in routes.destinations}

"""The page that lists events, newest first, with filters."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from relay.console.pages import Pages
from relay.console.pagination import EntriesPage, find_page
from relay.console.web import parse_number, parse_time, reveal_field
from relay.events import CallType, Collection, DeadReason
from relay.operations.search import Criteria, Search
from relay.operations.views import name_of, who
from relay.outbox.entries import Query, State, StoredEntry
from relay.outbox.protocol import Outbox
from relay.routes import Routes

_FILTERS: Final = ("state", "source", "destination", "collection", "reason", "since", "until", "q")


class Row(Struct, frozen=True):
    """One line of the list.

    Attributes:
        who: user id or address of the recipient, or of the person a call is about; None if there
            is no event in it.
        email_id: the source's id of the email; None likewise.
        name: what the person did, by a call; None likewise.
    """

    entry: StoredEntry
    who: str | None
    email_id: str | None
    name: str | None


class EventList:
    """The list of events, newest first.

    Args:
        outbox: the one that is shown.
        routes: every route.
        search: finds events.
        pages: renders.
    """

    def __init__(self, outbox: Outbox, routes: Routes, search: Search, pages: Pages) -> None:
        self._outbox = outbox
        self._routes = routes
        self._search = search
        self._pages = pages

    def page(self, request: Request) -> Response:
        """Answer with one page of the list."""
        return self._pages.page(request, "events.html", **self._values(request))

    def fragment(self, request: Request) -> str:
        """Return the part of the list that is kept up to date."""
        return self._pages.render_for(request, "_events.html", **self._values(request))

    def _values(self, request: Request) -> dict[str, Any]:
        query = request.query_params
        start = parse_number(query.get("before"))
        found = find_page(self._search, _criteria(query), query.get("q", "").strip(), start=start)
        filters = {name: query.get(name, "") for name in _FILTERS}
        is_live = start is None
        return {
            "page": "events",
            "live": "events?" + urlencode(filters | reveal_field(query)) if is_live else None,
            "filters": filters,
            "filtered": any(filters.values()),
            "found": found,
            "rows": [self._row(entry) for entry in found.entries],
            "looked_to": self._time_looked_to(found),
            "before": start,
        }

    def _time_looked_to(self, found: EntriesPage) -> datetime | None:
        """Return when the last entry that was looked at was received."""
        if found.looked_to is None:
            return None
        entries = self._outbox.entries.find(
            Query(), 1, start=found.looked_to - 1, newest_first=False
        )
        return entries[0].received_at if entries else None

    def _row(self, entry: StoredEntry) -> Row:
        event = self._routes.event(entry)
        return Row(entry, who(event), event.email_id if event else None, name_of(event))


def _criteria(query: Mapping[str, str]) -> Criteria:
    """Return the criteria of the filters; a value that a filter cannot have is ignored."""
    state, collection, reason = (query.get(name, "") for name in ("state", "collection", "reason"))
    return Criteria(
        states=(State(state),) if state in {*State} else (),
        source=query.get("source") or None,
        destination=query.get("destination") or None,
        collection=collection if collection in {*Collection, *CallType} else None,
        reason=reason if reason in {*DeadReason} else None,
        since=parse_time(query.get("since")),
        until=parse_time(query.get("until")),
    )

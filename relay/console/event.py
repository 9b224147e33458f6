"""The page of one event: shows it and its history, and replays it."""

from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from relay.console.comparison import compare
from relay.console.pages import HOME, Pages
from relay.console.replays import MOST_LATER, Replays
from relay.console.web import parse_number, reveal_field, reveals
from relay.operations.search import Criteria, Search
from relay.operations.views import name_of, sent
from relay.operations.waiting import wait_of
from relay.outbox.entries import Clock, StoredEntry
from relay.outbox.protocol import Outbox
from relay.routes import Rendered, Routes


class EventPage:
    """The page of one event: what was received, what is sent, its history and its replay.

    Args:
        outbox: the one that holds it.
        routes: every route.
        search: finds the event.
        replays: replays it.
        pages: renders.
        clock: the time of day.
    """

    def __init__(
        self,
        outbox: Outbox,
        routes: Routes,
        search: Search,
        replays: Replays,
        pages: Pages,
        *,
        clock: Clock,
    ) -> None:
        self._outbox = outbox
        self._routes = routes
        self._search = search
        self._replays = replays
        self._pages = pages
        self._clock = clock

    def page(self, request: Request) -> Response:
        """Answer with the page of the event that the path names."""
        query = request.query_params
        entry = self._entry(request)
        rendered = self._routes.render(entry)
        now = self._clock()
        return self._pages.page(
            request,
            "event.html",
            page="events",
            entry=entry,
            now=now,
            name=name_of(self._routes.event(entry)),
            plan=self._replays.plan(entry.id, now),
            repeatable=isinstance(rendered, Rendered) and rendered.repeatable,
            later=self._replays.later(entry, rendered),
            most_later=MOST_LATER,
            wait=wait_of(self._outbox, entry, self._routes, now),
            replayed=parse_number(query.get("replayed")),
            comparison=compare(
                self._routes,
                entry,
                rendered,
                reveal=reveals(query),
                sent=sent(entry, rendered),
            ),
        )

    def replay(self, request: Request, form: Mapping[str, str]) -> Response:
        """Replay one event, and lead back to its page."""
        id_ = self._entry(request).id
        query = urlencode({"replayed": self._replays.one(id_), **reveal_field(form)})
        return RedirectResponse(f"{HOME}/events/{id_}?{query}", status_code=303)

    def _entry(self, request: Request) -> StoredEntry:
        """Return the entry that the path names, with its history.

        Raises:
            HTTPException: there is none.
        """
        id_ = parse_number(request.path_params["id"])
        criteria = Criteria(ids=(-1 if id_ is None else id_,))
        entry = next(self._search.find(criteria, with_history=True), None)
        if entry is None:
            raise HTTPException(404, "There is no such event. It may have been delivered long ago.")
        return entry

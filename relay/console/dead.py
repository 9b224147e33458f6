"""The page of dead letters: shows them by reason, replays and exports them."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from urllib.parse import urlencode

from msgspec import json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from relay.addresses import masked
from relay.console.pages import HOME, Pages
from relay.console.replays import Replays
from relay.console.web import reveal_field, reveals
from relay.events import DeadReason
from relay.operations.search import Criteria, Search, reasons
from relay.operations.views import detail
from relay.outbox.entries import State, StoredEntry
from relay.outbox.protocol import Outbox
from relay.routes import Routes


class DeadLetterPages:
    """The page of dead letters, and what can be done with them.

    Args:
        outbox: the one that is shown.
        routes: every route.
        search: finds dead letters.
        replays: replays them.
        pages: renders.
    """

    def __init__(
        self, outbox: Outbox, routes: Routes, search: Search, replays: Replays, pages: Pages
    ) -> None:
        self._outbox = outbox
        self._routes = routes
        self._search = search
        self._replays = replays
        self._pages = pages

    def page(self, request: Request) -> Response:
        """Answer with the dead letters, a group for each reason."""
        asked = request.query_params.get("asked")
        return self._pages.page(
            request,
            "dead.html",
            page="dead",
            groups=reasons(self._outbox),
            operations=self._outbox.entries.operations(5),
            replaying=self._replays.under_way,
            asked=asked if asked in {*DeadReason, "busy"} else None,
        )

    def replay(self, _request: Request, form: Mapping[str, str]) -> Response:
        """Begin to replay all of one reason, and lead back to the page."""
        reason = form.get("reason", "")
        if reason not in {*DeadReason}:
            raise HTTPException(400, "There is no such reason.")
        begun = self._replays.all_dead(reason)
        query = urlencode({"asked": reason if begun else "busy", **reveal_field(form)})
        return RedirectResponse(f"{HOME}/dead?{query}", status_code=303)

    def export(self, request: Request) -> Response:
        """Answer with the dead letters of one reason, or all, as JSON lines."""
        query = request.query_params
        reason = query.get("reason", "")
        if reason not in {*DeadReason, ""}:
            raise HTTPException(404, "There is no such reason.")
        criteria = Criteria(states=(State.DEAD,), reason=reason or None)
        found = self._search.find(criteria, newest_first=False, with_history=True)
        # The first is read before the answer begins: until then, a failure can be its status.
        found = chain([*islice(found, 1)], found)
        name = f"dead-{reason or 'letters'}.jsonl"
        return StreamingResponse(
            self._lines(found, reveal=reveals(query)),
            media_type="application/jsonl",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    def _lines(self, entries: Iterable[StoredEntry], *, reveal: bool) -> Iterator[bytes]:
        for entry in entries:
            rendered = self._routes.render(entry)
            document = detail(entry, self._routes.event(entry), rendered)
            yield json.encode(document if reveal else masked(document)) + b"\n"

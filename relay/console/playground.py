"""The playground: a page that shows what relay would make of a webhook."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from relay.console.comparison import compare
from relay.console.pages import Pages
from relay.events import Ignored, Unusable
from relay.outbox.entries import Clock, Query
from relay.outbox.protocol import Outbox
from relay.receiver.answers import Answer, answer_to
from relay.receiver.body import MAX_BODY_BYTES
from relay.routes import Route, Routes


class Playground:
    """A page that takes a webhook's body, and stores and sends nothing.

    Args:
        outbox: says whether an event would be a duplicate.
        routes: every route.
        pages: renders.
        clock: the time of day.
    """

    def __init__(self, outbox: Outbox, routes: Routes, pages: Pages, *, clock: Clock) -> None:
        self._outbox = outbox
        self._routes = routes
        self._pages = pages
        self._clock = clock

    def page(self, request: Request, form: Mapping[str, str]) -> Response:
        """Answer with what relay would make of the form's body, or with an example to try."""
        first = [*self._routes.receiving, *self._routes][0]
        route = self._routes.get(form.get("source") or first.source.name)
        if route is None:
            raise HTTPException(400, "There is no such source.")
        values: dict[str, Any] = {"answer": None, "arrival": None, "unusable": None}
        if "body" in form:
            values |= self._played(route, form["body"].encode())
        return self._pages.page(
            request,
            "playground.html",
            page="playground",
            source=route.source.name,
            text=form.get("body", route.source.example),
            **values,
        )

    def _played(self, route: Route, body: bytes) -> dict[str, Any]:
        if len(body) > MAX_BODY_BYTES:
            error = f"the body is larger than {MAX_BODY_BYTES} bytes"
            return {"answer": Answer(413, {"status": "refused", "error": error})}
        arrival = route.accept(body, self._clock())
        if isinstance(arrival, Ignored):
            return {"answer": answer_to(route.source, arrival)}
        is_new = not self._outbox.entries.find(Query(message_id=arrival.message_id), 1)
        rendered = arrival.fault or self._routes.render(arrival)
        return {
            "answer": answer_to(route.source, arrival, is_new),
            "arrival": arrival,
            "unusable": rendered if isinstance(rendered, Unusable) else None,
            # The operator has pasted the body: there is nothing to hide.
            "comparison": compare(self._routes, arrival, rendered, reveal=True),
        }

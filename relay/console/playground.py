"""The playground: a page that shows what relay would make of a webhook, or of calls."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from relay.console.comparison import Comparison, compare
from relay.console.pages import Pages
from relay.errors import TooManyEventsError
from relay.events import CallType, Ignored
from relay.operations.views import name_of
from relay.outbox.entries import Arrival, Clock, Query
from relay.outbox.protocol import Outbox
from relay.receiver.answers import Answer, answer_to
from relay.receiver.body import MAX_BODY_BYTES
from relay.routes import Route, Routes

MAX_CALLS: Final = 50
"""So many calls of a batch are looked at."""


class Fate(Struct, frozen=True):
    """What would become of one webhook or call.

    Attributes:
        answer: the answer to it, if it came alone and as a webhook.
        ignored: why it is ignored; None if it is stored.
        arrival: what is stored; None if it is ignored.
        name: what the person did, by a call.
        comparison: what would be sent for it; None if it is ignored.
    """

    answer: Answer
    ignored: Ignored | None = None
    arrival: Arrival | None = None
    name: str | None = None
    comparison: Comparison | None = None


class Playground:
    """A page that takes what a source sends, and stores and sends nothing.

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
        played = self._played(route, form["body"].encode()) if "body" in form else {}
        return self._pages.page(
            request,
            "playground.html",
            page="playground",
            source=route.source.name,
            destination=route.destination.name,
            text=form.get("body", route.source.example),
            played="body" in form,
            **{"answer": None, "fates": (), "more": 0, **played},
        )

    def _played(self, route: Route, body: bytes) -> dict[str, Any]:
        if len(body) > MAX_BODY_BYTES:
            error = f"the body is larger than {MAX_BODY_BYTES} bytes"
            return {"answer": Answer(413, {"status": "refused", "error": error})}
        try:
            bodies = route.split_line(body)
        except TooManyEventsError as error:
            return {"answer": Answer(413, {"status": "refused", "error": str(error)})}
        fates = [*self._fates(route, bodies[:MAX_CALLS])]
        if route.source.collections is CallType:
            return {"fates": fates, "more": len(bodies) - len(fates)}
        return {"fates": fates, "answer": fates[0].answer}

    def _fates(self, route: Route, bodies: Sequence[bytes]) -> Iterator[Fate]:
        seen = set[str]()
        for body in bodies:
            arrival = route.accept(body, self._clock())
            if isinstance(arrival, Ignored):
                yield Fate(answer_to(route.source, arrival), ignored=arrival)
                continue
            rendered = arrival.fault or self._routes.render(arrival)
            yield Fate(
                answer_to(route.source, arrival, self._is_new(arrival.message_id, seen)),
                arrival=arrival,
                name=name_of(self._routes.event(arrival)),
                # The operator has pasted the body: there is nothing to hide.
                comparison=compare(self._routes, arrival, rendered, reveal=True),
            )
            seen.add(arrival.message_id)

    def _is_new(self, message_id: str, seen: set[str]) -> bool:
        return message_id not in seen and not self._outbox.entries.find(
            Query(message_id=message_id), 1
        )

"""The console: what came in, what became of it, what goes to Segment, and how to put it right."""

import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path as FilePath
from typing import Any, Final, TypeVar
from urllib.parse import parse_qs, quote, urlencode

import structlog
from anyio import CapacityLimiter, to_thread
from msgspec import Struct, json
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from relay.addresses import masked
from relay.console.access import Door, Guard, PasswordDoor, Sealed
from relay.console.actions import Replays
from relay.console.comparison import Comparison
from relay.console.live import Live
from relay.console.overview import Watch
from relay.console.pages import HOME, Pages, span
from relay.console.search import Page, find
from relay.console.sign_in import PATH as SIGN_IN
from relay.console.sign_in import Links, SignIn, print_link
from relay.errors import OutboxError
from relay.events import Collection, DeadReason, Ignored, Unusable
from relay.operations.search import Criteria, Search, reasons
from relay.operations.views import detail
from relay.outbox.entries import Clock, Query, State, StoredEntry, utc_now
from relay.outbox.protocol import Outbox
from relay.receiver.answers import Answer, answer_to
from relay.receiver.bodies import MAX_BODY_BYTES
from relay.routes import Rendered, Routes

__all__ = ["HOME", "Console", "Endpoint", "Links", "print_link"]

MAX_FORM_BYTES: Final = 4 * 2**20
MAX_AT_ONCE: Final = 3
"""Looks at the outbox, for all who look: what comes in must not wait for a connection."""

_MOST_FIELDS: Final = 20  # of a form
_LARGEST_ID: Final = 2**63 - 1

_T = TypeVar("_T")
_View = Callable[[Request], Awaitable[Response]]

_log = structlog.get_logger()


class Endpoint(Struct, frozen=True):
    """Where a source's webhooks are to be sent.

    Attributes:
        path: of the URL, up to the secret if that ends it.
        secret: that ends it; empty where it does not.
    """

    source: str
    path: str
    secret: str = ""


class Console:
    """The pages over one outbox.

    Args:
        outbox: what is shown.
        routes: every route.
        endpoints: where webhooks are received.
        opened_by: the password that opens it, or how links that do are told.
        clock: the time of day.
    """

    def __init__(
        self,
        outbox: Outbox,
        routes: Routes,
        *,
        opened_by: SecretStr | Links,
        endpoints: Sequence[Endpoint] = (),
        clock: Clock = utc_now,
    ) -> None:
        self._outbox = outbox
        self._routes = routes
        self._sources = {source.name: source for source in routes.sources}
        self._endpoints = endpoints
        self._clock = clock
        self._search = Search(outbox.entries, routes.sources)
        self._replays = Replays(outbox, self._search, routes)
        self._watch = Watch(outbox, routes.destinations, clock=clock)
        self._pages = Pages(clock, [*self._sources], has_sessions=isinstance(opened_by, Links))
        self._comparison = Comparison(routes)
        self._live = Live()
        self._limiter = CapacityLimiter(MAX_AT_ONCE)
        app = Starlette(
            routes=[
                Route("/", self._in_turn(self._overview)),
                Route("/events", self._in_turn(self._events)),
                Route("/events/{id}", self._in_turn(self._event)),
                Route("/events/{id}/replay", self._replay_one, methods=["POST"]),
                Route("/dead", self._in_turn(self._dead)),
                Route("/dead/replay", self._replay_dead, methods=["POST"]),
                Route("/dead/export", self._in_turn(self._export)),
                Route("/playground", self._playground, methods=["GET", "POST"]),
                Route("/live/overview", self._live_overview),
                Route("/live/events", self._live_events),
                Route("/webhook-urls", self._webhook_urls, methods=["POST"]),
                Mount("/static", _STATIC),
            ],
            exception_handlers={HTTPException: self._failed, OutboxError: self._outbox_failed},
        )
        self._sign_in: SignIn | None = None
        door: Door
        if isinstance(opened_by, Links):
            door = self._sign_in = SignIn(self._pages, opened_by)
            app.router.routes.append(Route("/sign-out", self._sign_in.leave, methods=["POST"]))
        else:
            door = PasswordDoor(opened_by)
        self._lets_in = door.lets_in
        self.routes = [
            *(self._without_session(self._sign_in) if self._sign_in else ()),
            Route(HOME, Sealed(Guard(_HOME, door))),
            Mount(HOME, Sealed(Guard(app, door))),
        ]

    def _without_session(self, sign_in: SignIn) -> list[BaseRoute]:
        """What anyone can get: the way in, and how it looks."""
        failures: Any = {HTTPException: self._failed}
        way_in = Route(SIGN_IN, sign_in.answer, methods=["GET", "POST"])
        looks = Mount("/", _STATIC)
        return [
            Route(SIGN_IN, Sealed(Starlette(routes=[way_in], exception_handlers=failures))),
            Mount(f"{HOME}/static", Sealed(Starlette(routes=[looks], exception_handlers=failures))),
        ]

    def begin(self) -> None:
        """Tell the first link, where links open it; waits for nobody who reads it."""
        if self._sign_in:
            threading.Thread(target=self._sign_in.tell_link, name="link", daemon=True).start()

    def leave(self) -> None:
        """End what keeps pages up to date, so that the server can end."""
        self._live.leave()

    def _in_turn(self, view: Callable[[Request], Response]) -> _View:
        async def endpoint(request: Request) -> Response:
            return await self._aside(view, request)

        return endpoint

    async def _aside(self, do: Callable[..., _T], *given: Any) -> _T:  # noqa: ANN401 (passed on)
        """Do it in a thread, when there is one."""
        return await to_thread.run_sync(do, *given, limiter=self._limiter)

    def _overview(self, request: Request) -> Response:
        return self._page(request, "overview.html", **self._overview_values(request))

    def _overview_values(self, request: Request) -> dict[str, Any]:
        overview = self._watch.look()
        standing = overview.standing
        return {
            "page": "overview",
            "live": "overview",
            "o": overview,
            "endpoints": self._endpoints,
            "origin": _origin(request),
            "waiting": overview.counts.waiting_since
            and span(overview.now - overview.counts.waiting_since),
            "probe_in": standing.next_at and span(standing.next_at - overview.now),
        }

    async def _webhook_urls(self, request: Request) -> Response:
        """Where webhooks go, secrets and all: a page of its own, shown at the press of a button."""
        return self._page(
            request,
            "webhook_urls.html",
            page="overview",
            endpoints=self._endpoints,
            origin=_origin(request),
        )

    def _events(self, request: Request) -> Response:
        return self._page(request, "events.html", **self._events_values(request))

    def _events_values(self, request: Request) -> dict[str, Any]:
        query = request.query_params
        start = _int(query.get("before"))
        text = query.get("q", "").strip()
        page = find(self._search, _criteria(query), text, start=start)
        given = {name: query.get(name, "") for name in _FILTERS}
        return {
            "page": "events",
            "live": "events?" + urlencode(given | _revealed(query)) if start is None else None,
            "given": given,
            "filtered": any(given.values()),
            "found": page,
            "rows": [self._row(entry) for entry in page.entries],
            "looked_to": self._received_at(page),
            "before": start,
        }

    def _received_at(self, page: Page) -> datetime | None:
        """How far back it was looked."""
        if page.looked_to is None:
            return None
        entries = self._outbox.entries.find(
            Query(), 1, start=page.looked_to - 1, newest_first=False
        )
        return entries[0].received_at if entries else None

    def _row(self, entry: StoredEntry) -> dict[str, Any]:
        rendered = self._routes.render(entry)
        event = rendered.event if isinstance(rendered, Rendered) else None
        return {
            "entry": entry,
            "who": (event.user_id or event.email) if event else None,
            "email_id": event.properties.get("email_id") if event else None,
        }

    def _event(self, request: Request) -> Response:
        entry = self._record(request)
        rendered = self._routes.render(entry)
        plan = self._replays.plan(entry.id, self._clock())
        reveal = bool(_revealed(request.query_params))
        return self._page(
            request,
            "event.html",
            page="events",
            entry=entry,
            rendered=rendered if isinstance(rendered, Rendered) else None,
            unusable=rendered if isinstance(rendered, Unusable) else None,
            plan=plan,
            done=_int(request.query_params.get("replayed")),
            **self._comparison.show(entry, rendered, reveal=reveal),
        )

    def _record(self, request: Request) -> StoredEntry:
        """The entry that the path names."""
        id_ = _int(request.path_params["id"])
        criteria = Criteria(ids=(-1 if id_ is None else id_,))
        entry = next(self._search.find(criteria, with_history=True), None)
        if entry is None:
            raise HTTPException(404, "There is no such event. It may have been delivered long ago.")
        return entry

    def _dead(self, request: Request) -> Response:
        asked = request.query_params.get("asked")
        return self._page(
            request,
            "dead.html",
            page="dead",
            groups=[(reason, self._row(reason.example)) for reason in reasons(self._outbox)],
            operations=self._outbox.entries.operations(5),
            under_way=self._replays.under_way,
            asked=asked if asked in {*DeadReason, "busy"} else None,
        )

    async def _replay_one(self, request: Request) -> Response:
        revealed = _revealed(await _form(request))
        id_ = (await self._aside(self._record, request)).id
        replayed = await self._aside(self._replays.one, id_)
        query = urlencode({"replayed": replayed, **revealed})
        return RedirectResponse(f"{HOME}/events/{id_}?{query}", status_code=303)

    async def _replay_dead(self, request: Request) -> Response:
        form = await _form(request)
        reason = form.get("reason", "")
        if reason not in {*DeadReason}:
            raise HTTPException(400, "There is no such reason.")
        begun = await self._aside(self._replays.all_dead, reason)
        query = urlencode({"asked": reason if begun else "busy", **_revealed(form)})
        return RedirectResponse(f"{HOME}/dead?{query}", status_code=303)

    def _export(self, request: Request) -> Response:
        query = request.query_params
        reveal = bool(_revealed(query))
        reason = query.get("reason", "")
        if reason not in {*DeadReason, ""}:
            raise HTTPException(404, "There is no such reason.")
        criteria = Criteria(states=(State.DEAD,), reason=reason or None)
        found = self._search.find(criteria, newest_first=False, with_history=True)
        found = chain([*islice(found, 1)], found)  # an outbox that fails can still be told of
        name = f"dead-{criteria.reason or 'letters'}.jsonl"
        return StreamingResponse(
            self._exported(found, reveal=reveal),
            media_type="application/jsonl",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )

    def _exported(self, entries: Iterable[StoredEntry], *, reveal: bool) -> Iterator[bytes]:
        for entry in entries:
            told = detail(entry, self._routes.render(entry))
            yield json.encode(told if reveal else masked(told)) + b"\n"

    async def _playground(self, request: Request) -> Response:
        form = await _form(request) if request.method == "POST" else {}
        return await self._aside(self._played, request, form)

    def _played(self, request: Request, form: Mapping[str, str]) -> Response:
        known = [route.source.name for route in [*self._routes.receiving, *self._routes]]
        name = form.get("source") or known[0]
        route = self._routes.get(name)
        if route is None:
            raise HTTPException(400, "There is no such source.")
        values: dict[str, Any] = {"answer": None, "arrival": None, "unusable": None}
        text = form.get("body", route.source.example)
        if "body" in form:
            # The operator knows what is in a body that he pastes.
            values |= self._played_values(name, text.encode())
        return self._page(
            request,
            "playground.html",
            page="playground",
            source=name,
            text=text,
            **values,
        )

    def _played_values(self, name: str, body: bytes) -> dict[str, Any]:
        if len(body) > MAX_BODY_BYTES:
            error = f"a body has {MAX_BODY_BYTES} bytes at most"
            return {"answer": Answer(413, {"status": "refused", "error": error})}
        route = self._routes[name]
        arrival = route.accept(body, self._clock())
        if isinstance(arrival, Ignored):
            return {"answer": answer_to(route.source, arrival)}
        known = bool(self._outbox.entries.find(Query(message_id=arrival.message_id), 1))
        rendered = arrival.fault or self._routes.render(arrival)
        return {
            "answer": answer_to(route.source, arrival, not known),
            "arrival": arrival,
            "unusable": rendered if isinstance(rendered, Unusable) else None,
            **self._comparison.show(arrival, rendered, reveal=True),
        }

    async def _live_overview(self, request: Request) -> Response:
        return self._live.stream(
            request,
            lambda: self._aside(
                lambda: self._render(request, "_overview.html", **self._overview_values(request))
            ),
            lambda: self._lets_in(request.headers),
        )

    async def _live_events(self, request: Request) -> Response:
        return self._live.stream(
            request,
            lambda: self._aside(
                lambda: self._render(request, "_events.html", **self._events_values(request))
            ),
            lambda: self._lets_in(request.headers),
        )

    def _page(self, request: Request, template: str, **values: Any) -> Response:  # noqa: ANN401 (whatever it shows)
        return HTMLResponse(self._render(request, template, **values))

    def _render(self, request: Request, template: str, **values: Any) -> str:  # noqa: ANN401 (as above)
        query = request.query_params
        plain = {name: value for name, value in query.items() if name not in {"reveal", "replayed"}}
        path = quote(request.scope["path"])
        values.setdefault("live", None)
        return self._pages.render(
            template,
            reveal=bool(_revealed(query)),
            hidden_url=path + (f"?{urlencode(plain)}" if plain else ""),
            revealed_url=f"{path}?{urlencode({**plain, 'reveal': 1})}",
            **values,
        )

    async def _failed(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = error.detail if isinstance(error, HTTPException) else "relay failed."
        said = "There is no such page." if said == "Not Found" else said
        page = self._render(request, "failed.html", page="", status=status, said=said)
        headers = error.headers if isinstance(error, HTTPException) else None
        return HTMLResponse(page, status_code=status, headers=headers)

    async def _outbox_failed(self, request: Request, error: Exception) -> Response:
        _log.warning("console.outbox_failed", error=str(error))
        said = f"The outbox does not answer: {error}"
        page = self._render(request, "failed.html", page="", status=503, said=said)
        return HTMLResponse(page, status_code=503)


_FILTERS: Final = ("state", "collection", "reason", "source", "since", "until", "q")


_HOME: Final = RedirectResponse(f"{HOME}/")
_STATIC: Final = StaticFiles(directory=FilePath(__file__).parent / "static")


def _origin(request: Request) -> str:
    """Where the request says that it has found relay; to be shown, not to be believed."""
    return f"{request.scope['scheme']}://{request.headers.get('host', '')}"


def _criteria(query: Mapping[str, str]) -> Criteria:
    """What the filters say; what they cannot mean is no condition."""
    state, collection, reason = (query.get(name, "") for name in ("state", "collection", "reason"))
    return Criteria(
        states=(State(state),) if state in {*State} else (),
        source=query.get("source") or None,
        collection=collection if collection in {*Collection} else None,
        reason=reason if reason in {*DeadReason} else None,
        since=_moment(query.get("since")),
        until=_moment(query.get("until")),
    )


def _moment(said: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(said or "")
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC)


def _int(said: str | None) -> int | None:
    is_one = bool(said) and str(said).isascii() and str(said).isdigit()
    return min(int(str(said)[:19]), _LARGEST_ID) if is_one else None


def _revealed(query: Mapping[str, str]) -> dict[str, int]:
    return {"reveal": 1} if query.get("reveal") == "1" else {}


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form that was sent."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "That is more than a webhook may be.")
    text = body.decode(errors="replace")
    try:
        fields = await run_in_threadpool(
            parse_qs, text, keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        raise HTTPException(400, "That is no form of the console's.") from None
    return {name: values[-1] for name, values in fields.items()}

"""Builds the console's routes for relay's HTTP application."""

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from relay.console.access import Authenticator, Guard, PasswordAuthenticator, SecurityHeaders
from relay.console.dead import DeadLetterPages
from relay.console.event import EventPage
from relay.console.events import EventList
from relay.console.live import Live
from relay.console.overview import Endpoint, OverviewPages
from relay.console.overview_data import OverviewCache
from relay.console.pages import HOME, Pages
from relay.console.playground import Playground
from relay.console.replays import Replays
from relay.console.sign_in import PATH as SIGN_IN
from relay.console.sign_in import Links, SignIn
from relay.console.web import read_form
from relay.errors import OutboxError
from relay.operations.search import Search
from relay.outbox.entries import Clock, utc_now
from relay.outbox.protocol import Outbox
from relay.routes import Routes

MAX_THREADS: Final = 3
"""Pages that may read the outbox at a time, so that connections are left for webhooks."""

_HOME: Final = RedirectResponse(f"{HOME}/")
_STATIC: Final = StaticFiles(directory=Path(__file__).parent / "static")

_T = TypeVar("_T")
_View = Callable[[Request], Awaitable[Response]]

_log = structlog.get_logger()


class Console:
    """The pages over one outbox.

    Args:
        outbox: the one that is shown.
        routes: every route.
        endpoints: where webhooks and calls are received.
        opened_by: the password that opens the console, or the links that do.
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
        self._pages = Pages(clock, routes, has_sessions=isinstance(opened_by, Links))
        search = Search(outbox.entries, routes.sources)
        replays = Replays(outbox, search, routes)
        overview_cache = OverviewCache(outbox, routes, clock=clock)
        self._overview = OverviewPages(overview_cache, endpoints, self._pages)
        self._events = EventList(outbox, routes, search, self._pages)
        self._event = EventPage(outbox, routes, search, replays, self._pages, clock=clock)
        self._dead = DeadLetterPages(outbox, routes, search, replays, self._pages)
        self._playground = Playground(outbox, routes, self._pages, clock=clock)
        self._live = Live()
        self._limiter = CapacityLimiter(MAX_THREADS)
        self._sign_in: SignIn | None = None
        self._authenticator: Authenticator
        if isinstance(opened_by, Links):
            self._authenticator = self._sign_in = SignIn(self._pages, opened_by)
        else:
            self._authenticator = PasswordAuthenticator(opened_by)
        guarded = self._app(self._guarded_routes())
        self.routes: list[BaseRoute] = [
            *self._open_routes(),
            Route(HOME, SecurityHeaders(Guard(_HOME, self._authenticator))),
            Mount(HOME, SecurityHeaders(Guard(guarded, self._authenticator))),
        ]

    def begin(self) -> None:
        """Issue the first link, if links open the console, without waiting until it is printed."""
        if self._sign_in:
            threading.Thread(target=self._sign_in.issue_link, name="link", daemon=True).start()

    def leave(self) -> None:
        """End the streams that keep pages up to date, so that the server can end."""
        self._live.leave()

    def _app(self, routes: Sequence[BaseRoute]) -> Starlette:
        handlers: Mapping[Any, Any] = {
            HTTPException: self._failed,
            OutboxError: self._outbox_failed,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    def _guarded_routes(self) -> list[BaseRoute]:
        """Return the routes that only the operator may use, relative to the console's path."""
        routes: list[BaseRoute] = [
            Route("/", self._threaded(self._overview.page)),
            Route("/webhook-urls", self._overview.webhook_urls, methods=["POST"]),
            Route("/events", self._threaded(self._events.page)),
            Route("/events/{id}", self._threaded(self._event.page)),
            Route("/events/{id}/replay", self._with_form(self._event.replay), methods=["POST"]),
            Route("/dead", self._threaded(self._dead.page)),
            Route("/dead/replay", self._with_form(self._dead.replay), methods=["POST"]),
            Route("/dead/export", self._threaded(self._dead.export)),
            Route("/playground", self._with_form(self._playground.page), methods=["GET", "POST"]),
            Route("/live/overview", self._kept_live(self._overview.fragment)),
            Route("/live/events", self._kept_live(self._events.fragment)),
            Mount("/static", _STATIC),
        ]
        if self._sign_in:
            routes.append(Route("/sign-out", self._sign_in.sign_out, methods=["POST"]))
        return routes

    def _open_routes(self) -> list[BaseRoute]:
        """Return the routes that anyone may use: the page to sign in, and its static files."""
        if not self._sign_in:
            return []
        sign_in = self._app([Route(SIGN_IN, self._sign_in.answer, methods=["GET", "POST"])])
        static = self._app([Mount("/", _STATIC)])
        return [
            Route(SIGN_IN, SecurityHeaders(sign_in)),
            Mount(f"{HOME}/static", SecurityHeaders(static)),
        ]

    def _threaded(self, view: Callable[[Request], Response]) -> _View:
        async def endpoint(request: Request) -> Response:
            return await self._in_thread(view, request)

        return endpoint

    def _with_form(self, view: Callable[[Request, Mapping[str, str]], Response]) -> _View:
        async def endpoint(request: Request) -> Response:
            form = await read_form(request) if request.method == "POST" else {}
            return await self._in_thread(view, request, form)

        return endpoint

    def _kept_live(self, render: Callable[[Request], str]) -> _View:
        async def endpoint(request: Request) -> Response:
            return self._live.stream(
                request,
                lambda: self._in_thread(render, request),
                lambda: self._authenticator.accepts(request.headers),
            )

        return endpoint

    async def _in_thread(self, do: Callable[..., _T], *arguments: Any) -> _T:  # noqa: ANN401 (passed on)
        return await to_thread.run_sync(do, *arguments, limiter=self._limiter)

    async def _failed(self, request: Request, error: HTTPException) -> Response:
        text = "There is no such page." if error.detail == "Not Found" else error.detail
        return self._pages.failure(request, error.status_code, text, error.headers)

    async def _outbox_failed(self, request: Request, error: OutboxError) -> Response:
        _log.warning("console.outbox_failed", error=str(error))
        return self._pages.failure(request, 503, f"The outbox does not answer: {error}")

"""Builds the HTTP application: webhooks and calls in plain ASGI, every other page in Starlette."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from relay.destinations import Destination
from relay.outbox.protocol import Outbox
from relay.receiver.backpressure import Backpressure, Capacity
from relay.receiver.committer import Committer
from relay.receiver.endpoint import Webhooks
from relay.receiver.health import Liveness, Readiness
from relay.receiver.tracking_api import TrackingApi

_FIRST_CHECK_SECONDS: Final = 1.0

_log: Final = structlog.get_logger()


def create_app(  # noqa: PLR0913 (what it is built of)
    webhooks: Webhooks,
    tracking_api: TrackingApi,
    *,
    committer: Committer,
    outbox: Outbox,
    capacity: Capacity,
    destinations: Sequence[Destination],
    problems: Callable[[], Iterable[str]] = tuple,
    warnings: Callable[[], Iterable[str]] = tuple,
    pages: Sequence[BaseRoute] = (),
    started: Callable[[], object] = lambda: None,
    healthy: Callable[[], object] = lambda: None,
) -> ASGIApp:
    """Return the HTTP application: webhooks, calls, health pages and further pages.

    Args:
        webhooks: the endpoint of all sources.
        tracking_api: the endpoint of Segment's libraries.
        committer: started and closed with the application.
        outbox: checked for readiness.
        capacity: limits of the outbox; beyond them nothing is accepted.
        destinations: while one is on hold, relay is not ready.
        problems: returns one sentence for each other reason why relay is not ready.
        warnings: see `Readiness`.
        pages: further pages.
        started: called at the start, once signals are handled.
        healthy: called once a second while this process works.
    """
    backpressure = Backpressure(committer, capacity)
    liveness = Liveness(committer, healthy)
    readiness = Readiness(
        outbox, destinations, lambda: [*backpressure.problems(), *problems()], warnings
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        started()
        committer.start()
        # An outbox that takes longer to open or to answer is checked again by `backpressure.watch`.
        await asyncio.wait(
            [asyncio.create_task(backpressure.check())], timeout=_FIRST_CHECK_SECONDS
        )
        tasks = [
            asyncio.create_task(_keep_running(watch))
            for watch in (
                webhooks.cancel_slow_reads,
                tracking_api.cancel_slow_reads,
                backpressure.watch,
                liveness.watch,
            )
        ]
        yield
        for task in tasks:
            task.cancel()
        await committer.close()

    app = Starlette(
        routes=[
            Route("/healthz", liveness.answer),
            Route("/readyz", readiness.answer),
            *pages,
        ],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    not_found = app.router.default

    async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
        # A POST to an unknown path is most likely a webhook whose URL was mistyped.
        await (webhooks if scope.get("method") == "POST" else not_found)(scope, receive, send)

    app.router.default = unknown_path

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's routing and middleware would take a tenth of a webhook's time for nothing.
        path = scope["path"].lstrip("/ ") if scope["type"] == "http" else ""
        if path.startswith("webhooks/"):
            await webhooks(scope, receive, send)
        elif path.startswith("v1/"):
            await tracking_api(scope, receive, send)
        else:
            await app(scope, receive, send)

    return route


async def _keep_running(watch: Callable[[], Awaitable[None]]) -> None:
    """Run `watch`, and start it again whenever it fails, until cancelled."""
    while True:
        try:
            await watch()
        except Exception:  # noqa: BLE001 (too few threads or too little memory may pass)
            _log.exception("receiver.watch_failed")
            await asyncio.sleep(1)


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for no other error)
    content = {"status": "refused", "error": error.detail}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def _server_error(_request: Request, _error: Exception) -> JSONResponse:
    # uvicorn logs the traceback.
    content = {"status": "unavailable", "error": "relay failed; nothing was stored"}
    return JSONResponse(content, status_code=500)

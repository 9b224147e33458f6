"""The webhook endpoint, in plain ASGI, and the health pages, in Starlette."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from typing import Final

import structlog
from msgspec import Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from relay.destinations.segment import Segment
from relay.errors import OutboxBrokenError, OutboxError
from relay.events import Ignored
from relay.logs.sampling import Seldom
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.entries import Arrival, Clock, utc_now
from relay.outbox.protocol import Outbox
from relay.receiver.answers import Answer, answer_to
from relay.receiver.bodies import (
    BODY_SECONDS,
    MAX_BODY_BYTES,
    Bodies,
    Body,
    RefusedError,
    SenderGoneError,
    is_encoded,
)
from relay.receiver.committer import WAIT_SECONDS, Committer, StoreResult
from relay.receiver.limits import CHECKED_EVERY, Limits
from relay.receiver.protocol import Headers, Reply
from relay.routes import arrival_of, cut_arrival
from relay.sources import Source, Verifier, Webhook

_READINESS_SECONDS: Final = 1.0
_FIRST_LOOK_SECONDS: Final = 1.0
_PASTED: Final = "/ \t\r\n"
_WRONG_SIGNATURE: Final = (
    "the signature does not fit the body: another key, or the body was changed on its way"
)
_NO_ANSWER: Final = "the outbox does not answer"
_HELD: Final = (
    "somebody reads from the SQLite file and keeps its log, of {} MiB by now, from being emptied:"
    " it grows until they are done"
)

_log: Final = structlog.get_logger()
_counter: Final = cache(WEBHOOKS.labels)


class Webhooks:
    """The ASGI endpoint of `/webhooks/<source>` and `/webhooks/<source>/<secret>`."""

    def __init__(
        self,
        sources: Iterable[Source],
        segment: Segment,
        committer: Committer,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self._sources = {source.name: source for source in sources if source.configured}
        self._segment = segment
        self._committer = committer
        self._clock = clock
        self._bodies = Bodies()
        self._seldom = Seldom()
        self.cancel_slow_reads = self._bodies.cancel_slow_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        source = None
        try:
            source = self._source(scope["path"])
            self._check_method(scope["method"])
            verifier = self._verifier(source, scope["path"], scope["headers"])
            body = await self._bodies.read(source, scope["headers"], receive, verifier)
            if not verifier.accepts():
                raise _unauthorized(source, _WRONG_SIGNATURE, is_read=True)
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._take(source, self._arrival(source, body), partial(_resolve, answer))
            await _send(send, await answer)
        except RefusedError as refusal:
            self._tell(source, refusal)
            await _send(send, refusal.answer, drain=receive if refusal.drain else None)
        except SenderGoneError:
            _count(source, "refused", "sender_gone")

    def handle_buffered(self, path: str, headers: Headers, body: bytes, reply: Reply) -> bool:
        """Take a webhook that has come whole, by POST, without the tasks and messages of ASGI.

        False when it must be refused, which is left to the ASGI endpoint; otherwise it is or will
        be replied to.
        """
        if len(body) > MAX_BODY_BYTES or is_encoded(headers):
            return False
        try:
            source = self._source(path)
        except RefusedError:
            return False
        webhook = Webhook(_path_secret(source, path), headers, body, self._clock())
        if not source.authenticate(webhook):
            return False
        arrival = arrival_of(source, self._segment, body, self._clock())
        self._take(source, arrival, lambda answer: reply(*answer.encoded()))
        return True

    def _source(self, path: str) -> Source:
        # Slashes too many and blanks come in with a URL that is pasted.
        first, name, *_ = [*filter(None, (part.strip() for part in path.split("/"))), "", ""]
        if first != "webhooks":
            raise RefusedError(404, "webhooks are posted to /webhooks/ and a source's name")
        source = self._sources.get(name)
        if source is None:
            raise RefusedError(404, "no such source, or no secret is configured for it")
        return source

    def _check_method(self, method: str) -> None:
        if method != "POST":
            raise RefusedError(405, "webhooks are posted", (b"allow", b"POST"))

    def _verifier(self, source: Source, path: str, headers: Headers) -> Verifier:
        webhook = Webhook(_path_secret(source, path), headers, b"", self._clock())
        verifier = source.verifier(webhook)
        if verifier is None:
            raise _unauthorized(source, _door(source, webhook))
        return verifier

    def _arrival(self, source: Source, body: Body) -> Arrival | Ignored:
        now = self._clock()
        if not body.is_cut:
            return arrival_of(source, self._segment, bytes(body.content), now)
        more = self._seldom.due((source.name, "cut"))
        if more is not None:
            _log.warning("webhook.cut_off", source=source.name, size=body.size, more=more)
        return cut_arrival(
            *(source, self._segment, body.content, now), size=body.size, digest=body.digest()
        )

    def _take(
        self, source: Source, arrival: Arrival | Ignored, reply: Callable[[Answer], None]
    ) -> None:
        """Store it, and only then say so."""
        if isinstance(arrival, Ignored):
            reply(_told(source, arrival, True))  # noqa: FBT003 (as a Fate)
            return

        def told(new: StoreResult) -> None:
            reply(_told(source, arrival, new))

        self._committer.store(arrival, told)

    def _tell(self, source: Source | None, refusal: RefusedError) -> None:
        """Count the refusal, and tell the log, but not of each."""
        status = refusal.answer.status
        _count(source, "refused", str(status))
        name = source.name if source else "unknown"
        more = self._seldom.due((name, status, refusal.why))
        if more is not None:
            _log.info("webhook.refused", source=name, status=status, why=refusal.why, more=more)


def _path_secret(source: Source, path: str) -> str | None:
    """What follows the source's name, other than slashes and blanks alone."""
    _, _, secret = path.partition(f"/{source.name}/")
    return secret if secret.strip(_PASTED) else None


def _unauthorized(source: Source, why: str, *, is_read: bool = False) -> RefusedError:
    challenge = (b"www-authenticate", b'Basic realm="relay"')
    credential = "signature" if source.signs_body else "secret"
    refusal = RefusedError(401, f"wrong or missing {credential}", challenge, drain=not is_read)
    refusal.why = why
    return refusal


def _door(source: Source, webhook: Webhook) -> str:
    """Which way in was tried, and why it is closed: for the log, with nothing of what was tried."""
    if source.signs_body:
        return "there is no signature of the right form in the headers"
    if webhook.path_secret is None:
        by_header = any(name == b"authorization" for name, _ in webhook.headers)
        door = "in the Authorization header" if by_header else "anywhere"
        return f"there is no right secret {door}"
    pasted = Webhook(webhook.path_secret.strip(_PASTED), (), b"", webhook.received_at)
    if source.authenticate(pasted):
        return "the secret in the path has a slash or blank too many around it"
    return "the secret in the path is wrong"


def _told(source: Source, arrival: Arrival | Ignored, new: StoreResult) -> Answer:
    """The answer, which is counted, and told to the log."""
    answer = answer_to(source, arrival, new)
    outcome = answer.content["status"]
    if isinstance(new, OutboxError):
        _log.error("webhook.not_stored", source=source.name, error=str(new))
        _count(source, outcome, "outbox")
        return answer
    what = answer.content.get("reason") or getattr(arrival, "collection", None) or ""
    _count(source, outcome, what)
    told = {name: value for name, value in answer.content.items() if name != "status"}
    _log.debug("webhook." + outcome, source=source.name, what=what, **told)
    return answer


def _resolve(future: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not future.done():  # its request may have gone
        future.set_result(answer)


async def _send(send: Send, answer: Answer, *, drain: Receive | None = None) -> None:
    """Send the answer; with `drain`, let the sender finish before the connection is closed.

    A connection closed on a sender that still sends is reset, and the answer may be lost.
    """
    status, headers, body = answer.encoded()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if drain:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                while (await drain()).get("more_body", False):
                    pass
    await send({"type": "http.response.body", "body": body})


def _count(source: Source | None, outcome: str, what: str) -> None:
    _counter(source.name if source else "unknown", outcome, what).inc()


def create_app(  # noqa: PLR0913 (what it is built of)
    webhooks: Webhooks,
    *,
    committer: Committer,
    outbox: Outbox,
    limits: Limits,
    problems: Callable[[], Iterable[str]] = tuple,
    pages: Sequence[BaseRoute] = (),
    started: Callable[[], object] = lambda: None,
    healthy: Callable[[], object] = lambda: None,
) -> ASGIApp:
    """The HTTP application: webhooks, health, and whatever else is served.

    Args:
        webhooks: the endpoint of all sources.
        committer: started and closed with the application.
        outbox: asked whether it takes writes.
        limits: beyond which nothing is taken.
        problems: what else keeps relay from being ready, a sentence each.
        pages: what else is served.
        started: called at the start, once signals are handled.
        healthy: called once a second while this process can do its job.
    """
    gate = _Backpressure(committer, limits)
    liveness = _Liveness(committer, healthy)
    readiness = _Readiness(outbox, lambda: [*gate.problems(), *problems()])

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        started()
        committer.start()
        # An outbox that takes longer than this to open, or to answer, is told of meanwhile.
        await asyncio.wait([asyncio.create_task(gate.look())], timeout=_FIRST_LOOK_SECONDS)
        watches = [
            asyncio.create_task(_kept_up(watch))
            for watch in (webhooks.cancel_slow_reads, gate.watch, liveness.watch)
        ]
        yield
        for watch in watches:
            watch.cancel()
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
    nowhere = app.router.default

    async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
        # What is posted where nothing is: a webhook's URL, most likely, with a slip in its path.
        await (webhooks if scope.get("method") == "POST" else nowhere)(scope, receive, send)

    app.router.default = elsewhere

    async def routed(scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's layers around a route take a tenth of a webhook's time and give it nothing.
        if scope["type"] == "http" and scope["path"].lstrip("/ ").startswith("webhooks/"):
            await webhooks(scope, receive, send)
        else:
            await app(scope, receive, send)

    return routed


class _Backpressure:
    """Lets nothing in while a limit is exceeded."""

    def __init__(self, committer: Committer, limits: Limits) -> None:
        self._committer = committer
        self._limits = limits
        self._exceeded: str | None = None

    async def look(self) -> None:
        """See how full the outbox is, and whether it is still there."""
        try:
            exceeded = await run_in_threadpool(self._limits.exceeded)
        except OutboxBrokenError as error:
            exceeded = str(error)
            self._committer.give_up(error)
        self._committer.refuse(exceeded)
        if exceeded and not self._exceeded:
            _log.error("intake.closed", reason=exceeded)
        if self._exceeded and not exceeded:
            _log.info("intake.open")
        self._exceeded = exceeded

    async def watch(self) -> None:
        """Look again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(CHECKED_EVERY.total_seconds())
            await self.look()

    def problems(self) -> list[str]:
        """The limit that is exceeded, and why the latest webhooks were not stored."""
        return [reason for reason in (self._exceeded, self._committer.problem()) if reason]


async def _kept_up(watch: Callable[[], Awaitable[None]]) -> None:
    """Begin the watch again whenever it fails, until it is cancelled."""
    while True:
        try:
            await watch()
        except Exception:  # noqa: BLE001 (out of threads or memory: it may pass)
            _log.exception("receiver.watch_failed")
            await asyncio.sleep(1)


class _Liveness:
    """Whether this process can do its job: its event loop turns, and its webhooks are committed."""

    def __init__(self, committer: Committer, healthy: Callable[[], object]) -> None:
        self._committer = committer
        self._healthy = healthy
        self._problem: str | None = None

    async def watch(self) -> None:
        """Look once a second, until it is cancelled."""
        while True:
            problem = self._committer.look()
            if problem and not self._problem:
                _log.critical("receiver.unhealthy", reason=problem)
            self._problem = problem
            if not problem:
                self._healthy()
            await asyncio.sleep(1)

    async def answer(self, _request: Request) -> JSONResponse:
        if self._problem:
            content = {"status": "unhealthy", "reasons": [self._problem]}
            return JSONResponse(content, status_code=503)
        return JSONResponse({"status": "alive"})


class _Health(Struct, frozen=True):
    """What keeps relay from being ready, and what does not, but should be looked at."""

    problems: Sequence[str]
    warnings: Sequence[str] = ()


class _Readiness:
    """Whether webhooks can be stored and events forwarded, checked once a second at the most."""

    def __init__(self, outbox: Outbox, problems: Callable[[], Iterable[str]]) -> None:
        self._outbox = outbox
        self._problems = problems
        self._checked_at = -_READINESS_SECONDS
        self._checking: asyncio.Task[_Health] | None = None

    async def answer(self, _request: Request) -> JSONResponse:
        # Anyone may ask, and each check is a write: it is not made for each asker.
        if self._checking is None or (
            self._checking.done() and time.monotonic() - self._checked_at >= _READINESS_SECONDS
        ):
            self._checked_at = time.monotonic()
            self._checking = asyncio.create_task(run_in_threadpool(self._check_outbox))
        await asyncio.wait([self._checking], timeout=WAIT_SECONDS)
        health = self._checking.result() if self._checking.done() else _Health([_NO_ANSWER])
        reasons = [*health.problems, *self._problems()]
        told = {"warnings": health.warnings} if health.warnings else {}
        if reasons:
            return JSONResponse({"status": "unready", "reasons": reasons, **told}, status_code=503)
        return JSONResponse({"status": "ready", **told})

    def _check_outbox(self) -> _Health:
        try:
            self._outbox.check()
            hold = self._outbox.destination_status("segment").hold
            log = self._outbox.log_state()
        except OutboxError as error:
            return _Health([f"the outbox takes no writes: {error}"])
        return _Health(
            [f"forwarding is on hold: Segment answered {hold}"] if hold else [],
            [_HELD.format(log.size_bytes // 2**20)] if log and log.is_held else [],
        )


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 (Starlette registers it for no other)
    content = {"status": "refused", "error": error.detail}
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def _server_error(_request: Request, _error: Exception) -> JSONResponse:
    # uvicorn logs the traceback.
    content = {"status": "unavailable", "error": "relay failed; nothing was stored"}
    return JSONResponse(content, status_code=500)

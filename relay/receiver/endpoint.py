"""The endpoint for webhooks: authenticates, reads, stores and answers them, in plain ASGI."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from relay.errors import OutboxError
from relay.events import Ignored
from relay.logs.sampling import LogSampler
from relay.metrics.definitions import WEBHOOKS
from relay.outbox.entries import Arrival, Clock, utc_now
from relay.receiver import answers
from relay.receiver.answers import Answer, RequestRefusedError, answer_to
from relay.receiver.body import MAX_BODY_BYTES, Body
from relay.receiver.body_reader import BODY_SECONDS, BodyReader, SenderGoneError, is_encoded
from relay.receiver.buffered import Headers, Reply
from relay.receiver.committer import Committer, StoreResult
from relay.routes import Route, Routes
from relay.sources import Source, Verifier, Webhook

_PASTED: Final = "/ \t\r\n"
_WRONG_SIGNATURE: Final = (
    "the signature does not match the body: it was made with another key, or the body was changed"
)

_log: Final = structlog.get_logger()
_counter: Final = cache(WEBHOOKS.labels)


class Webhooks:
    """The ASGI endpoint of `/webhooks/<source>` and `/webhooks/<source>/<secret>`."""

    def __init__(self, routes: Routes, committer: Committer, *, clock: Clock = utc_now) -> None:
        self._routes = {route.source.name: route for route in routes.receiving}
        self._committer = committer
        self._clock = clock
        self._body_reader = BodyReader()
        self._sampler = LogSampler()
        self.cancel_slow_reads = self._body_reader.cancel_slow_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        source = None
        try:
            route = self._route(scope["path"])
            source = route.source
            self._check_method(scope["method"])
            verifier = self._verifier(source, scope["path"], scope["headers"])
            body = await self._body_reader.read(source, scope["headers"], receive, verifier)
            if not verifier.accepts():
                raise answers.unauthorized(source, _WRONG_SIGNATURE, is_read=True)
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._store(source, self._arrival(route, body), partial(_resolve, answer))
            await _send(send, await answer)
        except RequestRefusedError as refusal:
            self._report(source, refusal)
            await _send(send, refusal.answer, drain=receive if refusal.drain else None)
        except SenderGoneError:
            _count(source, "refused", "sender_gone")

    def handle_buffered(self, path: str, headers: Headers, body: bytes, reply: Reply) -> bool:
        """Handle a webhook that has come whole, by POST; call `reply`, now or later.

        Return False if it must be refused: the ASGI endpoint then does that.
        """
        if len(body) > MAX_BODY_BYTES or is_encoded(headers):
            return False
        try:
            route = self._route(path)
        except RequestRefusedError:
            return False
        source = route.source
        webhook = Webhook(_path_secret(source, path), headers, body, self._clock())
        if not source.authenticate(webhook):
            return False
        arrival = route.accept(body, self._clock())
        self._store(source, arrival, lambda answer: reply(*answer.encoded()))
        return True

    def _route(self, path: str) -> Route:
        # A pasted URL may have additional slashes or blanks.
        first, name, *_ = [*filter(None, (part.strip() for part in path.split("/"))), "", ""]
        if first != "webhooks":
            raise answers.not_found()
        route = self._routes.get(name)
        if route is None:
            raise answers.unknown_source()
        return route

    def _check_method(self, method: str) -> None:
        if method != "POST":
            raise answers.method_not_allowed()

    def _verifier(self, source: Source, path: str, headers: Headers) -> Verifier:
        webhook = Webhook(_path_secret(source, path), headers, b"", self._clock())
        verifier = source.verifier(webhook)
        if verifier is None:
            raise answers.unauthorized(source, _refusal_cause(source, webhook))
        return verifier

    def _arrival(self, route: Route, body: Body) -> Arrival | Ignored:
        now = self._clock()
        if not body.is_truncated:
            return route.accept(bytes(body.content), now)
        name = route.source.name
        more = self._sampler.sample((name, "cut"))
        if more is not None:
            _log.warning("webhook.truncated", source=name, size=body.size, more=more)
        return route.accept_truncated(body.content, now, size=body.size, digest=body.digest())

    def _store(
        self, source: Source, arrival: Arrival | Ignored, reply: Callable[[Answer], None]
    ) -> None:
        """Store the arrival, and only then reply."""
        if isinstance(arrival, Ignored):
            reply(_counted_answer(source, arrival))
            return

        def on_stored(result: StoreResult) -> None:
            reply(_counted_answer(source, arrival, result))

        self._committer.store(arrival, on_stored)

    def _report(self, source: Source | None, refusal: RequestRefusedError) -> None:
        """Count the refusal; log it unless the same kind was logged lately."""
        status = refusal.answer.status
        _count(source, "refused", str(status))
        name = source.name if source else "unknown"
        more = self._sampler.sample((name, status, refusal.why))
        if more is not None:
            _log.info("webhook.refused", source=name, status=status, why=refusal.why, more=more)


def _path_secret(source: Source, path: str) -> str | None:
    """Return what follows the source's name; None if that is only slashes and blanks."""
    _, _, secret = path.partition(f"/{source.name}/")
    return secret if secret.strip(_PASTED) else None


def _refusal_cause(source: Source, webhook: Webhook) -> str:
    """Return why the credentials are wrong, for the log; repeat no part of them."""
    if source.signs_body:
        return "the headers hold no well-formed signature"
    if webhook.path_secret is None:
        if any(name == b"authorization" for name, _ in webhook.headers):
            return "the Authorization header holds no valid secret"
        return "neither the path nor an Authorization header holds a secret"
    pasted = Webhook(webhook.path_secret.strip(_PASTED), (), b"", webhook.received_at)
    if source.authenticate(pasted):
        return "the secret in the path has an additional slash or blank before or after it"
    return "the secret in the path is wrong"


def _counted_answer(
    source: Source, arrival: Arrival | Ignored, result: StoreResult | None = None
) -> Answer:
    """Count and log the answer, and return it."""
    answer = answer_to(source, arrival, result)
    outcome = answer.content["status"]
    if isinstance(result, OutboxError):
        _log.error("webhook.not_stored", source=source.name, error=str(result))
        _count(source, outcome, "outbox")
        return answer
    what = answer.content.get("reason") or getattr(arrival, "collection", None) or ""
    _count(source, outcome, what)
    details = {name: value for name, value in answer.content.items() if name != "status"}
    _log.debug("webhook." + outcome, source=source.name, what=what, **details)
    return answer


def _resolve(future: "asyncio.Future[Answer]", answer: Answer) -> None:
    if not future.done():  # its request may have been cancelled
        future.set_result(answer)


async def _send(send: Send, answer: Answer, *, drain: Receive | None = None) -> None:
    """Send the answer; with `drain`, let the sender finish before the connection is closed.

    A connection closed while its sender still sends is reset, and the answer may be lost.
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

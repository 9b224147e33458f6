"""The endpoint for webhooks: authenticates, reads, stores and answers them, in plain ASGI."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from relay.errors import OutboxError, TooManyEventsError, UnreadableError
from relay.events import Ignored
from relay.logs.sampling import LogSampler
from relay.outbox.entries import Arrival, Clock, utc_now
from relay.receiver import answers
from relay.receiver.answers import Answer, RequestRefusedError
from relay.receiver.body import MAX_BODY_BYTES, Body
from relay.receiver.body_reader import BodyReader, SenderGoneError, is_encoded
from relay.receiver.buffered import Headers, Reply
from relay.receiver.committer import Committer, StoreResult
from relay.receiver.intake import accept_all, store_all
from relay.receiver.outcomes import Refusals, count, count_unstored, counted_answer
from relay.receiver.sending import send_answer
from relay.routes import Route, Routes
from relay.sources import Source, Verifier, Webhook

_NO_SIGNATURE: Final = "the headers hold no well-formed signature"
_PASTED: Final = "/ \t\r\n"

_log: Final = structlog.get_logger()


class Webhooks:
    """The ASGI endpoint of `/webhooks/<source>` and `/webhooks/<source>/<secret>`."""

    def __init__(self, routes: Routes, committer: Committer, *, clock: Clock = utc_now) -> None:
        self._routes = {route.source.name: route for route in routes if route.source.takes_webhooks}
        self._committer = committer
        self._clock = clock
        self._body_reader = BodyReader()
        self._refusals = Refusals()
        self._sampler = LogSampler()
        self.cancel_slow_reads = self._body_reader.cancel_slow_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        source = None
        try:
            route = self._route(scope["path"])
            source = route.source
            if scope["method"] not in source.methods:
                raise answers.method_not_allowed(*source.methods)
            verifier = self._verifier(source, scope["path"], scope["headers"])
            body = await self._body_reader.read(source, scope["headers"], receive, verifier)
            if fault := verifier.fault():
                raise answers.unauthorized(source, fault, is_read=True)
            await send_answer(send, await self._answer(route, body))
        except RequestRefusedError as refusal:
            self._refusals.report(source, refusal)
            await send_answer(send, refusal.answer, drain=receive if refusal.drain else None)
        except SenderGoneError:
            count(source, "refused", "sender_gone")

    def handle_buffered(self, path: str, headers: Headers, body: bytes, reply: Reply) -> bool:
        """Handle a webhook that has come whole, by POST; call `reply`, now or later.

        Return False if it must be refused, or has several events: the ASGI endpoint then handles
        it.
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
        try:
            bodies = _split(route, body)
        except RequestRefusedError:
            return False
        if len(bodies) != 1:
            return False
        arrival = route.accept(bodies[0], self._clock())
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

    def _verifier(self, source: Source, path: str, headers: Headers) -> Verifier:
        webhook = Webhook(_path_secret(source, path), headers, b"", self._clock())
        verifier = source.verifier(webhook)
        if verifier is None:
            raise answers.unauthorized(source, _refusal_cause(source, webhook))
        return verifier

    async def _answer(self, route: Route, body: Body) -> Answer:
        """Store what is in the body, and return the answer."""
        source = route.source
        if body.is_truncated:
            accepted: Sequence[Arrival | Ignored] = [self._truncated(route, body)]
        else:
            accept = partial(route.accept, received_at=self._clock())
            accepted = await accept_all(accept, _split(route, bytes(body.content)))
        results = await store_all(self._committer, accepted)
        if isinstance(results, OutboxError):
            count_unstored(source, results, len(accepted))
            return answers.unavailable()
        each = [*map(partial(counted_answer, source), accepted, results)]
        return each[0] if len(each) == 1 else answers.summary(each)

    def _truncated(self, route: Route, body: Body) -> Arrival:
        """Return what to store for a body that is too large to be kept whole."""
        name = route.source.name
        more = self._sampler.sample((name, "cut"))
        if more is not None:
            _log.warning("webhook.truncated", source=name, size=body.size, more=more)
        return route.accept_truncated(
            body.content, self._clock(), size=body.size, digest=body.digest()
        )

    def _store(
        self, source: Source, arrival: Arrival | Ignored, reply: Callable[[Answer], None]
    ) -> None:
        """Store the arrival, and only then reply."""
        if isinstance(arrival, Ignored):
            reply(counted_answer(source, arrival))
            return

        def on_stored(result: StoreResult) -> None:
            reply(counted_answer(source, arrival, result))

        self._committer.store(arrival, on_stored)


def _path_secret(source: Source, path: str) -> str | None:
    """Return what follows the source's name; None if that is only slashes and blanks."""
    _, _, secret = path.partition(f"/{source.name}/")
    return secret if secret.strip(_PASTED) else None


def _refusal_cause(source: Source, webhook: Webhook) -> str:
    """Return why the credentials are wrong, for the log; repeat no part of them."""
    if not source.takes_secret:
        return _NO_SIGNATURE
    cause = _wrong_secret(source, webhook)
    return f"{cause}, and {_NO_SIGNATURE}" if source.signs_body else cause


def _wrong_secret(source: Source, webhook: Webhook) -> str:
    if webhook.path_secret is None:
        if webhook.header(b"authorization"):
            return "the Authorization header holds no valid secret"
        return "neither the path nor an Authorization header holds a secret"
    pasted = Webhook(webhook.path_secret.strip(_PASTED), (), b"", webhook.received_at)
    if source.authenticate(pasted):
        return "the secret in the path has an additional slash or blank before or after it"
    return "the secret in the path is wrong"


def _split(route: Route, body: bytes) -> Sequence[bytes]:
    """Return the bodies to store; a body that cannot be split is stored as it is.

    Raises:
        RequestRefusedError: there are too many.
    """
    try:
        return route.split(body)
    except UnreadableError:
        return (body,)
    except TooManyEventsError as error:
        raise answers.too_many_events(str(error)) from None

"""The endpoint of Segment's HTTP Tracking API, so that Segment's libraries can send to relay."""

import asyncio
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Final, cast

import structlog
from msgspec import Struct
from starlette.types import Receive, Scope, Send

from relay.auth import basic_credentials
from relay.errors import OutboxError, TooManyEventsError, UnreadableError
from relay.events import DeadReason, Unusable
from relay.logs.sampling import LogSampler
from relay.outbox.entries import Clock, utc_now
from relay.receiver import answers
from relay.receiver.answers import Answer, RequestRefusedError
from relay.receiver.body_reader import BodyReader, SenderGoneError
from relay.receiver.committer import Committer
from relay.receiver.cors import Cors
from relay.receiver.intake import Accepted, accept_all, store_all
from relay.receiver.outcomes import Refusals, count, count_unstored, counted_answer
from relay.receiver.sending import send_answer, send_no_content
from relay.receiver.turns import Turns
from relay.routes import Route, Sender
from relay.sources import Verified, Webhook
from relay.sources.segment import CALL_TYPES, KeyKind, SegmentSource, calls_in, write_keys_in

_METHODS: Final = ("POST", "OPTIONS")
_MANY: Final = 500
"""Calls whose commit takes long."""
_NO_KEY: Final = "neither an Authorization header nor the body holds a write key"
_WRONG_KEY: Final = "the write key in the body is wrong"
_PUBLISHED: Final = (
    "a browser sends the write key of servers, which its visitors can read: give it"
    " RELAY_SEGMENT_BROWSER_WRITE_KEY, and change RELAY_SEGMENT_WRITE_KEY"
)

_log: Final = structlog.get_logger()


class _Calls(Struct, frozen=True):
    """The body of a request, and the write key that it came with."""

    content: bytes
    write_key: bytes
    key_kind: KeyKind


class TrackingApi:
    """The ASGI endpoint of `/v1/…`.

    The visitors of a web page can read its write key, so that its senders are not trusted: their
    bodies get little memory, and their calls are accepted apart from those of servers.

    Args:
        route: the route of the source `segment`.
        committer: stores the calls.
        clock: the time of day.

    Attributes:
        is_served: whether any write key is configured; without one, it answers 404.
    """

    def __init__(self, route: Route, committer: Committer, *, clock: Clock = utc_now) -> None:
        source = cast("SegmentSource", route.source)
        self._route = route
        self._source = source
        self._committer = committer
        self._clock = clock
        self._cors = Cors(source.origins)
        self._body_reader = BodyReader()
        self._refusals = Refusals()
        self._sampler = LogSampler()
        self._turns = {kind: Turns() for kind in KeyKind}
        self._senders = {
            KeyKind.SERVER: Sender.TRUSTED,
            KeyKind.BROWSER: Sender.RESTRICTED if source.restricts_browsers else Sender.PUBLIC,
        }
        self.is_served = source.takes_calls
        self.cancel_slow_reads = self._body_reader.cancel_slow_reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Webhook(None, scope["headers"], b"", self._clock())
        origin, user_agent = request.header(b"origin"), request.header(b"user-agent")
        headers = self._cors.headers(origin)
        try:
            call_type = self._call_type(scope["path"])
            if not self._cors.allows(origin):
                raise answers.forbidden_origin()
            if scope["method"] == "OPTIONS":
                await send_no_content(send, self._cors.preflight_headers(origin))
                return
            if scope["method"] != "POST":
                raise answers.method_not_allowed(*_METHODS)
            calls = await self._read(request, receive)
            if calls.key_kind is KeyKind.SERVER and origin:
                self._warn_of_published_key()
            answer = await self._answer(calls, call_type, user_agent)
            await send_answer(send, answer, headers)
        except RequestRefusedError as refusal:
            self._refusals.report(self._source, refusal)
            answer = answers.refusal_to(user_agent, refusal)
            await send_answer(send, answer, headers, drain=receive if refusal.drain else None)
        except SenderGoneError:
            count(self._source, "refused", "sender_gone")

    def _call_type(self, path: str) -> str | None:
        """Return the type of the call that the path takes; None if it takes a batch."""
        if not self.is_served:
            raise answers.no_write_key()
        # A host that is given with a slash at its end makes two slashes of one.
        _version, *parts = filter(None, (part.strip() for part in path.split("/")))
        if parts[:1] == ["projects"]:
            raise answers.no_settings()
        if len(parts) != 1 or parts[0] not in CALL_TYPES:
            raise answers.unknown_call()
        return CALL_TYPES[parts[0]]

    async def _read(self, request: Webhook, receive: Receive) -> _Calls:
        """Read the body. A write key in a header is checked before, one in the body after."""
        write_key, key_kind = self._key_in_header(request)
        verifier = Verified() if key_kind is KeyKind.SERVER else None
        body = await self._body_reader.read(self._source, request.headers, receive, verifier)
        content = bytes(body.content)
        if key_kind is None:
            write_key, key_kind = self._key_in_body(content)
        return _Calls(content, write_key, key_kind)

    def _key_in_header(self, request: Webhook) -> tuple[bytes, KeyKind | None]:
        write_key, _ = basic_credentials(request.header(b"authorization")) or (b"", b"")
        key_kind = self._source.key_kind(write_key) if write_key else None
        if write_key and not key_kind:
            raise answers.wrong_write_key("the user name in the Authorization header is wrong")
        return write_key, key_kind

    def _key_in_body(self, content: bytes) -> tuple[bytes, KeyKind]:
        write_keys = write_keys_in(content)
        kinds = {kind: key for key in write_keys if (kind := self._source.key_kind(key))}
        for kind in (KeyKind.SERVER, KeyKind.BROWSER):
            if kind in kinds:
                return kinds[kind], kind
        raise answers.wrong_write_key(_WRONG_KEY if write_keys else _NO_KEY, is_read=True)

    async def _answer(self, calls: _Calls, call_type: str | None, user_agent: bytes) -> Answer:
        """Store the calls, and return the answer."""
        async with self._turns[calls.key_kind].turn(len(calls.content)):
            accepted, is_batch = await self._accepted(calls, call_type)
            storing = asyncio.create_task(store_all(self._committer, accepted))
            if len(accepted) >= _MANY:
                await storing  # or else a webhook would have to wait for several such commits
        results = await storing
        if isinstance(results, OutboxError):
            count_unstored(self._source, results, len(accepted))
            return answers.unavailable_to(user_agent)
        each = [*map(partial(counted_answer, self._source), accepted, results)]
        # A client drops all of a batch that is refused.
        return answers.success() if is_batch or each[0].status == HTTPStatus.OK else each[0]

    async def _accepted(
        self, calls: _Calls, call_type: str | None
    ) -> tuple[Sequence[Accepted], bool]:
        """Return what to store for the calls, and whether they are a batch."""
        now = self._clock()
        try:
            bodies = calls_in(calls.content, call_type=call_type)
        except TooManyEventsError as error:
            raise answers.too_many_events(str(error)) from None
        except UnreadableError as error:
            fault = Unusable(DeadReason.UNREADABLE, str(error))
            kept = calls.content.replace(calls.write_key, b"***")
            return [self._route.dead_letter(kept, now, fault)], False
        sender = self._senders[calls.key_kind]
        accept = partial(self._route.accept, received_at=now, sender=sender)
        return await accept_all(accept, bodies), call_type is None

    def _warn_of_published_key(self) -> None:
        more = self._sampler.sample("published")
        if more is not None:
            _log.warning("segment.write_key_published", cause=_PUBLISHED, more=more)

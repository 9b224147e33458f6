"""Every answer to what comes in: its status, its text, and the refusals before it is looked at."""

from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from msgspec import Struct, json

from relay.errors import OutboxError
from relay.events import DeadReason, Ignored
from relay.outbox.entries import Arrival
from relay.receiver.committer import StoreResult
from relay.sources import Source

RETRY_AFTER_SECONDS: Final = 5

_OUTCOMES: Final = ("accepted", "duplicate", "ignored", "dead")
_CLOSE: Final = (b"connection", b"close")
_RETRY_AFTER: Final = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="relay"')
# Browsers would answer a challenge of Basic by asking the visitor for a password.
_WRITE_KEY_CHALLENGE: Final = (b"www-authenticate", b'WriteKey realm="relay"')
_PYTHON: Final = b"analytics-python/"


class Answer(Struct, frozen=True):
    """An answer: a status, a JSON body, and headers besides those of the body."""

    status: int
    content: Mapping[str, Any]
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def encoded(self) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Return the status, all headers, and the body."""
        body = json.encode(self.content)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self.headers,
        ]
        return self.status, headers, body


class RequestRefusedError(Exception):
    """The request is refused before its content is looked at.

    Attributes:
        answer: the answer to the request.
        drain: whether the sender may still be sending; if so, it gets time to finish, so that it
            reads the answer.
        why: the reason to log, one of a few sentences.
    """

    def __init__(
        self, status: int, error: str, *headers: tuple[bytes, bytes], drain: bool = True
    ) -> None:
        super().__init__(error)
        self.answer = Answer(status, {"status": "refused", "error": error}, (*headers, _CLOSE))
        self.drain = drain
        self.why = error


def not_found() -> RequestRefusedError:
    """Refuse a path that is not relay's."""
    return RequestRefusedError(404, "not found; webhooks go to /webhooks/<source>")


def unknown_source() -> RequestRefusedError:
    """Refuse a source that relay does not know or has no secret for."""
    return RequestRefusedError(404, "unknown source, or no secret is configured for it")


def method_not_allowed(*allowed: str) -> RequestRefusedError:
    """Refuse any method but these."""
    allow = (b"allow", ", ".join(allowed).encode())
    return RequestRefusedError(405, f"method not allowed; use {allowed[0]}", allow)


def unauthorized(source: Source, why: str, *, is_read: bool = False) -> RequestRefusedError:
    """Refuse wrong or missing credentials of a webhook.

    Args:
        source: of the webhook.
        why: for the log; the sender is not given it.
        is_read: whether the body has been read.
    """
    credentials = ["signature"] * source.signs_body + ["secret"] * source.takes_secret
    refusal = RequestRefusedError(
        401, f"wrong or missing {' or '.join(credentials)}", _CHALLENGE, drain=not is_read
    )
    refusal.why = why
    return refusal


def wrong_write_key(why: str, *, is_read: bool = False) -> RequestRefusedError:
    """Refuse a wrong or missing write key; see `unauthorized`."""
    refusal = RequestRefusedError(
        401, "wrong or missing write key", _WRITE_KEY_CHALLENGE, drain=not is_read
    )
    refusal.why = why
    return refusal


def unknown_call() -> RequestRefusedError:
    """Refuse a path that is none of the Tracking API."""
    return RequestRefusedError(404, "not found; calls go to /v1/batch, /v1/identify, /v1/track …")


def no_write_key() -> RequestRefusedError:
    """Refuse calls, because relay is not set up for any."""
    return RequestRefusedError(404, "not found: RELAY_SEGMENT_WRITE_KEY is not set")


def no_settings() -> RequestRefusedError:
    """Refuse to give analytics.js the settings that it asks Segment for."""
    return RequestRefusedError(
        404,
        "relay has no settings for analytics.js: give it yours, as `cdnSettings:"
        " {integrations: {'Segment.io': {apiKey: '<write key>', apiHost: '<host of relay>/v1'}}}`",
    )


def forbidden_origin() -> RequestRefusedError:
    """Refuse a page of an origin that may not call relay."""
    return RequestRefusedError(403, "RELAY_SEGMENT_ORIGINS does not name the origin of this page")


def too_many_events(why: str) -> RequestRefusedError:
    """Refuse a body with too many events, or with too much for each of them."""
    return RequestRefusedError(413, why, drain=False)


def too_large(max_bytes: int) -> RequestRefusedError:
    """Refuse a body of more bytes than that."""
    return RequestRefusedError(413, f"the body is larger than {max_bytes} bytes")


def too_slow(seconds: int) -> RequestRefusedError:
    """Refuse a body that has taken longer than that."""
    return RequestRefusedError(408, f"the body took more than {seconds} s", drain=False)


def unsupported_encoding() -> RequestRefusedError:
    """Refuse a content encoding other than gzip."""
    accepted = (b"accept-encoding", b"gzip")
    return RequestRefusedError(415, "the only content encoding supported is gzip", accepted)


def too_many_bodies(*, is_read: bool = False) -> RequestRefusedError:
    """Refuse a body to make room for others."""
    return RequestRefusedError(
        503, "too many bodies are being read", _RETRY_AFTER, drain=not is_read
    )


def unavailable() -> Answer:
    """Return the answer to a webhook that could not be stored."""
    content = {"status": "unavailable", "error": "not stored; send it again"}
    return Answer(503, content, (_RETRY_AFTER,))


def unavailable_to(user_agent: bytes) -> Answer:
    """Return the answer to calls that could not be stored, by which their client keeps their order.

    Measured with analytics-python 2.4.0 and @segment/analytics-node 3.1.0. After a 503, Python
    waits and sends the same calls again; with `Retry-After` it sends later ones first. Node sends
    later ones first after a 503, and waits after a 429.
    """
    content = {"status": "unavailable", "error": "not stored; send it again"}
    if user_agent.startswith(_PYTHON):
        return Answer(503, content)
    return Answer(429, content, (_RETRY_AFTER,))


def refusal_to(user_agent: bytes, refusal: RequestRefusedError) -> Answer:
    """Return the answer to a refused request with calls; see `unavailable_to`."""
    if refusal.answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
        return refusal.answer
    answer = unavailable_to(user_agent)
    return Answer(answer.status, answer.content, (*answer.headers, _CLOSE))


def summary(answers: Iterable[Answer]) -> Answer:
    """Return the answer to a webhook with several events, given the answer to each of them."""
    counts = Counter(answer.content["status"] for answer in answers)
    return Answer(200, {outcome: counts[outcome] for outcome in _OUTCOMES})


def success() -> Answer:
    """Return the answer to calls that are stored, as Segment gives it."""
    return Answer(200, {"success": True})


def answer_to(
    source: Source, arrival: Arrival | Ignored, result: StoreResult | None = None
) -> Answer:
    """Return the answer to a webhook.

    Args:
        source: the source of the webhook.
        arrival: what the route made of the webhook.
        result: the result of storing the arrival; None if the webhook is ignored.
    """
    if isinstance(arrival, Ignored):
        return Answer(200, {"status": "ignored", "reason": arrival.reason})
    if isinstance(result, OutboxError):
        return unavailable()
    if fault := arrival.fault:
        is_error = fault.reason is DeadReason.UNREADABLE and not source.blocks_on_error
        status = 400 if is_error else 200
        return Answer(status, {"status": "dead", "reason": fault.reason, "error": fault.detail})
    outcome = "accepted" if result else "duplicate"
    return Answer(200, {"status": outcome, "message_id": arrival.message_id})

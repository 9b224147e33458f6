"""Every answer to a webhook: its status, its text, and the refusals before it is looked at."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct, json

from relay.errors import OutboxError
from relay.events import DeadReason, Ignored
from relay.outbox.entries import Arrival
from relay.receiver.committer import StoreResult
from relay.sources import Source

RETRY_AFTER_SECONDS: Final = 5


class Answer(Struct, frozen=True):
    """An answer to a webhook: a status, a JSON body, and headers besides those of the body."""

    status: int
    content: Mapping[str, str]
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
        self.answer = Answer(
            status, {"status": "refused", "error": error}, (*headers, (b"connection", b"close"))
        )
        self.drain = drain
        self.why = error


def not_found() -> RequestRefusedError:
    """Refuse a path that is not relay's."""
    return RequestRefusedError(404, "not found; webhooks go to /webhooks/<source>")


def unknown_source() -> RequestRefusedError:
    """Refuse a source that relay does not know or has no secret for."""
    return RequestRefusedError(404, "unknown source, or no secret is configured for it")


def method_not_allowed() -> RequestRefusedError:
    """Refuse any method but POST."""
    return RequestRefusedError(405, "method not allowed; use POST", (b"allow", b"POST"))


def unauthorized(source: Source, why: str, *, is_read: bool = False) -> RequestRefusedError:
    """Refuse wrong or missing credentials.

    Args:
        source: of the webhook.
        why: for the log; the sender is not given it.
        is_read: whether the body has been read.
    """
    challenge = (b"www-authenticate", b'Basic realm="relay"')
    credential = "signature" if source.signs_body else "secret"
    refusal = RequestRefusedError(
        401, f"wrong or missing {credential}", challenge, drain=not is_read
    )
    refusal.why = why
    return refusal


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


def too_many_bodies() -> RequestRefusedError:
    """Refuse a body to make room for others."""
    retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
    return RequestRefusedError(503, "too many bodies are being read", retry_after)


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
        content = {"status": "unavailable", "error": "not stored; send it again"}
        return Answer(503, content, ((b"retry-after", b"%d" % RETRY_AFTER_SECONDS),))
    if fault := arrival.fault:
        is_error = fault.reason is DeadReason.UNREADABLE and not source.blocks_on_error
        status = 400 if is_error else 200
        return Answer(status, {"status": "dead", "reason": fault.reason, "error": fault.detail})
    outcome = "accepted" if result else "duplicate"
    return Answer(200, {"status": outcome, "message_id": arrival.message_id})

"""Builds the answers to webhooks."""

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

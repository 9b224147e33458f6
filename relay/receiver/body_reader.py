"""Reads request bodies within limits of time and memory, and feeds them to verifiers."""

import asyncio
import re
from typing import Final, cast

from msgspec import Struct
from starlette.types import Receive

from relay.receiver import answers
from relay.receiver.answers import RequestRefusedError
from relay.receiver.body import Body
from relay.receiver.budget import Budget
from relay.receiver.buffered import Headers
from relay.sources import Source, Verified, Verifier

BODY_SECONDS: Final = 10
MAX_UNVERIFIED_BYTES: Final = 16 * 2**20
"""The most memory for bodies whose credentials cannot be checked before their end."""

_IDENTITY: Final = frozenset({b"", b"identity"})
_GZIPPED: Final = frozenset({b"gzip", b"x-gzip"})
_SEPARATORS: Final = re.compile(rb"[\s,]*,[\s,]*")


class SenderGoneError(Exception):
    """The sender has closed the connection before its body was complete."""


class _Read(Struct, eq=False):
    """The reading of a body, by a task of its own request.

    Attributes:
        started_at: when it began, by the event loop's clock.
        refusal: why it was ended early; None if it was not.
    """

    task: "asyncio.Task[object]"
    started_at: float
    refusal: RequestRefusedError | None = None

    def cancel(self, refusal: RequestRefusedError) -> None:
        """End the reading with the refusal."""
        if self.refusal is None:
            self.refusal = refusal
            self.task.cancel()

    def evict(self) -> None:
        """See `Holder`."""
        self.cancel(answers.too_many_bodies())


class BodyReader:
    """A reader of request bodies that limits their time and the memory for all of them."""

    def __init__(self) -> None:
        self._reads: set[_Read] = set()
        self._unverified = Budget(MAX_UNVERIFIED_BYTES)

    async def cancel_slow_reads(self) -> None:
        """End the reading of every body that takes too long; check once a second until cancelled.

        A timer for each body would cost more than reading it.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            for read in [*self._reads]:
                if loop.time() - read.started_at > BODY_SECONDS:
                    read.cancel(answers.too_slow(BODY_SECONDS))

    async def read(
        self, source: Source, headers: Headers, receive: Receive, verifier: Verifier | None
    ) -> Body:
        """Read a request's body, and feed it to the verifier.

        Args:
            source: the source of the request.
            headers: of the request.
            receive: receives the body.
            verifier: checks the credentials; None if they are checked later. Unless it has nothing
                left to check, the memory for the body is limited.

        Raises:
            RequestRefusedError: the body is too large, too slow, or compressed in a way that relay
                does not know; or too many bodies are being read.
            SenderGoneError: the sender has closed the connection, so the body stays incomplete.
        """
        body = Body(
            is_gzipped=_is_gzipped(headers, source), may_be_truncated=source.blocks_on_error
        )
        body.check_size(_content_length(headers))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        read = _Read(task, asyncio.get_running_loop().time())
        self._reads.add(read)
        is_complete = False
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise SenderGoneError
                piece = message.get("body", b"")
                if verifier:
                    verifier.update(piece)
                body.add(piece)
                if not message.get("more_body", False):
                    body.end()
                    is_complete = True
                    return body
                if not isinstance(verifier, Verified):
                    self._unverified.hold(read, body.held_bytes)
        except asyncio.CancelledError:
            if read.refusal is None:
                raise  # cancelled for another reason
            task.uncancel()
            raise read.refusal from None
        finally:
            self._reads.discard(read)
            self._unverified.release(read)
            if not is_complete:
                body.clear()  # the traceback keeps it alive while the refusal is sent


def is_encoded(headers: Headers) -> bool:
    """Return whether the headers name any content coding."""
    for name, _ in headers:  # noqa: SIM110 (`any` takes three times as long, for every webhook)
        if name == b"content-encoding":
            return True
    return False


def _is_gzipped(headers: Headers, source: Source) -> bool:
    """Return whether the headers say that the body is gzip.

    Raises:
        RequestRefusedError: they name another coding. It is not raised for a source that an error
            blocks: its body becomes a dead letter.
    """
    value = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [c for c in _SEPARATORS.split(value.strip().lower()) if c not in _IDENTITY]
    if not codings:
        return False
    if len(codings) == 1 and codings[0] in _GZIPPED:
        return True
    if source.blocks_on_error:
        return False
    raise answers.unsupported_encoding()


def _content_length(headers: Headers) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)

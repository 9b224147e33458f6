"""Request bodies: read within limits of size, time and memory, decompressed and verified."""

import asyncio
import re
import zlib
from hashlib import sha256
from typing import Final, Protocol, cast

from msgspec import Struct
from starlette.types import Receive

from relay.receiver.answers import RETRY_AFTER_SECONDS, Answer
from relay.receiver.budget import Budget
from relay.receiver.buffered import Headers
from relay.sources import Source, Verifier
from relay.truncation import KEPT_BYTES

MAX_BODY_BYTES: Final = 2**20
MAX_TRUNCATED_BYTES: Final = 8 * 2**20
"""Of a source that an error blocks: what is beyond `MAX_BODY_BYTES` is read, not kept."""
BODY_SECONDS: Final = 10
MAX_UNVERIFIED_BYTES: Final = 16 * 2**20
"""In memory at once, of bodies whose signature can be checked only at their end."""

_GZIP: Final = b"\x1f\x8b"
_IDENTITY: Final = frozenset({b"", b"identity"})
_GZIPPED: Final = frozenset({b"gzip", b"x-gzip"})
_SEPARATORS: Final = re.compile(rb"[\s,]*,[\s,]*")


class RequestRefusedError(Exception):
    """The request is refused without regard to its content.

    Attributes:
        answer: to the request.
        drain: whether the sender may still be sending; it then gets time to finish, so that it
            reads the answer.
        why: the reason for the log, one of a few sentences.
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


class SenderGoneError(Exception):
    """The sender has closed the connection before its body was complete."""


class Body(Protocol):
    """A body that has been read.

    Attributes:
        content: decompressed; only the beginning if it is truncated.
        size: of the whole, decompressed.
        is_truncated: whether it was too large to be kept whole.
    """

    content: bytearray
    size: int
    is_truncated: bool

    def digest(self) -> str:
        """Return the SHA-256 of the whole body as it was sent, in hex."""
        ...


class _GrowingBody:
    """A `Body` while it is read.

    Args:
        is_gzipped: whether the headers say so. A body that is no gzip all the same is taken as it
            is: a proxy that decompresses bodies may leave the header.
        may_be_truncated: whether only the beginning of one beyond `MAX_BODY_BYTES` is kept;
            otherwise such a body is refused.
    """

    def __init__(self, *, is_gzipped: bool, may_be_truncated: bool) -> None:
        self.content = bytearray()
        self.size = 0
        self.is_truncated = False
        self._may_be_truncated = may_be_truncated
        self._is_gzipped = is_gzipped
        self._compressed = bytearray()  # kept in case that it turns out not to be gzip
        self._decompressor: zlib._Decompress | None = None
        self._digest = sha256()
        self._raw_size = 0

    @property
    def held_bytes(self) -> int:
        """How many bytes it keeps in memory."""
        return len(self.content) + len(self._compressed)

    def check_size(self, size: int) -> None:
        """Check a size that the body has, or will have.

        Raises:
            RequestRefusedError: it is too large.
        """
        if size > self._limit:
            raise self._too_large()

    def add(self, piece: bytes) -> None:
        """Add the next piece, as it was sent.

        Raises:
            RequestRefusedError: the body is too large.
        """
        self._digest.update(piece)
        self._raw_size += len(piece)
        self.check_size(self._raw_size)
        if not self._is_gzipped:
            self._keep(piece)
            return
        self._compressed += piece
        if len(self._compressed) > MAX_BODY_BYTES:
            raise self._too_large()
        if self._decompressor is None:
            if len(self._compressed) < len(_GZIP):
                return
            if not self._compressed.startswith(_GZIP):
                self._keep_uncompressed()
                return
            self._decompressor, piece = _decompressor(), bytes(self._compressed)
        try:
            self._decompress(piece)
        except zlib.error:
            self._keep_uncompressed()

    def end(self) -> None:
        """Finish, now that all of it has come."""
        if self._is_gzipped and not (self._decompressor and self._decompressor.eof):
            self._keep_uncompressed()  # gzip that ends too soon

    def clear(self) -> None:
        """Free its memory."""
        self.content.clear()
        self._compressed.clear()

    def digest(self) -> str:
        """See `Body.digest`."""
        return self._digest.hexdigest()

    @property
    def _limit(self) -> int:
        return MAX_TRUNCATED_BYTES if self._may_be_truncated else MAX_BODY_BYTES

    def _too_large(self) -> RequestRefusedError:
        return RequestRefusedError(413, f"the body is larger than {self._limit} bytes")

    def _decompress(self, piece: bytes) -> None:
        is_full = False
        # After a full output, more may be ready although nothing of the piece is left.
        while self._decompressor and (piece or (is_full and not self._decompressor.eof)):
            if self._decompressor.eof:
                self._decompressor = _decompressor()  # gzip may have several members
            decompressed = self._decompressor.decompress(piece, KEPT_BYTES)
            self._keep(decompressed)
            is_full = len(decompressed) == KEPT_BYTES
            piece = self._decompressor.unconsumed_tail or self._decompressor.unused_data

    def _keep(self, piece: bytes) -> None:
        self.size += len(piece)
        self.check_size(self.size)
        if not self.is_truncated:
            self.content += piece
        if self.size > MAX_BODY_BYTES:
            self.is_truncated = True
            del self.content[KEPT_BYTES:]

    def _keep_uncompressed(self) -> None:
        sent, self._compressed, self._is_gzipped = self._compressed, bytearray(), False
        self.content, self.size, self.is_truncated = bytearray(), 0, False
        self._keep(bytes(sent))


def _decompressor() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=31)


class _Read(Struct, eq=False):
    """The reading of a body, by a task of its own request.

    Attributes:
        started_at: by the event loop's clock.
        refusal: why it was ended, if it was.
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
        retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
        self.cancel(RequestRefusedError(503, "too many bodies are being read", retry_after))


class Bodies:
    """Reads the bodies of requests."""

    def __init__(self) -> None:
        self._reads: set[_Read] = set()
        self._unverified = Budget(MAX_UNVERIFIED_BYTES)

    async def cancel_slow_reads(self) -> None:
        """Once a second, end the reading of every body that takes too long; run until cancelled.

        A timer for each body would cost more than reading it.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            for read in [*self._reads]:
                if loop.time() - read.started_at > BODY_SECONDS:
                    slow = f"the body took more than {BODY_SECONDS} s"
                    read.cancel(RequestRefusedError(408, slow, drain=False))

    async def read(
        self, source: Source, headers: Headers, receive: Receive, verifier: Verifier
    ) -> Body:
        """Read a request's body, and feed it to the verifier.

        Raises:
            RequestRefusedError: the body is too large, too slow, or compressed in a way that relay
                does not know; or too many are being read.
            SenderGoneError: it will never be complete.
        """
        body = _GrowingBody(
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
                verifier.update(piece)
                body.add(piece)
                if not message.get("more_body", False):
                    body.end()
                    is_complete = True
                    return body
                if source.signs_body:
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
        RequestRefusedError: they name another coding. Not for a source that an error blocks: its
            body becomes a dead letter.
    """
    value = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [c for c in _SEPARATORS.split(value.strip().lower()) if c not in _IDENTITY]
    if not codings:
        return False
    if len(codings) == 1 and codings[0] in _GZIPPED:
        return True
    if source.blocks_on_error:
        return False
    raise RequestRefusedError(
        415, "the only content encoding supported is gzip", (b"accept-encoding", b"gzip")
    )


def _content_length(headers: Headers) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)

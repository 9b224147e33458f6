"""Bodies as they come: read within limits of size, time and memory, unpacked, and verified."""

import asyncio
import re
import zlib
from hashlib import sha256
from typing import Final, Protocol, cast

from msgspec import Struct
from starlette.types import Receive

from relay.receiver.answers import RETRY_AFTER_SECONDS, Answer
from relay.receiver.budget import Budget
from relay.receiver.protocol import Headers
from relay.sources import Source, Verifier
from relay.truncation import KEPT_BYTES

MAX_BODY_BYTES: Final = 2**20
MAX_CUT_BYTES: Final = 8 * 2**20
"""Of a sender that an error would hold back: what is beyond `MAX_BODY_BYTES` is read, not kept."""
BODY_SECONDS: Final = 10
MAX_UNVERIFIED_BYTES: Final = 16 * 2**20
"""In hand at once, of bodies whose signature is known only at their end."""

_GZIP: Final = b"\x1f\x8b"
_IDENTITY: Final = frozenset({b"", b"identity"})
_GZIPPED: Final = frozenset({b"gzip", b"x-gzip"})
_TOKENS: Final = re.compile(rb"[\s,]*,[\s,]*")


class RequestRefusedError(Exception):
    """The request is refused without a look at its content.

    Attributes:
        drain: the sender may still be sending; let it finish for a while, so that it sees this.
        why: what the log is told, one of a few sentences.
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
    """What came.

    Attributes:
        content: unpacked; only its beginning where it is cut.
        size: of all that came, unpacked.
        is_cut: it was too large to be kept whole.
    """

    content: bytearray
    size: int
    is_cut: bool

    def digest(self) -> str:
        """Of all that came, as it came, in hex."""
        ...


class _Pieces:
    """See `Body`: it grows.

    Args:
        is_packed: it is said to be gzip. What does not begin like it is taken as it is: proxies
            that unpack bodies may leave the header.
        may_be_cut: beyond `MAX_BODY_BYTES` its beginning is kept.
    """

    def __init__(self, *, is_packed: bool, may_be_cut: bool) -> None:
        self.content = bytearray()
        self.size = 0
        self.is_cut = False
        self._may_be_cut = may_be_cut
        self._is_packed = is_packed
        self._came = bytearray()  # of what is packed: as it came, in case that it is not gzip
        self._unpacker: zlib._Decompress | None = None
        self._digest = sha256()
        self._raw_size = 0

    @property
    def held(self) -> int:
        """Bytes in hand."""
        return len(self.content) + len(self._came)

    def expect(self, size: int) -> None:
        """Refuse it before it comes, where its size is said to be too large.

        Raises:
            RequestRefusedError: it is.
        """
        if size > self._limit:
            raise self._too_large()

    def add(self, piece: bytes) -> None:
        """Take the next piece, as it comes.

        Raises:
            RequestRefusedError: it is too large.
        """
        self._digest.update(piece)
        self._raw_size += len(piece)
        self.expect(self._raw_size)
        if not self._is_packed:
            self._keep(piece)
            return
        self._came += piece
        if len(self._came) > MAX_BODY_BYTES:
            raise self._too_large()
        if self._unpacker is None:
            if len(self._came) < len(_GZIP):
                return
            if not self._came.startswith(_GZIP):
                self._take_as_it_is()
                return
            self._unpacker, piece = _unpacker(), bytes(self._came)
        try:
            self._unpack(piece)
        except zlib.error:
            self._take_as_it_is()

    def end(self) -> None:
        """Settle what it is, now that all has come."""
        if self._is_packed and not (self._unpacker and self._unpacker.eof):
            self._take_as_it_is()  # cut off by its sender

    def forget(self) -> None:
        """Give back its memory."""
        self.content.clear()
        self._came.clear()

    def digest(self) -> str:
        """See `Body.digest`."""
        return self._digest.hexdigest()

    @property
    def _limit(self) -> int:
        return MAX_CUT_BYTES if self._may_be_cut else MAX_BODY_BYTES

    def _too_large(self) -> RequestRefusedError:
        return RequestRefusedError(413, f"a body has {self._limit} bytes at the most")

    def _unpack(self, piece: bytes) -> None:
        is_full = False
        # Where it fills its room, more may be ready than the rest of the piece tells.
        while self._unpacker and (piece or (is_full and not self._unpacker.eof)):
            if self._unpacker.eof:
                self._unpacker = _unpacker()  # gzip may have several members
            unpacked = self._unpacker.decompress(piece, KEPT_BYTES)
            self._keep(unpacked)
            is_full = len(unpacked) == KEPT_BYTES
            piece = self._unpacker.unconsumed_tail or self._unpacker.unused_data

    def _keep(self, piece: bytes) -> None:
        self.size += len(piece)
        self.expect(self.size)
        if not self.is_cut:
            self.content += piece
        if self.size > MAX_BODY_BYTES:
            self.is_cut = True
            del self.content[KEPT_BYTES:]

    def _take_as_it_is(self) -> None:
        came, self._came, self._is_packed = self._came, bytearray(), False
        self.content, self.size, self.is_cut = bytearray(), 0, False
        self._keep(bytes(came))


def _unpacker() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=31)


class _Reading(Struct, eq=False):
    """A body that is being read.

    Attributes:
        refusal: why it no longer is.
    """

    task: "asyncio.Task[object]"
    since: float
    refusal: RequestRefusedError | None = None

    def give_up(self, refusal: RequestRefusedError) -> None:
        """End it with the refusal."""
        if self.refusal is None:
            self.refusal = refusal
            self.task.cancel()

    def turn_out(self) -> None:
        """See `Holder`."""
        retry_after = (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)
        self.give_up(RequestRefusedError(503, "too many bodies are being read", retry_after))


class Bodies:
    """Reads the bodies of requests."""

    def __init__(self) -> None:
        self._readings: set[_Reading] = set()
        self._unverified = Budget(MAX_UNVERIFIED_BYTES)

    async def cancel_slow_reads(self) -> None:
        """End the reading of every body that takes too long; runs until it is cancelled.

        It looks at all of them once a second: a timer for each would cost more than its reading.
        """
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            for reading in [*self._readings]:
                if loop.time() - reading.since > BODY_SECONDS:
                    slow = f"the body took more than {BODY_SECONDS} s"
                    reading.give_up(RequestRefusedError(408, slow, drain=False))

    async def read(
        self, source: Source, headers: Headers, receive: Receive, verifier: Verifier
    ) -> Body:
        """The body, whose pieces the verifier has been given.

        Raises:
            RequestRefusedError: it is too large, known before it is read, or too slow; it is packed
                in a way that relay does not know; or there are too many.
            SenderGoneError: it will never be complete.
        """
        body = _Pieces(is_packed=_is_packed(headers, source), may_be_cut=source.blocks_on_error)
        body.expect(_length(headers))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        reading = _Reading(task, asyncio.get_running_loop().time())
        self._readings.add(reading)
        is_whole = False
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
                    is_whole = True
                    return body
                if source.signs_body:
                    self._unverified.hold(reading, body.held)
        except asyncio.CancelledError:
            if reading.refusal is None:
                raise  # by someone else
            task.uncancel()
            raise reading.refusal from None
        finally:
            self._readings.discard(reading)
            self._unverified.give_back(reading)
            if not is_whole:
                body.forget()  # the error would hold on to it while the sender is told


def is_encoded(headers: Headers) -> bool:
    """Whether the body is said to be packed in any way."""
    for name, _ in headers:  # noqa: SIM110 (for every webhook; a generator takes thrice as long)
        if name == b"content-encoding":
            return True
    return False


def _is_packed(headers: Headers, source: Source) -> bool:
    """Whether the body is said to be gzip.

    Raises:
        RequestRefusedError: it is said to be something else; but not to a sender that an error
            blocks, whose body is then kept as a dead letter.
    """
    said = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [c for c in _TOKENS.split(said.strip().lower()) if c not in _IDENTITY]
    if not codings:
        return False
    if len(codings) == 1 and codings[0] in _GZIPPED:
        return True
    if source.blocks_on_error:
        return False
    raise RequestRefusedError(415, "only gzip is unpacked", (b"accept-encoding", b"gzip"))


def _length(headers: Headers) -> int:
    return next((int(value) for name, value in headers if name == b"content-length"), 0)

"""Collects the pieces of one request's body: limits its size, and decompresses it."""

import zlib
from hashlib import sha256
from typing import Final

from relay.receiver import answers
from relay.receiver.answers import RequestRefusedError
from relay.truncation import KEPT_BYTES

MAX_BODY_BYTES: Final = 2**20
MAX_TRUNCATED_BYTES: Final = 8 * 2**20
"""The limit for a source that an error blocks; bytes beyond `MAX_BODY_BYTES` are not kept."""

_GZIP: Final = b"\x1f\x8b"


class Body:
    """A request's body: `add` the pieces, then `end`.

    Args:
        is_gzipped: whether the headers say that it is gzip. If it is not, it is taken as it is: a
            proxy that decompresses bodies may leave the header.
        may_be_truncated: whether a body beyond `MAX_BODY_BYTES` is truncated; otherwise it is
            refused.

    Attributes:
        content: the decompressed body; only its beginning if it is truncated.
        size: bytes of the whole decompressed body.
        is_truncated: whether it is too large to be kept whole.
    """

    def __init__(self, *, is_gzipped: bool, may_be_truncated: bool) -> None:
        self.content = bytearray()
        self.size = 0
        self.is_truncated = False
        self._may_be_truncated = may_be_truncated
        self._is_gzipped = is_gzipped
        self._compressed = bytearray()  # kept in case the body is not gzip
        self._decompressor: zlib._Decompress | None = None
        self._digest = sha256()
        self._raw_size = 0

    @property
    def held_bytes(self) -> int:
        """Return how many bytes it keeps in memory."""
        return len(self.content) + len(self._compressed)

    def check_size(self, size: int) -> None:
        """Check a size that the body has, or will have.

        Raises:
            RequestRefusedError: the size is too large.
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
        """Finish the body; all pieces have been added."""
        if self._is_gzipped and not (self._decompressor and self._decompressor.eof):
            self._keep_uncompressed()  # gzip that ends too soon

    def clear(self) -> None:
        """Free the memory of the body."""
        self.content.clear()
        self._compressed.clear()

    def digest(self) -> str:
        """Return the SHA-256 of the whole body as it was sent, in hex."""
        return self._digest.hexdigest()

    @property
    def _limit(self) -> int:
        return MAX_TRUNCATED_BYTES if self._may_be_truncated else MAX_BODY_BYTES

    def _too_large(self) -> RequestRefusedError:
        return answers.too_large(self._limit)

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

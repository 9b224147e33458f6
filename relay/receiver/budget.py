"""A limit on the bytes that unauthenticated senders may keep in memory."""

from typing import Protocol


class Holder(Protocol):
    """Something that keeps bytes of an unauthenticated sender."""

    def evict(self) -> None:
        """Give up the bytes at once."""
        ...


class Budget:
    """Bytes in memory; when there are too many, who has held some the longest is evicted.

    A good sender is done within moments, so it is the slow ones that make room.

    Args:
        max_bytes: in memory at once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[Holder, int] = {}
        self._total = 0

    def hold(self, holder: Holder, size: int) -> None:
        """Note how many bytes the holder has by now; it, or others, may be evicted."""
        self._total += size - self._held.get(holder, 0)
        self._held[holder] = size
        while self._total > self._max_bytes:
            oldest = next(iter(self._held))
            self.release(oldest)
            oldest.evict()

    def release(self, holder: Holder) -> None:
        """Note that the holder has no bytes any more."""
        self._total -= self._held.pop(holder, 0)

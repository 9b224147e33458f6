"""Limits the bytes that unauthenticated senders may keep in memory."""

from typing import Protocol


class Holder(Protocol):
    """Something that keeps bytes of an unauthenticated sender in memory."""

    def evict(self) -> None:
        """Drop the bytes at once."""
        ...


class Budget:
    """A limit on bytes in memory; beyond it, those who have held bytes the longest are evicted.

    A good sender needs only moments, so slow ones are evicted first.

    Args:
        max_bytes: the most bytes in memory at once.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: dict[Holder, int] = {}
        self._total = 0

    def hold(self, holder: Holder, size: int) -> None:
        """Note how many bytes the holder has now; evict it or others if there are too many."""
        self._total += size - self._held.get(holder, 0)
        self._held[holder] = size
        while self._total > self._max_bytes:
            oldest = next(iter(self._held))
            self.release(oldest)
            oldest.evict()

    def release(self, holder: Holder) -> None:
        """Note that the holder has no more bytes."""
        self._total -= self._held.pop(holder, 0)

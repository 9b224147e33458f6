"""How many bytes of strangers are in hand at once."""

from typing import Protocol


class Holder(Protocol):
    """Who holds bytes of somebody that has not shown who it is."""

    def turn_out(self) -> None:
        """Give them up at once."""
        ...


class Budget:
    """Bytes in hand; the one that has held its share the longest gives it up first.

    A good sender is done within moments: it is the slow ones that make room.

    Args:
        most_bytes: in hand at once.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held: dict[Holder, int] = {}
        self._total = 0

    def hold(self, holder: Holder, size: int) -> None:
        """It has so many bytes in hand by now; others, or it itself, may be turned out."""
        self._total += size - self._held.get(holder, 0)
        self._held[holder] = size
        while self._total > self._most:
            oldest = next(iter(self._held))
            self.give_back(oldest)
            oldest.turn_out()

    def give_back(self, holder: Holder) -> None:
        """It has nothing in hand any more."""
        self._total -= self._held.pop(holder, 0)

"""Who is connected, and who goes first when there are too many."""

from typing import Protocol


class Guest(Protocol):
    """A connection."""

    def turn_out(self) -> None:
        """Close it at once, whatever it waits for."""
        ...

    def close_after_answer(self) -> None:
        """Let the answer that is due be its last."""
        ...

    def close_if_quiet(self) -> None:
        """Close it if no request is under way and nothing has come for a while."""
        ...


class Crowd:
    """The connections of a server.

    Attributes:
        leaving: whether the server ends, and each answer is its connection's last.
    """

    def __init__(self) -> None:
        self.leaving = False
        self._all: set[Guest] = set()
        # Both in the order in which they began to wait.
        self._headless: dict[Guest, None] = {}
        self._resting: dict[Guest, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def came(self, guest: Guest) -> None:
        """Count it, as one that has not sent a request yet."""
        self._all.add(guest)
        self._headless[guest] = None

    def asked(self, guest: Guest) -> None:
        """It has sent a request's head, so it stays until it is answered."""
        self._headless.pop(guest, None)
        self._resting.pop(guest, None)

    def rests(self, guest: Guest) -> None:
        """It has been answered, or does not read its answer."""
        self._resting[guest] = None

    def went(self, guest: Guest) -> None:
        """Forget it."""
        self._all.discard(guest)
        self.asked(guest)

    def leave(self) -> None:
        """Let each answer be its connection's last, from now on."""
        self.leaving = True
        for guest in [*self._all]:
            guest.close_after_answer()

    def close_the_quiet(self) -> None:
        """Close those of whom nothing has come for a while."""
        for guest in [*self._all]:
            guest.close_if_quiet()

    def shed(self) -> bool:
        """Turn out who has waited the longest; those that never sent a head go first.

        Returns:
            Whether there was one.
        """
        for waiting in (self._headless, self._resting):
            for guest in waiting:
                self.went(guest)
                guest.turn_out()
                return True
        return False

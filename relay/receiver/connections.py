"""Who is connected, and who goes first when there are too many."""

from typing import Final, Protocol

import structlog

from relay.logs.sampling import Seldom
from relay.metrics.definitions import CONNECTIONS_SHED
from relay.receiver.budget import Budget

MAX_HEADS_BYTES: Final = 2**23
"""Of heads that are not complete, in hand at once."""
MAX_SENDING_AHEAD: Final = 50
"""Connections with several requests behind the one that is being answered."""

_log = structlog.get_logger()


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

    Args:
        most: how many there may be at once.

    Attributes:
        leaving: whether the server ends, and each answer is its connection's last.
    """

    def __init__(self, most: int) -> None:
        self.leaving = False
        self._most = most
        self._heads = Budget(MAX_HEADS_BYTES)
        self._ahead: set[Guest] = set()
        self._seldom = Seldom()
        self._all: set[Guest] = set()
        # Both in the order in which they began to wait.
        self._headless: dict[Guest, None] = {}
        self._resting: dict[Guest, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def came(self, guest: Guest) -> None:
        """Count it, as one that has not sent a request yet; another one, or it itself, may go."""
        if len(self._all) >= self._most and not self.shed():
            self._told_of("every connection is in use")
            guest.turn_out()
        self._all.add(guest)
        self._headless[guest] = None

    def begins(self, guest: Guest, size: int) -> None:
        """It has sent so many bytes of a head that is not complete."""
        self._heads.hold(guest, size)

    def may_send_ahead(self, guest: Guest) -> bool:
        """Whether it may have several requests wait behind the one that is being answered."""
        if len(self._ahead) < MAX_SENDING_AHEAD:
            self._ahead.add(guest)
        return guest in self._ahead

    def asked(self, guest: Guest) -> None:
        """It has sent a request's head, so it stays until it is answered."""
        self._headless.pop(guest, None)
        self._resting.pop(guest, None)
        self._heads.give_back(guest)

    def rests(self, guest: Guest) -> None:
        """It has been answered, or does not read its answer."""
        self._resting[guest] = None
        self._ahead.discard(guest)

    def went(self, guest: Guest) -> None:
        """Forget it."""
        self._all.discard(guest)
        self._ahead.discard(guest)
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
                self._told_of("there are too many connections")
                guest.turn_out()
                return True
        return False

    def _told_of(self, why: str) -> None:
        CONNECTIONS_SHED.inc()
        more = self._seldom.due(why)
        if more is not None:
            _log.warning("http.connection_shed", why=why, connections=len(self._all), more=more)

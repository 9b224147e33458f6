"""Keeps the throttles of a SQLite outbox in the forwarder's memory, with notes in the file.

Other processes read the notes.
"""

from collections.abc import Callable
from typing import Final

import apsw
from msgspec import Struct, json, structs

from relay.outbox.protocol import T
from relay.throttle import Throttle

_ANSWER_SECONDS: Final = 1.0  # between two notes in which only the answer differs


class _Note(Struct, frozen=True):
    """What was noted of a throttle for other processes, and when, in seconds elapsed."""

    generation: int
    hold: str | None
    answered_at: float
    noted_at: float


class Throttles:
    """The throttle of each destination. One thread may use them at a time."""

    def __init__(self) -> None:
        self._throttles: dict[str, Throttle] = {}
        self._notes: dict[str, _Note] = {}

    def change(self, destination: str, change: Callable[[Throttle, float], T], now: float) -> T:
        """Call `change` with the destination's throttle, and return its result."""
        return change(self._throttles.setdefault(destination, Throttle()), now)

    def is_news(self, destination: str, now: float) -> bool:
        """Return whether to note the throttle: a new state at once, a new answer once a second."""
        throttle, noted = self._throttles[destination], self._notes.get(destination)
        if noted is None:
            return True
        if (throttle.generation, throttle.hold) != (noted.generation, noted.hold):
            return True
        return throttle.answered_at != noted.answered_at and now >= noted.noted_at + _ANSWER_SECONDS

    def note(self, destination: str, now: float, connection: apsw.Connection) -> None:
        """Write a note of the throttle into the file, for other processes."""
        throttle = self._throttles[destination]
        state = json.encode(structs.replace(throttle, taken_at=[])).decode()
        connection.execute(_NOTE, (destination, state))
        self._notes[destination] = _Note(
            throttle.generation, throttle.hold, throttle.answered_at, now
        )


def noted(destination: str, connection: apsw.Connection) -> Throttle:
    """Return the throttle from its note in the file; a new throttle if there is no note."""
    state: str | None = connection.execute(_NOTED, (destination,)).get
    return Throttle() if state is None else json.decode(state, type=Throttle)


_NOTE: Final = """
    INSERT INTO throttles VALUES (?, ?)
    ON CONFLICT (destination) DO UPDATE SET state = excluded.state
"""

_NOTED: Final = "SELECT state FROM throttles WHERE destination = ?"

"""Whether those who work get on, judged from outside: one that hangs cannot tell."""

from collections.abc import Hashable
from itertools import count


class Pulse:
    """Counts the steps of each that works; to be looked at once a second.

    Time is counted in looks and not by a clock: where the whole process was suspended, so was
    whoever looks.
    """

    def __init__(self) -> None:
        self._count = count()
        self._steps: dict[Hashable, int] = {}
        self._seen: dict[Hashable, int] = {}
        self._silent: dict[Hashable, int] = {}

    def step(self, who: Hashable) -> None:
        """It gets on with its work."""
        self._steps[who] = next(self._count)

    def rest(self, who: Hashable) -> None:
        """It has nothing to do, until its next step."""
        self._steps.pop(who, None)

    def look(self) -> int:
        """In how many looks in a row, this one included, the slowest of them took no step."""
        steps = dict(self._steps)
        self._silent = {
            who: self._silent.get(who, 0) + 1
            for who, step in steps.items()
            if self._seen.get(who) == step
        }
        self._seen = steps
        return max(self._silent.values(), default=0)

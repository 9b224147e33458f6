"""Wrong credentials at one door: counted, told of, and answered late."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from relay.metrics.definitions import WRONG_CREDENTIALS

HOLD_SECONDS: Final = 1.0
"""How long a wrong attempt waits for its answer."""
MAX_HELD: Final = 256
"""Wrong attempts of one door that wait at a time."""
LATE: Final = {"connection": "close"}
"""Headers of an answer to a wrong attempt that is not held back."""

_LOG_SECONDS: Final = 60.0

_log = structlog.get_logger()


class Attempts:
    """Slows down those who guess at one door.

    Right credentials are never held back and never refused unseen: a limit on how many guesses are
    looked at would let those who guess lock the operator out.

    Args:
        door: what is guessed at, as metrics and the log name it.
        credentials: the kinds that are told apart.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        door: str,
        credentials: Iterable[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._door = door
        self._clock = clock
        self._held = 0
        self._counted_since = -_LOG_SECONDS
        self._counted = 0
        for credential in credentials:  # from the beginning, so that the first one shows as growth
            WRONG_CREDENTIALS.labels(door, credential)

    async def hold_back(self, credential: str) -> bool:
        """Count a wrong attempt, and return when it may be answered.

        False, at once, where too many wait already: the answer is to end the connection, so that
        each further attempt costs one.
        """
        WRONG_CREDENTIALS.labels(self._door, credential).inc()
        self._tell(credential)
        if self._held >= MAX_HELD:
            return False
        self._held += 1
        try:
            await asyncio.sleep(HOLD_SECONDS)
        finally:
            self._held -= 1
        return True

    def _tell(self, credential: str) -> None:
        """Log the first, the tenth, the hundredth … of a minute: few lines, however many come."""
        if self._clock() - self._counted_since >= _LOG_SECONDS:
            self._counted_since, self._counted = self._clock(), 0
        self._counted += 1
        if str(self._counted).strip("0") == "1":
            _log.warning(
                "credentials.wrong",
                door=self._door,
                credential=credential,
                within_a_minute=self._counted,
            )

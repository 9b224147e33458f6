"""Counts and logs wrong credentials, and delays their answers."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from relay.metrics.definitions import WRONG_CREDENTIALS

HOLD_SECONDS: Final = 1.0
"""How long the answer to a wrong attempt is held back."""
MAX_HELD: Final = 256
"""The most answers that one door holds back at a time."""
NOT_HELD_BACK: Final = {"connection": "close"}
"""Headers of an answer that is not held back: each further attempt costs a connection."""

_PERIOD_SECONDS: Final = 60.0

_log = structlog.get_logger()


class Attempts:
    """A delay for wrong credentials at one door, which may be the webhooks or the console.

    Right credentials are always checked and never held back: a limit on the number of checks would
    let an attacker lock the operator out.

    Args:
        door: name of the door in metrics and the log.
        credentials: the kinds of credentials that the door accepts.
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
        self._period_began_at = -_PERIOD_SECONDS
        self._in_period = 0
        for credential in credentials:  # from the start, so that the first one shows as growth
            WRONG_CREDENTIALS.labels(door, credential)

    async def hold_back(self, credential: str) -> bool:
        """Count a wrong attempt, and wait until it may be answered.

        Return False at once if too many are held back already. The answer must then have the
        headers `NOT_HELD_BACK`.
        """
        WRONG_CREDENTIALS.labels(self._door, credential).inc()
        self._log(credential)
        if self._held >= MAX_HELD:
            return False
        self._held += 1
        try:
            await asyncio.sleep(HOLD_SECONDS)
        finally:
            self._held -= 1
        return True

    def _log(self, credential: str) -> None:
        """Log the first, tenth, hundredth … wrong attempt of a minute."""
        if self._clock() - self._period_began_at >= _PERIOD_SECONDS:
            self._period_began_at, self._in_period = self._clock(), 0
        self._in_period += 1
        if str(self._in_period).strip("0") == "1":
            _log.warning(
                "credentials.wrong",
                door=self._door,
                credential=credential,
                within_a_minute=self._in_period,
            )

"""Counts and logs wrong credentials, and delays their answers, so that guessing is slow."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from relay.metrics.definitions import WRONG_CREDENTIALS

DELAY_SECONDS: Final = 1.0
"""How long the answer to a wrong attempt is delayed."""
MAX_DELAYED: Final = 256
"""The most answers of one page that are delayed at a time."""
CLOSE_CONNECTION: Final = {"connection": "close"}
"""Headers of an answer that is not delayed: each further attempt costs a connection."""

_PERIOD_SECONDS: Final = 60.0

_log = structlog.get_logger()


class WrongCredentials:
    """The wrong credentials tried at one page, which is the console or the metrics.

    Right credentials are always checked and never delayed: a limit on the number of checks would
    let an attacker lock the operator out.

    Args:
        page: name of the page in metrics and the log.
        credentials: the kinds of credentials that the page accepts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        page: str,
        credentials: Iterable[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._page = page
        self._clock = clock
        self._delayed = 0
        self._period_began_at = -_PERIOD_SECONDS
        self._in_period = 0
        for credential in credentials:  # from the start, so that the first one shows as growth
            WRONG_CREDENTIALS.labels(page, credential)

    async def delay(self, credential: str) -> bool:
        """Count a wrong attempt, and wait until it may be answered.

        Return False at once if too many are delayed already. The answer must then have the
        headers `CLOSE_CONNECTION`.
        """
        WRONG_CREDENTIALS.labels(self._page, credential).inc()
        self._log(credential)
        if self._delayed >= MAX_DELAYED:
            return False
        self._delayed += 1
        try:
            await asyncio.sleep(DELAY_SECONDS)
        finally:
            self._delayed -= 1
        return True

    def _log(self, credential: str) -> None:
        """Log the first, tenth, hundredth … wrong attempt of a minute."""
        if self._clock() - self._period_began_at >= _PERIOD_SECONDS:
            self._period_began_at, self._in_period = self._clock(), 0
        self._in_period += 1
        if str(self._in_period).strip("0") == "1":
            _log.warning(
                "credentials.wrong",
                page=self._page,
                credential=credential,
                within_a_minute=self._in_period,
            )

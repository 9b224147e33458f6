"""Forgets what was delivered long ago, little by little, and tallies what is past as a whole.

Not by a clock that may be wrong: it must have kept pace with the seconds elapsed for a day, in this
process or, at its start, by what the outbox counted a day ago.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from relay.errors import OutboxError
from relay.forwarder.steady_time import STEADY, SteadyTime
from relay.outbox.counters import APART
from relay.outbox.entries import Clock, utc_now
from relay.outbox.protocol import Outbox

STEP: Final = 500
"""Entries forgotten at a time: nothing else waits long for so few."""
PAUSE_SECONDS: Final = 0.2
EVERY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0

_log = structlog.get_logger()


class Retention:
    """Forgets delivered entries older than an age, in a thread, until it is stopped."""

    def __init__(
        self,
        outbox: Outbox,
        age: timedelta,
        *,
        clock: Clock = utc_now,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._age = age
        self._time = SteadyTime(clock, elapsed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="retention", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what was begun is finished first, if the outbox answers in time."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def step(self) -> bool:
        """Forget a few; whether there may be more."""
        now = self._time.read(self._witnessed)
        if now is None:
            return False
        forgotten = self._outbox.purge(now - self._age, STEP)
        if forgotten < STEP:
            self._outbox.aggregate_counters(now - APART)
        if forgotten:
            _log.info("retention.forgotten", entries=forgotten)
        return forgotten == STEP

    def _witnessed(self, now: datetime) -> bool:
        """Whether the outbox counted anything about a day ago."""
        return any(
            row.since is not None and now - APART <= row.since <= now - STEADY
            for row in self._outbox.counters()
        )

    def _keep(self) -> None:
        more = False
        while not self._stopping.wait(PAUSE_SECONDS if more else EVERY_SECONDS):
            try:
                more = self.step()
            except OutboxError as error:
                _log.warning("retention.outbox_failed", error=str(error))
                more = False
            except Exception:  # noqa: BLE001 (a fault of relay's own must not fill the disk)
                _log.exception("retention.failed")
                more = False

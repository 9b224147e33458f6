"""Deletes entries delivered long ago, little by little, and aggregates old counters.

Nothing is deleted while the clock may be wrong. It is trusted once it has agreed with the elapsed
seconds for a day in this process. At the start of a process it is trusted at once if the outbox
counted something a day ago by it.
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

BATCH_ENTRIES: Final = 500
"""Entries deleted at a time: few enough that nothing else waits long."""
PAUSE_SECONDS: Final = 0.2
EVERY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 3.0

_log = structlog.get_logger()


class Retention:
    """A thread that deletes delivered entries older than an age, until it is stopped."""

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
        self._thread = threading.Thread(target=self._work, name="retention", daemon=True)

    def start(self) -> None:
        """Begin to delete."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a batch under way is finished first, if the outbox answers in time."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def step(self) -> bool:
        """Delete one batch; return whether there may be more."""
        now = self._time.read(self._witnessed)
        if now is None:
            return False
        deleted = self._outbox.purge(now - self._age, BATCH_ENTRIES)
        if deleted < BATCH_ENTRIES:
            self._outbox.aggregate_counters(now - APART)
        if deleted:
            _log.info("retention.deleted", entries=deleted)
        return deleted == BATCH_ENTRIES

    def _witnessed(self, now: datetime) -> bool:
        """Return whether the outbox counted anything about a day ago."""
        return any(
            row.since is not None and now - APART <= row.since <= now - STEADY
            for row in self._outbox.counters()
        )

    def _work(self) -> None:
        more = False
        while not self._stopping.wait(PAUSE_SECONDS if more else EVERY_SECONDS):
            try:
                more = self.step()
            except OutboxError as error:
                _log.warning("retention.outbox_failed", error=str(error))
                more = False
            except Exception:  # noqa: BLE001 (a fault in relay itself must not fill the disk)
                _log.exception("retention.failed")
                more = False

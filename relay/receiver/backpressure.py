"""Stops relay from accepting webhooks while the outbox is full; it still forwards what it has."""

import asyncio
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool

from relay.errors import OutboxBrokenError, OutboxError, OutboxNotOpenError
from relay.outbox.protocol import Outbox
from relay.receiver.committer import Committer

CHECK_SECONDS: Final = 1

_MEBIBYTE: Final = 2**20

_log: Final = structlog.get_logger()


class Capacity:
    """The limits of what an outbox may hold.

    Args:
        outbox: the outbox that is limited.
        max_backlog: the most pending entries; None for any number.
        min_free_disk: MiB that must stay free on the outbox's disk, if its free space is known.
    """

    def __init__(self, outbox: Outbox, *, max_backlog: int | None, min_free_disk: int) -> None:
        self._outbox = outbox
        self._max_backlog = max_backlog
        self._min_free_disk = min_free_disk

    def exceeded(self) -> str | None:
        """Return which limit is exceeded, as a sentence; None if none is.

        Raises:
            OutboxBrokenError: the outbox can no longer be used in this process.
        """
        try:
            if self._max_backlog is not None and self._outbox.pending_exceed(self._max_backlog):
                return f"more than {self._max_backlog} entries wait (RELAY_MAX_BACKLOG)"
            free = self._outbox.free_bytes()
        except OutboxNotOpenError:
            return None  # storing fails with the reason
        except OutboxBrokenError:
            raise
        except OutboxError as error:
            return f"the outbox cannot say how full it is: {error}"
        if free is not None and free < self._min_free_disk * _MEBIBYTE:
            least = f"{self._min_free_disk} MiB (RELAY_MIN_FREE_DISK)"
            return f"{free // _MEBIBYTE} MiB are free on the outbox's disk, less than {least}"
        return None


class Backpressure:
    """A watch over the outbox's limits; while one is exceeded, the committer refuses webhooks."""

    def __init__(self, committer: Committer, capacity: Capacity) -> None:
        self._committer = committer
        self._capacity = capacity
        self._exceeded: str | None = None

    async def check(self) -> None:
        """Check how full the outbox is, and whether it still works."""
        try:
            exceeded = await run_in_threadpool(self._capacity.exceeded)
        except OutboxBrokenError as error:
            exceeded = str(error)
            self._committer.report_broken(error)
        self._committer.refuse(exceeded)
        if exceeded and not self._exceeded:
            _log.error("receiver.closed", reason=exceeded)
        if self._exceeded and not exceeded:
            _log.info("receiver.open")
        self._exceeded = exceeded

    async def watch(self) -> None:
        """Check once a second, until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self.check()

    def problems(self) -> list[str]:
        """Return which limit is exceeded, and why the latest webhooks were not stored, if so."""
        return [reason for reason in (self._exceeded, self._committer.problem()) if reason]

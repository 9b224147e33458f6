"""How much relay takes before it says that it is full, so that what it has can still go out."""

from datetime import timedelta
from typing import Final

from relay.errors import OutboxBrokenError, OutboxError, OutboxNotOpenError
from relay.outbox.protocol import Outbox

CHECKED_EVERY: Final = timedelta(seconds=1)

_MEBIBYTE: Final = 2**20


class Limits:
    """The limits of an outbox.

    Args:
        outbox: what they are for.
        max_backlog: pending entries; None for any number.
        min_free_disk: MiB that stay free on the outbox's disk, where that can be known.
    """

    def __init__(self, outbox: Outbox, *, max_backlog: int | None, min_free_disk: int) -> None:
        self._outbox = outbox
        self._max_backlog = max_backlog
        self._min_free_disk = min_free_disk

    def exceeded(self) -> str | None:
        """What there is too much or too little of, as a sentence; None if all is well.

        Raises:
            OutboxBrokenError: the outbox does nothing more in this process.
        """
        try:
            if self._max_backlog is not None and self._outbox.pending_exceed(self._max_backlog):
                return f"more than {self._max_backlog} entries wait (RELAY_MAX_BACKLOG)"
            free = self._outbox.free_bytes()
        except OutboxNotOpenError:
            return None  # storing tells why
        except OutboxBrokenError:
            raise
        except OutboxError as error:
            return f"the outbox cannot tell how full it is: {error}"
        if free is not None and free < self._min_free_disk * _MEBIBYTE:
            least = f"{self._min_free_disk} MiB (RELAY_MIN_FREE_DISK)"
            return f"{free // _MEBIBYTE} MiB are free on the outbox's disk, less than {least}"
        return None

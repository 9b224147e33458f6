"""Refuses every use of the outbox once its disk has failed or its files are gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import apsw

from relay.errors import OutboxBrokenError, OutboxError
from relay.outbox.sqlite.connection import translated
from relay.outbox.sqlite.files import OutboxFiles


class Disk:
    """The disk that an outbox is on, and whether it can still be trusted.

    When a file is no longer where it was opened, every use is refused. Otherwise what is stored in
    it would be lost when this process ends.

    When a sync fails, Linux drops the pages that it was for. They are read as if they had been
    written, and a later sync succeeds. So every use is refused until the process ends. The next
    process writes the whole log again before its first checkpoint.

    Attributes:
        failure: why every use is refused; None while all is well.
        lost: whether the reason is that a file is no longer where it was opened.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.lost = False
        self._files: OutboxFiles | None = None

    def watch(self, files: OutboxFiles) -> None:
        """Check from now on whether the files are still there."""
        self._files = files

    @contextmanager
    def used(self) -> Iterator[None]:
        """Raise SQLite's errors as relay's; refuse once the disk has failed or a file is gone.

        The files are checked before the use, because a checkpoint would damage a file that another
        process has opened with another log. They are checked after it, too. So an event is not
        reported as stored if its file was deleted meanwhile.

        Raises:
            OutboxBrokenError: the outbox can no longer be used in this process.
        """
        self._refuse_lost()
        try:
            with translated():
                yield
        except OutboxError as error:
            self._refuse_lost()
            if getattr(error.__cause__, "extendedresult", None) in _SYNC_FAILED:
                self.failure = "the disk has failed to sync; relay must be started again"
                raise OutboxBrokenError(self.failure) from error.__cause__
            raise
        self._refuse_lost()

    def _refuse_lost(self) -> None:
        # Nothing is assigned if the files are there: another thread may have noted a failed sync
        # while they were looked for.
        if self.failure is None and self._files and (fault := self._files.fault()):
            self.failure, self.lost = fault, True
        if self.failure:
            raise OutboxBrokenError(self.failure)

    def leave(self, connection: apsw.Connection) -> None:
        """Close the connection; keep in the log what may not be on the disk."""
        if self.failure:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()


_SYNC_FAILED: Final = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC})

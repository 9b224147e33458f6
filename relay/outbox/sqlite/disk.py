"""Whether the disk still holds what is written to the outbox."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import apsw

from relay.errors import OutboxBrokenError, OutboxError
from relay.outbox.sqlite.connection import translated
from relay.outbox.sqlite.files import OutboxFiles


class Disk:
    """What a process knows of the disk that its outbox is on.

    Once its files are not where they were opened, nothing more is done: what is stored there is
    lost when this process ends.

    When a sync fails, Linux gives up the pages that it was for: they are read as if they had been
    written, and a later sync says that all is well. So nothing is built on them: until the process
    ends, nothing more is done. The next one's first checkpoint writes all of the log anew.

    Attributes:
        failure: why nothing more is done; None while all is well.
        lost: that is because a file is not where it was opened.
    """

    def __init__(self) -> None:
        self.failure: str | None = None
        self.lost = False
        self._files: OutboxFiles | None = None

    def watch(self, files: OutboxFiles) -> None:
        """See from now on whether the files are still there."""
        self._files = files

    @contextmanager
    def used(self) -> Iterator[None]:
        """Raise SQLite's errors as relay's; refuse once the disk has failed or a file is gone.

        That is looked at before: a checkpoint into a file that somebody has opened with another log
        would damage it. And once more after: what was stored between the two, in a file that was
        deleted meanwhile, is not told stored.
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
        if self.failure is None and self._files:
            self.failure = self._files.fault()
            self.lost = self.failure is not None
        if self.failure:
            raise OutboxBrokenError(self.failure)

    def leave(self, connection: apsw.Connection) -> None:
        """Close the connection; what may not be on the disk stays in the log."""
        if self.failure:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.close()


_SYNC_FAILED: Final = frozenset({apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC})

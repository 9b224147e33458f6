"""Checkpoints outside the threads that commit."""

import threading
from contextlib import suppress
from typing import Final

import apsw

from relay.errors import OutboxBrokenError, OutboxError
from relay.outbox.sqlite.disk import Disk

_CHECKPOINT_PAGES: Final = 1_000  # 4 MB of WAL, as SQLite's own default
_TRUNCATE_PAGES: Final = 32_000  # 128 MB: under steady load a passive checkpoint never ends


class Checkpointer(threading.Thread):
    """Moves committed pages from the WAL into the file, outside the committing threads.

    Inside them, as SQLite would do it, these moments were the slowest answers by far.
    """

    def __init__(self, connection: apsw.Connection, writing: threading.Lock, disk: Disk) -> None:
        super().__init__(name="checkpointer", daemon=True)
        self._connection = connection
        self._writing = writing
        self._disk = disk
        self._due = threading.Event()
        self._stopping = False
        self._pages = 0

    def committed(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        """SQLite calls this after each commit, with the WAL's length in pages."""
        self._pages = pages
        if pages >= _CHECKPOINT_PAGES:
            self._due.set()
        return apsw.SQLITE_OK

    def run(self) -> None:
        """Checkpoint whenever enough has been committed."""
        while True:
            self._due.wait()
            if self._stopping:
                return
            self._due.clear()
            with suppress(apsw.BusyError, OutboxError):  # the next commit asks again
                self._checkpoint()

    def _checkpoint(self) -> None:
        with self._disk.used():
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if self._pages >= _TRUNCATE_PAGES:
                with self._writing:
                    self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def write_log_anew(self) -> None:
        """Copy what an earlier process left in the log, which may not be on the disk.

        Raises:
            OutboxBrokenError: that is not on the disk either.
        """
        try:
            with self._disk.used():
                self._write_again()
            self._checkpoint()
        except OutboxBrokenError:
            raise
        except OutboxError:
            pass  # someone else uses the file, or the disk is full

    def _write_again(self) -> None:
        """Write the log over itself and sync it: else a power cut in the checkpoint mixes ages."""
        self._connection.execute("BEGIN IMMEDIATE")  # nobody else writes to it meanwhile
        try:
            name = self._connection.filename_wal
            flags = [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0]
            log = apsw.VFSFile("", name, flags)  # by way of SQLite, which keeps its locks
            try:
                size = log.xFileSize()
                for start in range(0, size, 2**16):  # SQLite writes less than twice as much at once
                    log.xWrite(log.xRead(min(2**16, size - start), start), start)
                log.xSync(apsw.SQLITE_SYNC_NORMAL)
            finally:
                log.xClose()
        finally:
            self._connection.execute("ROLLBACK")

    def stop(self) -> None:
        """End the thread; a checkpoint under way is finished first."""
        self._stopping = True
        self._due.set()
        self.join()
        self._disk.leave(self._connection)

"""Checkpoints the SQLite file in a thread of its own, so that commits do not wait for it."""

import threading
import time
from contextlib import suppress
from typing import Final

import apsw

from relay.errors import OutboxBrokenError, OutboxError
from relay.outbox.sqlite.disk import Disk
from relay.outbox.sqlite.fileformat import PAGE

_CHECKPOINT_PAGES: Final = 1_000  # 4 MB of WAL, as SQLite's own default
_TRUNCATE_PAGES: Final = 32_000  # 128 MB: under steady load a passive checkpoint never ends
LONG_BYTES: Final = _TRUNCATE_PAGES * PAGE
_FIRST_PAUSE_SECONDS: Final = 0.01  # after a reader kept the log from being emptied
_LONGEST_PAUSE_SECONDS: Final = 5.0
_HELD_SECONDS: Final = 10.0  # relay's own processes hold the log for moments only


class Checkpointer(threading.Thread):
    """A thread that moves committed pages from the WAL into the file.

    By default SQLite does that in the threads that commit, where it caused by far the slowest
    answers.

    A log that has grown long is emptied under the writers' lock. That does not wait for readers,
    because a dump or a BI tool would keep all writers waiting. If a reader is in the way, it is
    tried again later, and the log grows meanwhile.
    """

    def __init__(self, connection: apsw.Connection, writing: threading.Lock, disk: Disk) -> None:
        super().__init__(name="checkpointer", daemon=True)
        self._connection = connection
        self._writing = writing
        self._disk = disk
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._refused_since: float | None = None
        connection.pragma("user_version")  # a connection checkpoints nothing before its first read

    def committed(self, _connection: apsw.Connection, _database: str, pages: int) -> int:
        """Note a commit. SQLite calls this after each one, with the WAL's length in pages."""
        if pages >= _CHECKPOINT_PAGES:
            self._due.set()
        return apsw.SQLITE_OK

    @property
    def is_held(self) -> bool:
        """Whether a reader has kept a long log from being emptied for a while."""
        since = self._refused_since
        return since is not None and time.monotonic() - since >= _HELD_SECONDS

    def run(self) -> None:
        """Checkpoint whenever enough has been committed."""
        self._connection.set_busy_timeout(0)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            self._due.wait()
            if self._stopping.is_set():
                return
            self._due.clear()
            with suppress(OutboxError):  # the next commit makes it due again
                self._checkpoint()
            if self._refused_since is None:
                pause = _FIRST_PAUSE_SECONDS
            else:
                self._stopping.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                self._due.set()

    def _checkpoint(self) -> None:
        with self._disk.used(), suppress(apsw.BusyError):  # another process checkpoints
            pages, _ = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            if pages < _TRUNCATE_PAGES or self._is_emptied():
                self._refused_since = None
            elif self._refused_since is None:
                self._refused_since = time.monotonic()

    def _is_emptied(self) -> bool:
        with self._writing:
            try:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.BusyError:
                return False
        return True

    def rewrite_log(self) -> None:
        """Write again what an earlier process left in the log: it may not be on the disk.

        Raises:
            OutboxBrokenError: the disk could not write it.
        """
        try:
            with self._disk.used():
                self._write_again()
            self._checkpoint()
        except OutboxBrokenError:
            raise
        except OutboxError:
            pass  # another process uses the file, or the disk is full

    def _write_again(self) -> None:
        """Write the log over itself, and sync it.

        Otherwise a power cut during the checkpoint could leave pages of different commits.
        """
        self._connection.execute("BEGIN IMMEDIATE")  # no other process writes to it meanwhile
        try:
            name = self._connection.filename_wal
            flags = [apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE, 0]
            log = apsw.VFSFile("", name, flags)  # through SQLite, which keeps its locks
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
        """End the thread, after a checkpoint that is under way."""
        self._stopping.set()
        self._due.set()
        self.join()
        self._disk.leave(self._connection)

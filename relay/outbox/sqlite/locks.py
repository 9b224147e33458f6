"""Locks a SQLite outbox, so that one process at most receives into it and one forwards from it.

Each role has a file beside the outbox, and a process that has the role holds a lock on that file.
The kernel releases the lock when the process ends, even after a crash.
"""

import fcntl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final

from relay.errors import OutboxError, OutboxUnusableError
from relay.outbox.entries import Role
from relay.outbox.sqlite.fileformat import beside, opened

_TAKEN: Final = {
    Role.RECEIVER: "another process receives into {}: one can; PostgreSQL takes any number",
    Role.FORWARDER: "another process forwards from {}: one can; PostgreSQL takes any number",
}
_PAUSE_SECONDS: Final = 0.1


class RoleLocks:
    """The roles that this process has, and their locks."""

    def __init__(self, path: Path, elapsed: Callable[[], float]) -> None:
        self._path = path
        self._elapsed = elapsed
        self._locks: dict[Role, BinaryIO] = {}

    def __contains__(self, role: Role) -> bool:
        return role in self._locks

    def acquire(self, role: Role, patience: timedelta) -> None:
        """Take the role until `release`. Only one thread may call this at a time.

        Raises:
            OutboxUnusableError: another process still has the role when the patience is over.
            OutboxError: the file cannot be locked.
        """
        give_up_at = self._elapsed() + patience.total_seconds()
        with ExitStack() as files:
            lock = None
            while role not in self._locks:
                try:
                    lock = lock or files.enter_context(beside(self._path, role).open("ab"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if self._elapsed() >= give_up_at:
                        raise OutboxUnusableError(_TAKEN[role].format(self._path)) from None
                    time.sleep(_PAUSE_SECONDS)
                except OSError as error:
                    raise OutboxError(f"{self._path} cannot be locked: {error.strerror}") from None
                else:
                    self._locks[role] = lock
            files.pop_all()

    def release(self) -> None:
        """Release all roles, so that other processes can take them."""
        for lock in self._locks.values():
            lock.close()


def is_in_use(path: Path) -> bool:
    """Return whether any process receives into the file or forwards from it."""
    with ExitStack() as files, suppress(OSError, OutboxError):
        return not _share(path, files)
    return False


def refuse_use(path: Path, files: ExitStack) -> None:
    """Keep every process out of all roles until the stack is closed.

    Raises:
        OutboxError: a process has one of the roles.
    """
    if not _share(path, files):
        raise OutboxError(f"a relay is using {path}; stop it first")


def _share(path: Path, files: ExitStack) -> bool:
    """Lock each role's file, so that no process can take a role; return whether all were free."""
    for role in Role:
        if lock := opened(beside(path, role), files):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True

"""Which files this process has open, and how many files and connections it may."""

import os
import resource
from contextlib import suppress
from typing import Final

MAX_FILES: Final = 2**16
"""More are of no use; where there is no limit, the system may refuse to be asked for none."""
KEPT_BACK: Final = 100
"""Files that are no connections: of the outbox, its pool, the forwarder's pipes, what is read."""
MAX_CONNECTIONS: Final = 4_000
LEAST_CONNECTIONS: Final = 20

_STANDARD_ERROR: Final = 2


def open_standard_files() -> None:
    """Let descriptors 0 to 2 be open, if only on nothing.

    Where one is closed, the listener, a connection or the event loop would get its number, of which
    C libraries and processes that are started take it that it is a standard file.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(opened, True)  # noqa: FBT003 (as Python's own)
    os.close(opened)


def raise_file_limit() -> None:
    """Let this process, and those that it starts, open as many files as it may let itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections() -> int:
    """How many there may be at once, so that files are left for all else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(min(soft - KEPT_BACK, MAX_CONNECTIONS), LEAST_CONNECTIONS)

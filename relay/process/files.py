"""Sets up the process's file descriptors, and says how many of them connections may use."""

import os
import resource
from contextlib import suppress
from typing import Final

MAX_FILES: Final = 2**16
"""The limit to ask for. More are of no use, and the system may refuse an unlimited number."""
RESERVED_FILES: Final = 100
"""Files that are not connections: the outbox, its pool, the forwarder's pipes, what is read."""
MAX_CONNECTIONS: Final = 4_000
MIN_CONNECTIONS: Final = 20

_STANDARD_ERROR: Final = 2


def open_standard_files() -> None:
    """Open each of the descriptors 0 to 2 that is closed, on /dev/null.

    Otherwise the listener, a connection or the event loop gets its number, and C libraries and
    child processes use it as standard input, output or error.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)  # noqa: FBT003 (Python's own signature)
    os.close(descriptor)


def raise_file_limit() -> None:
    """Raise the limit of open files, for this process and its children, as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(ValueError, OSError):  # the limit stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def max_connections() -> int:
    """Return how many connections may be open at once; the other descriptors are kept for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(min(soft - RESERVED_FILES, MAX_CONNECTIONS), MIN_CONNECTIONS)

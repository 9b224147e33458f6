"""A text stream that nobody who writes to it waits for, because its reader may stall."""

import io
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

MOST_BYTES: Final = 4 * 2**20
"""What may wait to be written: thousands of lines."""
DRAIN_SECONDS: Final = 2.0


class BackgroundWriter(io.TextIOBase):
    """Writes to a descriptor, in order, in a thread of its own.

    What no longer fits is dropped, and so is what cannot be written: the disk under it may be full.

    Each text is one write of the system's, so that up to `PIPE_BUF` bytes of it stay together on a
    pipe that other processes write to.

    Args:
        output: the descriptor.
        dropped: called with how many lines were dropped, whenever some are.
        resumed: called once more can be written, with how many lines were dropped before; in the
            writing thread.
        most_bytes: that may wait to be written.
    """

    encoding = "utf-8"

    def __init__(
        self,
        output: int,
        *,
        dropped: Callable[[int], object] = lambda _: None,
        resumed: Callable[[int], object] = lambda _: None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._output = output
        self._dropped = dropped
        self._resumed = resumed
        self._most_bytes = most_bytes
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        # A handler of a signal may write while its thread is writing.
        self._lock = threading.RLock()
        self._waiting_bytes = 0
        self._dropped_lines = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Have it written soon, or drop it; returns at once."""
        piece = text.encode(errors="backslashreplace")
        with self._lock:
            fits = self._waiting_bytes + len(piece) <= self._most_bytes
            if fits:
                self._waiting_bytes += len(piece)
                self._waiting.put(piece)
        if not fits:
            self._drop(piece)
        return len(text)

    def writable(self) -> bool:
        """Yes."""
        return True

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._output)

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Wait until what was written so far is out, or its reader has had so much time."""
        out = threading.Event()
        self._waiting.put(out)
        out.wait(seconds)

    def _write_all(self) -> None:
        while True:
            piece = self._waiting.get()
            if isinstance(piece, threading.Event):
                piece.set()
                continue
            try:
                self._write_piece(piece)
            except OSError:
                self._drop(piece)
                written = False
            else:
                written = True
            with self._lock:
                self._waiting_bytes -= len(piece)
                # While little fits, each line about it would take the place of another one.
                tell = written and self._waiting_bytes <= self._most_bytes // 2
                lines = self._dropped_lines if tell else 0
                self._dropped_lines -= lines
            if lines:
                self._resumed(lines)

    def _write_piece(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._output, piece) :]
            except BlockingIOError:  # somebody who shares the pipe has set it so
                poller = select.poll()
                poller.register(self._output, select.POLLOUT)
                poller.poll()

    def _drop(self, piece: bytes) -> None:
        lines = piece.count(b"\n")
        with self._lock:
            self._dropped_lines += lines
        self._dropped(lines)

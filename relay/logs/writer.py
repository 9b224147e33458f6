"""Writes a text stream in the background, so that a stalled reader delays no writer."""

import io
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

MAX_WAITING_BYTES: Final = 4 * 2**20
"""The most text that waits: thousands of lines."""
DRAIN_SECONDS: Final = 2.0


class BackgroundWriter(io.TextIOBase):
    """A writer to a descriptor, in order, in a thread of its own.

    Text that no longer fits is dropped, as is text that cannot be written (the disk may be full).

    Each text is one system call, so that up to `PIPE_BUF` bytes of it stay together on a pipe that
    other processes write to.

    Args:
        output: the descriptor.
        dropped: called with the number of lines dropped, each time that some are.
        resumed: called when text fits again, with the number of lines dropped until then; in the
            writing thread.
        max_waiting_bytes: how much text may wait to be written.
    """

    encoding = "utf-8"

    def __init__(
        self,
        output: int,
        *,
        dropped: Callable[[int], object] = lambda _: None,
        resumed: Callable[[int], object] = lambda _: None,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._output = output
        self._dropped = dropped
        self._resumed = resumed
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        # A signal handler may write while the thread that it interrupts is writing.
        self._lock = threading.RLock()
        self._waiting_bytes = 0
        self._dropped_lines = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Queue the text to be written, or drop it; never block."""
        piece = text.encode(errors="backslashreplace")
        with self._lock:
            fits = self._waiting_bytes + len(piece) <= self._max_waiting_bytes
            if fits:
                self._waiting_bytes += len(piece)
                self._waiting.put(piece)
        if not fits:
            self._drop(piece)
        return len(text)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._output)

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Wait until the text so far is written, but at most for so many seconds."""
        written = threading.Event()
        self._waiting.put(written)
        written.wait(seconds)

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
                # While there is little room, a line about dropped lines would displace another.
                has_room = written and self._waiting_bytes <= self._max_waiting_bytes // 2
                lines = self._dropped_lines if has_room else 0
                self._dropped_lines -= lines
            if lines:
                self._resumed(lines)

    def _write_piece(self, piece: bytes) -> None:
        while piece:
            try:
                piece = piece[os.write(self._output, piece) :]
            except BlockingIOError:  # another process that shares the pipe has set it so
                poller = select.poll()
                poller.register(self._output, select.POLLOUT)
                poller.poll()

    def _drop(self, piece: bytes) -> None:
        lines = piece.count(b"\n")
        with self._lock:
            self._dropped_lines += lines
        self._dropped(lines)

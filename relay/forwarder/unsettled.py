"""Keeps the entries that one process has claimed and not settled, and isolates suspects."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from relay.outbox.entries import Entry


class UnsettledEntries:
    """The entries of all destinations that this process has claimed and not settled.

    A suspect is an entry that was claimed at several crashes. It is isolated: forwarded while no
    other entry is claimed. If the process crashes again, the suspect is the cause, and no other
    entry is suspected.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, Entry] = {}
        self._isolated: str | None = None
        self._waiting = 0

    def claim(self, destination: str, take: Callable[[], list[Entry]]) -> list[Entry] | None:
        """Claim entries; None, with nothing claimed, while another destination is isolated."""
        with self._lock:
            if self.is_isolated_from(destination):
                return None
            entries = take()
            self._entries.update((entry.id, entry) for entry in entries)
            return entries

    def is_isolated_from(self, destination: str) -> bool:
        """Return whether the destination may claim nothing, because another one is isolated."""
        return self._isolated not in {None, destination}

    @property
    def has_waiters(self) -> bool:
        """Whether some forwarder waits until no other destination is isolated."""
        return self._waiting > 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note that a forwarder waits until no other destination is isolated."""
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def replace(self, entry: Entry) -> None:
        """Keep the entry with its new claim."""
        self._entries[entry.id] = entry

    def settle(self, entries: Iterable[Entry]) -> None:
        """Forget entries: they are settled."""
        for entry in entries:
            self._entries.pop(entry.id, None)

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self._entries

    def of(self, destination: str) -> list[Entry]:
        """Return the destination's entries."""
        return [entry for entry in [*self._entries.values()] if entry.destination == destination]

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def isolating(self, destination: str) -> Iterator[bool]:
        """Let no other destination claim meanwhile; False if another one is isolated already."""
        with self._lock:
            is_mine = self._isolated is None
            if is_mine:
                self._isolated = destination
        try:
            yield is_mine
        finally:
            if is_mine:
                with self._lock:
                    self._isolated = None

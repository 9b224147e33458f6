"""Puts what can be read of a damaged SQLite outbox into a new one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

from msgspec import Struct

from relay.errors import OutboxError
from relay.outbox.entries import Counts, Query, StoredEntry, total
from relay.outbox.sqlite.damaged import DamagedOutbox
from relay.outbox.sqlite.store import SqliteOutbox

_BATCH_ENTRIES: Final = 500
_BATCH_BYTES: Final = 8 * 2**20


class Salvaged(Struct, frozen=True):
    """The result of a salvage.

    Attributes:
        counts: how many entries the new outbox has in each state.
        broken: how many entries were found, but not whole; they are not in the new outbox.
        torn: how many pages are damaged; they may have held entries that were not found.
    """

    counts: Counts
    broken: int
    torn: int


def salvage_outbox(damaged: Path, new: Path, progress: Callable[[float], object]) -> Salvaged:
    """Copy every entry that can be read into a new file.

    Args:
        damaged: the file. No relay may use it, and it is left as it is.
        new: a path at which there is no file.
        progress: called with the share that has been read, up to 1.

    Raises:
        OutboxError: nothing could be read, and there is no new file; or it could not be written.
    """
    if new.exists():
        raise OutboxError(f"{new} exists already; name a new file")
    with DamagedOutbox(damaged) as source:
        batches = _batches(source.entries())
        first = next(batches, None)
        if first is None:
            raise OutboxError(f"nothing can be read out of {damaged}")
        with closing(SqliteOutbox(new)) as outbox:
            for batch in chain([first], batches):
                outbox.entries.restore(batch)
                progress(source.seen / source.pages)
            broken = [
                id_ for id_ in source.broken if not outbox.entries.count(Query(message_id=id_))
            ]
            return Salvaged(total(outbox.counts()), len(broken), source.torn)


def _batches(entries: Iterable[StoredEntry]) -> Iterator[list[StoredEntry]]:
    batch: list[StoredEntry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.body)
        if len(batch) == _BATCH_ENTRIES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

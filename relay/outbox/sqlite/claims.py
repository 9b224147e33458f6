"""Keeps the claims of the one process that forwards from a SQLite outbox, in its memory.

To mark each claimed row in the file would double what forwarding asks of the disk. What a killed
process had claimed is due again as soon as the next process begins.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from msgspec import Struct, json, structs

from relay.outbox.entries import Entry
from relay.outbox.sqlite.times import from_milliseconds

NO_LINEAGE: Final = 0

_COLUMNS: Final = 7  # of a claimed entry; those about its order come behind them
_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_MOST_RELEASED: Final = 5_000  # claims remembered after their release


class _Claim(Struct, frozen=True):
    """A claim on one entry.

    Attributes:
        number: identifies the claim; a worker with another number cannot settle the entry.
        until: when it ends, in seconds elapsed, because the time of day may be corrected meanwhile.
        attempts: how many claims of the entry there have been, this one included.
        lineage: lineage of the process that sends the entry, if it is a rendered suspect.
    """

    number: int
    until: float
    attempts: int
    lineage: int = NO_LINEAGE


class Claims:
    """The claims on entries for all destinations. One thread may use them at a time.

    The worker that released an entry may still learn that it was delivered. So its claim is kept
    for a while, but not for ever: an outage releases more entries than memory can hold.
    """

    def __init__(self, elapsed: Callable[[], float]) -> None:
        self._elapsed = elapsed
        self._current: dict[int, _Claim] = {}
        self._released: dict[int, _Claim] = {}  # the latest last

    def held(self) -> str:
        """Return the ids of the entries that are still leased, as JSON."""
        now = self._elapsed()
        return _json([id_ for id_, claim in self._current.items() if claim.until > now])

    def prepare(
        self, rows: Iterable[Sequence[Any]], destination: str, lease: timedelta
    ) -> "Prepared":
        """Return the entries of the first rows, as many as fit into memory: see `take`."""
        number = secrets.randbits(62)
        until = self._elapsed() + lease.total_seconds()
        entries, claims, size = [], {}, 0
        for row in rows:
            id_, source, message_id, received_at, attempts, crashes, body = row[:_COLUMNS]
            last = self._last(id_)
            claim = _Claim(number, until, (last.attempts if last else attempts) + 1)
            claims[id_] = claim
            entry = Entry(
                id=id_,
                source=source,
                destination=destination,
                message_id=message_id,
                received_at=from_milliseconds(received_at),
                attempts=claim.attempts,
                claim=number,
                body=body,
                crashes=crashes,
            )
            entries.append(_with_order(entry, *row[_COLUMNS:]) if len(row) > _COLUMNS else entry)
            size += len(body)
            if size >= _MOST_BYTES:
                break
        return Prepared(entries, claims)

    def take(self, prepared: "Prepared") -> None:
        """Claim the prepared entries."""
        self._current |= prepared.claims
        for id_ in prepared.claims:
            self._released.pop(id_, None)

    def begin_post(self, suspect: Entry, lineage: int) -> None:
        """Note which lineage sends a held suspect."""
        claim = self._current[suspect.id]
        self._current[suspect.id] = structs.replace(claim, lineage=lineage)

    def holds(self, entry: Entry) -> bool:
        """Return whether nobody has claimed the entry since."""
        claim = self._last(entry.id)
        return claim is not None and claim.number == entry.claim

    def release(self, entries: Iterable[Entry]) -> None:
        """Make held entries due at once."""
        for entry in entries:
            claim = self._current.pop(entry.id, None) or self._released.pop(entry.id)
            self._released[entry.id] = claim
        while len(self._released) > _MOST_RELEASED:
            del self._released[next(iter(self._released))]

    def forget(self, entries: Iterable[Entry]) -> None:
        """End the claims on entries that are not pending any more."""
        for entry in entries:
            self._current.pop(entry.id, None)
            self._released.pop(entry.id, None)

    def note(self, prepared: "Prepared | None" = None) -> str:
        """Return the claims, those of `prepared` too, as JSON: `[[id, attempts, lineage], ...]`.

        The next process counts a crash against them if this one ends without settling them.
        """
        claims = self._current | (prepared.claims if prepared else {})
        return _json([(id_, claim.attempts, claim.lineage) for id_, claim in claims.items()])

    def _last(self, id_: int) -> _Claim | None:
        return self._current.get(id_) or self._released.get(id_)


def _with_order(entry: Entry, ordered: int, step: int, failing_since: int | None) -> Entry:
    since = None if failing_since is None else from_milliseconds(failing_since)
    return structs.replace(entry, ordered=bool(ordered), step=step, failing_since=since)


class Prepared(Struct, frozen=True):
    """Entries to be claimed, and the claims on them by their ids."""

    entries: list[Entry]
    claims: dict[int, _Claim]


def _json(value: object) -> str:
    return json.encode(value).decode()

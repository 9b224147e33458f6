"""Adds arrivals to a SQLite outbox, and puts entries into their lanes."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Final

import apsw
from msgspec import json

from relay.outbox.entries import Arrival
from relay.outbox.sqlite import statements

_MOST_ROWS: Final = 2_000  # a statement; SQLite takes 32,766 variables


def add(connection: apsw.Connection, arrivals: Sequence[Arrival]) -> list[bool]:
    """See `relay.outbox.protocol.Outbox.add`."""
    ordered = any(arrival.lanes for arrival in arrivals)
    ids: list[int | None] = []
    # Each statement is a transaction by itself, unless an order must be kept.
    with connection if ordered else nullcontext():
        for start in range(0, len(arrivals), _MOST_ROWS):
            ids += _insert(connection, arrivals[start : start + _MOST_ROWS])
        if ordered:
            added = zip(ids, arrivals, strict=True)
            join_lanes(connection, ((id_, each.lanes) for id_, each in added if not each.fault))
    return [id_ is not None for id_ in ids]


def _insert(connection: apsw.Connection, arrivals: Sequence[Arrival]) -> Sequence[int | None]:
    """Store the arrivals; return the id of each entry, None for those that are not new."""
    values = [value for arrival in arrivals for value in statements.arrival_row(arrival)]
    connection.execute(statements.add(len(arrivals)), values)
    count = connection.changes()
    # SQLite numbers the rows of one statement in sequence.
    first = connection.last_insert_rowid() - count + 1
    if count == len(arrivals):
        return range(first, first + count)
    new = {"count": count, "first_id": first}
    rows: list[Any] = connection.execute(statements.NEW, new).fetchall()
    inserted: dict[str, int] = dict(rows)
    # Its copies in the same group are not new.
    return [inserted.pop(arrival.message_id, None) for arrival in arrivals]


def join_lanes(
    connection: apsw.Connection, entries: Iterable[tuple[int | None, Iterable[int]]]
) -> None:
    """Put pending entries at the ends of their lanes.

    Args:
        connection: a connection in a transaction that has also made them pending.
        entries: the id of each entry, and its lanes. One without an id is left out.
    """
    rows = [
        (lane, id_) for id_, lanes in entries if id_ is not None for lane in dict.fromkeys(lanes)
    ]
    if rows:
        connection.execute(statements.JOIN_LANES, {"rows": json.encode(rows).decode()})

"""Turns a query for entries into SQL that the indexes of a SQLite outbox can answer."""

from typing import Any, Final

from msgspec import json

from relay.outbox.entries import Query, State
from relay.outbox.protocol import RARE_COLLECTIONS
from relay.outbox.sqlite.migrations import BLOCK_BITS, IS_RARE
from relay.outbox.sqlite.times import to_milliseconds

IDS: Final = "SELECT value FROM json_each(:ids)"
"""The ids in a list in JSON: see `as_json`."""

_BLOCKS: Final = f"""
    (
        WITH RECURSIVE blocks (block) AS (
            SELECT max(id) >> {BLOCK_BITS} FROM entries
            UNION ALL SELECT block - 1 FROM blocks WHERE block > 0
        )
        SELECT block FROM blocks
    ) CROSS JOIN entries
"""  # noqa: S608 (nothing but a constant is put in)

_EQUALS: Final = {
    "source": "source = :source",
    "destination": "destination = :destination",
    "collection": "collection = :collection",
    "reason": "reason = :reason AND state = 'dead'",  # the index is of these
    "message_id": "message_id = :message_id",
}


def where(query: Query) -> tuple[str, str, dict[str, Any]]:
    """Return the tables to select from, the conditions as SQL, and the values in them."""
    source = "entries"
    conditions = ["TRUE"]
    values: dict[str, Any] = {}
    if query.ids:
        conditions.append(f"entries.id IN ({IDS})")
        values["ids"] = as_json(query.ids)
    if query.states:
        # Literals, so that SQLite uses the index of a single state.
        states = ", ".join(f"'{State(state).value}'" for state in query.states)
        conditions.append(f"state IN ({states})" if len(query.states) > 1 else f"state = {states}")
    if query.key:
        name, values["key"] = query.key
        source = _BLOCKS
        conditions += [f"id >> {BLOCK_BITS} = block", f"{name}_key = :key"]
    if query.keyless:
        conditions.append("user_key IS NULL AND address_key IS NULL AND email_key IS NULL")
    for column, condition in _EQUALS.items():
        if (value := getattr(query, column)) is not None:
            conditions.append(condition)
            values[column] = value
    if query.collection in RARE_COLLECTIONS:
        conditions.append(IS_RARE)
    if query.since:
        conditions.append("received_at >= :since")
        values["since"] = to_milliseconds(query.since)
    if query.until:
        conditions.append("received_at < :until")
        values["until"] = to_milliseconds(query.until)
    return source, " AND ".join(conditions), values


def as_json(value: object) -> str:
    """Return the value as JSON, which a statement can take as a whole."""
    return json.encode(value).decode()

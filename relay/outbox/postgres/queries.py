"""Turns a query for entries into SQL that the indexes of a PostgreSQL outbox can answer."""

from typing import Any, Final

from psycopg import sql

from relay.outbox import rows
from relay.outbox.entries import Query
from relay.outbox.postgres.rows import as_text

BLOCK_BITS: Final = 12
"""Keys are indexed by blocks of 4,096 entries: see the first migration."""

FIND: Final = sql.SQL("""
    SELECT {columns} FROM (
        SELECT *, sum(octet_length(body)) OVER (ORDER BY id {direction}) AS total
        FROM (
            SELECT * FROM {table} WHERE {condition} ORDER BY {order} {direction} LIMIT %(limit)s
        ) AS asked
    ) AS summed
    WHERE total - octet_length(body) < %(bytes)s
    ORDER BY id {direction}
""")

COUNT: Final = sql.SQL("""
    SELECT count(*) FROM {table} WHERE {condition}
""")

COLUMNS: Final = sql.SQL(f"""
    {rows.STORED_ENTRY}, nullif(retry_at, '-infinity'), CASE WHEN blocked IS NOT NULL THEN ARRAY(
        SELECT lane FROM relay.lanes WHERE lanes.entry = summed.id ORDER BY seq
    ) END
""")  # noqa: S608 (nothing but a constant is put in)
"""The columns of a row of `FIND`."""

_BY_KEY: Final = sql.SQL("relay.keys JOIN relay.entries ON id = entry")

# Reads the keys of each entry that is found; with a plain join the planner would read all keys.
_BY_ENTRY: Final = sql.SQL("""
    relay.entries LEFT JOIN LATERAL (
        SELECT * FROM relay.keys WHERE entry = entries.id OFFSET 0
    ) AS keys ON true
""")

_IN_ANY_BLOCK: Final = sql.SQL("""
    entry >> {bits} = ANY (
        ARRAY (SELECT generate_series(0, (SELECT max(id) FROM relay.entries) >> {bits}))
    ) AND {key} = %(key)s
""")

_EQUALS: Final = {
    "source": sql.SQL("source = %(source)s"),
    "destination": sql.SQL("destination = %(destination)s"),
    "collection": sql.SQL("collection = %(collection)s"),
    # Only dead entries have a reason, and the index of reasons holds only those.
    "reason": sql.SQL("reason = %(reason)s AND state = 'dead'"),
    "message_id": sql.SQL("message_id = %(message_id)s"),
}


def table(query: Query) -> sql.SQL:
    """Return the tables to select from, entries and their keys, joined in the best order."""
    return _BY_KEY if query.key else _BY_ENTRY


def where(query: Query) -> tuple[sql.Composable, dict[str, Any]]:
    """Return the query's conditions as SQL, and the values in them."""
    conditions: list[sql.Composable] = [sql.SQL("TRUE")]
    values: dict[str, Any] = {}
    if query.ids:
        conditions.append(sql.SQL("id = ANY (%(ids)s)"))
        values["ids"] = list(query.ids)
    if query.states:
        # Literals, so that the planner uses the index of a single state.
        states = sql.SQL(", ").join(sql.Literal(state.value) for state in query.states)
        conditions.append(sql.SQL("state IN ({})").format(states))
    if query.key:
        name, values["key"] = query.key
        conditions.append(_has_key(name))
    if query.keyless:
        conditions.append(sql.SQL("coalesce(user_key, address_key, email_key) IS NULL"))
    for column, condition in _EQUALS.items():
        if (value := getattr(query, column)) is not None:
            conditions.append(condition)
            values[column] = as_text(value)
    if query.since:
        conditions.append(sql.SQL("received_at >= %(since)s"))
        values["since"] = query.since
    if query.until:
        conditions.append(sql.SQL("received_at < %(until)s"))
        values["until"] = query.until
    return sql.SQL(" AND ").join(conditions), values


def _has_key(name: str) -> sql.Composed:
    bits, key = sql.Literal(BLOCK_BITS), sql.Identifier(f"{name}_key")
    return _IN_ANY_BLOCK.format(bits=bits, key=key)

"""Compares the tables, indexes and triggers of a file with those that relay's migrations make.

A version number is not enough: a build between two releases may have made others under it.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Final, NamedTuple

import apsw

# SQLite puts a table's name in quotes when the table is renamed, also when it is renamed back.
_LITERAL_OR_SPACE: Final = re.compile(
    r"('(?:[^']|'')*'|\"(?!\w+\")(?:[^\"]|\"\")*\")|\"(\w+)\"|(?:--[^\n]*|/\*.*?\*/|\s)+",
    re.DOTALL,
)


class _Object(NamedTuple):
    """A table, index, trigger or view. Its name begins with its type: `index entries_dead`."""

    name: str
    table: str
    sql: str


def differences(connection: apsw.Connection, migrations: tuple[str, ...]) -> list[str]:
    """Return a few words for each difference between the file and what the migrations make.

    Added tables, views and indexes are no difference. A trigger or a unique index on one of relay's
    tables is one: it changes what relay's writes do.
    """
    made = _made(migrations)
    found = {each.name: each for each in _objects(connection)}
    tables = {each.table for each in made.values()}
    missing = [f"{name} is missing" for name in made if name not in found]
    changed = [f"{name} differs" for name in made if name in found and found[name] != made[name]]
    added = [
        f"{name} is not relay's"
        for name, each in found.items()
        if name not in made
        and each.table in tables
        and each.sql.startswith(("CREATE TRIGGER", "CREATE UNIQUE"))
    ]
    return missing + changed + added


@cache
def _made(migrations: tuple[str, ...]) -> dict[str, _Object]:
    connection = apsw.Connection(":memory:")
    for migration in migrations:
        connection.execute(migration)
    made = {each.name: each for each in _objects(connection)}
    connection.close()
    return made


def _objects(connection: apsw.Connection) -> Iterator[_Object]:
    for type_, name, table, sql in connection.execute(_SCHEMA):
        text = _LITERAL_OR_SPACE.sub(lambda part: part[1] or part[2] or " ", sql)
        yield _Object(f"{type_} {name}", table, text)


# What SQLite makes by itself has no SQL, or a reserved name: the statistics of ANALYZE.
_SCHEMA: Final = """
    SELECT type, name, tbl_name, sql FROM sqlite_schema
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
"""

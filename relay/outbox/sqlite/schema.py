"""Creates the schema of a SQLite outbox, migrates it, or refuses the file."""

from pathlib import Path
from typing import Final

import apsw

from relay.errors import OutboxError, OutboxMissingError, OutboxUnusableError
from relay.outbox.sqlite.locks import is_in_use
from relay.outbox.sqlite.migrations import MIGRATIONS
from relay.outbox.sqlite.shape import differences

MARK: Final = 0x52_4C_41_59
"""The file's application_id: "RLAY"."""


def migrate(connection: apsw.Connection, path: Path, *, create: bool) -> None:
    """Migrate the file to this version, completely or not at all.

    Args:
        connection: a connection to the file; see `configure`.
        path: path of the file.
        create: whether an empty file may become an outbox.

    Raises:
        OutboxMissingError: the file is empty, and may not become an outbox.
        OutboxError: an older relay, which knows only the old tables, is using the file.
        OutboxUnusableError: the file belongs to another program or a newer relay, or its tables are
            not those of its version; nothing has been written to it.
    """
    _refuse_others(connection, path, create=create)
    connection.pragma("journal_mode", "wal")
    if connection.pragma("user_version") == len(MIGRATIONS):
        return  # nothing is written, so that a full disk does not keep a file from being opened
    with connection:
        version: int = connection.pragma("user_version")
        if 0 < version < len(MIGRATIONS) and is_in_use(path):
            # By a relay that knows the old tables only: one of this version would have migrated.
            raise OutboxError(f"an older relay is using {path}; stop it first")
        for migration in MIGRATIONS[version:]:
            connection.execute(migration)
        connection.pragma("application_id", MARK)
        connection.pragma("user_version", len(MIGRATIONS))


def _refuse_others(connection: apsw.Connection, path: Path, *, create: bool) -> None:
    connection.execute("BEGIN DEFERRED")  # another process may be about to migrate the file
    try:
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
        if tables and connection.pragma("application_id") != MARK:
            raise OutboxUnusableError(f"{path} is a SQLite file of some other program")
        if not tables and not create:
            raise OutboxMissingError(f"{path} is empty")
        version: int = connection.pragma("user_version")
        if version > len(MIGRATIONS):
            raise OutboxUnusableError(f"{path} was written by a newer relay")
        if differing := differences(connection, MIGRATIONS[:version]):
            raise OutboxUnusableError(
                f"{path} does not have the tables of version {version}, which it claims to have"
                f" ({', '.join(differing)}); another build of relay has made it, or someone has"
                " changed it. It is left as it is: have the relay that wrote it forward what"
                f" waits, or run `relay salvage {path} NEW`, and start this one on a new file"
            )
    finally:
        connection.execute("ROLLBACK")

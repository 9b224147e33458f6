"""Creates the schema of a PostgreSQL outbox, migrates it, or refuses it."""

from typing import Any, Final

import psycopg

from relay.errors import OutboxMissingError, OutboxUnusableError
from relay.outbox.postgres.connection import is_exposed, is_hopeless
from relay.outbox.postgres.migrations import MIGRATIONS
from relay.outbox.postgres.privileges import refuse_untrusted_roles
from relay.outbox.postgres.sessions import Session, line, settings
from relay.outbox.postgres.shape import differences

_MIGRATION_LOCK: Final = 0x52_4C_41_59  # "RLAY", among the database's advisory locks
_MIGRATION_SECONDS: Final = 3600.0  # it may read a large table, or wait for a process that does


def prepare(parameters: dict[str, Any], *, create: bool) -> bool:
    """Migrate the schema to this version.

    Args:
        parameters: connection parameters.
        create: create the schema if there is none.

    Returns:
        Whether others can read what relay sends to the server; see `is_exposed`.

    Raises:
        psycopg.Error: the server cannot be reached now.
        OutboxMissingError: there is no schema, and none is to be created.
        OutboxUnusableError: the server refuses relay or is not durable, or the schema is not
            relay's.
    """
    try:
        with Session.connect(**parameters) as session:
            _refuse_unsynced(session)
            _migrate(session, create=create)
            return is_exposed(session)
    except psycopg.ProgrammingError as error:  # something is missing, or not permitted
        raise OutboxUnusableError(f"PostgreSQL: {line(error)}") from error
    except psycopg.OperationalError as error:
        if is_hopeless(error):
            raise OutboxUnusableError(f"PostgreSQL: {line(error)}") from error
        raise


def _refuse_unsynced(session: Session) -> None:
    row: Any = session.execute("SHOW fsync").fetchone()
    if row[0] != "on":
        raise OutboxUnusableError("PostgreSQL runs with fsync=off: what it commits may be lost")


def _migrate(session: Session, *, create: bool) -> None:
    with session.transaction():
        session.execute(settings(flushed=True, seconds=session.seconds))
        version = _version(session)
        if version == len(MIGRATIONS):
            _refuse_differences(session, version)
            return
    if not version and not create:
        raise OutboxMissingError("the database has no schema relay")
    with session.transaction():
        session.seconds = _MIGRATION_SECONDS
        session.execute(settings(flushed=True, seconds=session.seconds))
        # Until the transaction ends: processes that start together do it one after the other.
        session.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        session.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        version = _version(session)
        if version:
            _refuse_differences(session, version)
        else:
            _begin(session)
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            session.execute(migration)
            session.execute("INSERT INTO relay.migrations VALUES (%s)", (number,))


def _version(session: Session) -> int:
    """Return the version of the schema, once it is known to be relay's; 0 if there is none."""
    refuse_untrusted_roles(session)  # first: a view with a table's name may run code
    row: Any = session.execute("SELECT to_regclass('relay.migrations') IS NULL").fetchone()
    if row[0]:
        return 0
    row = session.execute("SELECT coalesce(max(version), 0) FROM relay.migrations").fetchone()
    version: int = row[0]
    if version > len(MIGRATIONS):
        raise OutboxUnusableError("the schema relay was written by a newer relay")
    return version


def _begin(session: Session) -> None:
    # CREATE SCHEMA IF NOT EXISTS demands the right to make one even if there is one.
    row: Any = session.execute("SELECT to_regnamespace('relay') IS NULL").fetchone()
    if row[0]:
        session.execute("CREATE SCHEMA relay")
    session.execute(
        "CREATE TABLE IF NOT EXISTS relay.migrations (version integer PRIMARY KEY,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )


def _refuse_differences(session: Session, version: int) -> None:
    if differing := differences(session, version):
        raise OutboxUnusableError(
            f"the schema relay does not have the tables of version {version}, which it claims to"
            f" have ({', '.join(differing)}); another build of relay has made it, or someone has"
            " changed it. It is left as it is: have the relay that wrote it forward what waits, and"
            " start this one on a new database"
        )

"""Opens sessions with the server; only relay's own code runs in them, and every wait has a limit.

Every transaction begins with settings that hold until it ends. They are sent together with its
first statement. So a session has no state of its own, as PgBouncer in transaction mode demands.

- The search path contains only PostgreSQL's own schema. Otherwise a function or an operator that
  somebody else has created in `public`, with argument types that fit better, would replace
  PostgreSQL's and run with relay's rights.
- The server cancels a statement that takes too long, so that statements do not pile up there.
- `synchronous_commit` is not off in a transaction that must be flushed, whatever the default is.

The settings cost 80 µs a statement. Functions in relay's schema could set the search path for less,
but not the other two, and each change of a statement would need a migration.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, LiteralString

import psycopg
from psycopg import errors, sql
from psycopg.abc import RV, PQGen
from psycopg_pool import ConnectionPool, PoolTimeout

from relay.errors import OutboxError

SHORT_SECONDS: Final = 4.0
"""How long the server may take for a statement that a sender or a forwarder waits for."""
LONG_SECONDS: Final = 60.0
"""How long it may take for a step of an operator's command, or in the background."""

_ANSWER_SECONDS: Final = 1.0  # for the server's own cancellation to arrive
_CANCEL_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 1.0
_CONNECTIONS: Final = 6  # a claim, four posts to settle, and one for all else
_WAIT_SECONDS: Final = 1.5  # for a connection, while the server is away: senders wait meanwhile


LOCK_LANES: Final = "SELECT relay.lock_lanes()"
"""Locks the lanes until the transaction ends; the first statement of each that may change them.

Otherwise two transactions could wait for each other: one has the lock and needs a row, and the
other has the row.
"""


class BrokenError(psycopg.OperationalError):
    """The connection was lost; the statement may or may not have been carried out."""


class Session(psycopg.Connection[Any]):
    """A connection to the server that closes itself if no answer comes in time.

    A limit on the server alone is not enough. A proxy may keep a connection open for ever and send
    nothing, also when the machine behind it has disappeared.

    Attributes:
        seconds: how long the server may take for a statement; a second later the session gives up.
    """

    seconds: float = SHORT_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Wait for the server; see `psycopg.Connection.wait`, through which all waits go."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.seconds + _ANSWER_SECONDS)
        except errors._WaitTimeout as error:  # noqa: SLF001 (it has no public name)
            self._leave()
            raise BrokenError("the server does not answer in time") from error

    def _leave(self) -> None:
        """Close the connection without waiting for the server."""
        # A server that waits for a lock or a standby must not go on when nobody wants the result.
        with suppress(psycopg.Error):
            self.cancel_safe(timeout=_CANCEL_SECONDS)
        self.pgconn.finish()

    def cut(self) -> None:
        """Break the connection, even while another thread waits for the server on it."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)


class Sessions:
    """A pool of sessions.

    Args:
        parameters: connection parameters.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._pool = ConnectionPool(
            kwargs=parameters,
            connection_class=Session,
            configure=_ignore_notifications,
            min_size=1,
            max_size=_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            # After a failed attempt the pool does not try again by itself; the next use does.
            # Otherwise it pauses for up to minutes, although the server may be back.
            reconnect_timeout=1,
            num_workers=1,
            open=True,
        )
        self._used: set[Session] = set()

    def run(
        self,
        statement: LiteralString | sql.Composed,
        values: dict[str, Any],
        *,
        flushed: bool = False,
        in_lanes: bool = False,
        seconds: float = SHORT_SECONDS,
    ) -> list[Any]:
        """Run one statement, a transaction by itself; return its rows, if it has any.

        Args:
            statement: SQL, with `%(name)s` for values.
            values: the values by their names.
            flushed: whether the changes must be on disk when this returns.
            in_lanes: whether the statement may change lanes: see `LOCK_LANES`.
            seconds: how long the server may take.
        """
        with translated(), self._session(seconds) as session:
            with session.pipeline():  # without a BEGIN, what is sent together is one transaction
                session.execute(settings(flushed=flushed, seconds=seconds))
                if in_lanes:
                    session.execute(LOCK_LANES)
                cursor = session.execute(statement, values, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def transaction(
        self, *, flushed: bool = False, seconds: float = SHORT_SECONDS
    ) -> Iterator[Session]:
        """Yield a session in a transaction; the arguments are those of `run`."""
        with translated(), self._session(seconds) as session, session.transaction():
            session.execute(settings(flushed=flushed, seconds=seconds))
            yield session

    def close(self) -> None:
        """Close all sessions; statements that still wait for the server fail at once."""
        self._pool.close(_CLOSE_SECONDS)
        for session in list(self._used):
            session.cut()

    @contextmanager
    def _session(self, seconds: float) -> Iterator[Session]:
        """Yield a session of the pool; one that breaks or cannot write is not used again."""
        with self._pool.connection() as session:
            session.seconds = seconds
            self._used.add(session)
            try:
                yield session
            except errors.ReadOnlySqlTransaction:
                # A server that was demoted keeps its connections; a new one finds the new primary.
                session.close()
                raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not session.broken and not session.closed:
                    raise
                session.close()
                self._pool.drain()  # the others have most likely broken too
                raise BrokenError(*error.args) from error
            finally:
                self._used.discard(session)


@cache
def settings(*, flushed: bool, seconds: float) -> bytes:
    """Return a statement that makes the settings for its transaction."""
    durability = (
        "pg_catalog.replace(pg_catalog.current_setting('synchronous_commit'), 'off', 'on')"
        if flushed
        else "'off'"
    )
    return f"""
        SELECT
            pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true),
            pg_catalog.set_config('statement_timeout', '{seconds * 1000:.0f}', true),
            pg_catalog.set_config('synchronous_commit', {durability}, true)
    """.encode()


@contextmanager
def translated() -> Iterator[None]:
    """Raise psycopg's errors as OutboxError."""
    try:
        yield
    except PoolTimeout as error:
        raise OutboxError("PostgreSQL cannot be reached") from error
    except psycopg.Error as error:
        raise OutboxError(f"PostgreSQL: {line(error)}") from error


def line(error: psycopg.Error) -> str:
    """Return the error's first line; the others may hold values."""
    text = error.diag.message_primary or str(error)
    return text.partition("\n")[0]


def _ignore_notifications(session: Session) -> None:
    """Make a shared session ignore notifications, which are not for it."""
    # Behind PgBouncer the listener's LISTEN stays on a session that others share.
    session.add_notify_handler(lambda _: None)

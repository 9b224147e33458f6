"""Sessions with the server: on each, nothing of anyone else's runs, and nothing waits for ever.

Every transaction begins with settings that hold until it ends, sent together with its first
statement. So a session has no state of its own, as PgBouncer in transaction mode demands.

- The search path has nothing in it but PostgreSQL's own schema. Otherwise a function or an operator
  that somebody else has made in `public`, with argument types that fit better, would be called in
  place of PostgreSQL's, with relay's rights.
- The server cancels a statement that takes too long, and so does not gather them.
- `synchronous_commit`: whatever the server's default is, what must be flushed is.

Functions that are called by their whole names would have fixed the path, too, but not the others,
and each statement would have become a migration. This costs 80 µs a statement.
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
"""How long the server may take for a statement of those that somebody waits for."""
LONG_SECONDS: Final = 60.0
"""How long it may take for a step of an operator's command, or in the background."""

_ANSWER_SECONDS: Final = 1.0  # later than that, what the server cancels itself is not awaited
_CANCEL_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 1.0
_CONNECTIONS: Final = 6  # a claim, four posts to settle, and one for who asks
_WAIT_SECONDS: Final = 1.5  # for a connection, while the server is away: senders wait meanwhile


class BrokenError(psycopg.OperationalError):
    """The connection is gone; whether the statement has been carried out is not known."""


class Session(psycopg.Connection[Any]):
    """A connection to the server; one that does not answer in time is closed.

    A limit on the server alone would not do: a proxy, or a machine that has gone away behind one,
    may keep a connection open for ever and send nothing.

    Attributes:
        seconds: how long the server may take for a statement; a little later it is not awaited.
    """

    seconds: float = SHORT_SECONDS

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """See `psycopg.Connection.wait`, through which all communication goes."""
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.seconds + _ANSWER_SECONDS)
        except errors._WaitTimeout as error:  # noqa: SLF001 (it has no public name)
            self._leave()
            raise BrokenError("the server does not answer in time") from error

    def _leave(self) -> None:
        """Close the connection without waiting for the server."""
        # A server that is there, and waits for a lock or a standby, must not go on for nobody.
        with suppress(psycopg.Error):
            self.cancel_safe(timeout=_CANCEL_SECONDS)
        self.pgconn.finish()

    def cut(self) -> None:
        """Break the connection under whoever waits for the server in another thread."""
        with suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(self.fileno())) as own:
            own.shutdown(socket.SHUT_RDWR)


class Sessions:
    """A pool of them.

    Args:
        parameters: how to connect.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._pool = ConnectionPool(
            kwargs=parameters,
            connection_class=Session,
            configure=_ignore_notifications,
            min_size=1,
            max_size=_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            # An attempt that fails is given up, and whoever asks next begins another one: otherwise
            # the pool would wait for up to minutes while the server is back.
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
        seconds: float = SHORT_SECONDS,
    ) -> list[Any]:
        """Run one statement, which is a transaction by itself.

        Args:
            statement: with `%(name)s` for values.
            values: by their names.
            flushed: what it writes is on disk when this returns.
            seconds: how long the server may take.

        Returns:
            The rows, if it returns any.
        """
        with translated(), self._session(seconds) as session:
            with session.pipeline():  # without a BEGIN, what is sent together is one transaction
                session.execute(settings(flushed=flushed, seconds=seconds))
                cursor = session.execute(statement, values, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def transaction(
        self, *, flushed: bool = False, seconds: float = SHORT_SECONDS
    ) -> Iterator[Session]:
        """A session in a transaction; its arguments are those of `run`."""
        with translated(), self._session(seconds) as session, session.transaction():
            session.execute(settings(flushed=flushed, seconds=seconds))
            yield session

    def close(self) -> None:
        """Close all; what still waits for the server fails at once."""
        self._pool.close(_CLOSE_SECONDS)
        for session in list(self._used):
            session.cut()

    @contextmanager
    def _session(self, seconds: float) -> Iterator[Session]:
        """One of the pool; one that has broken, or cannot write, does not go back."""
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
    """A statement that makes the settings of the transaction it is in."""
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
    """Raise psycopg's errors as relay's."""
    try:
        yield
    except PoolTimeout as error:
        raise OutboxError("PostgreSQL cannot be reached") from error
    except psycopg.Error as error:
        raise OutboxError(f"PostgreSQL: {line(error)}") from error


def line(error: psycopg.Error) -> str:
    """What it says, without the details, which may hold values."""
    said = error.diag.message_primary or str(error)
    return said.partition("\n")[0]


def _ignore_notifications(session: Session) -> None:
    """Let a session that is shared receive what it did not ask for."""
    # Behind PgBouncer the bell's LISTEN stays on sessions that others share.
    session.add_notify_handler(lambda _: None)

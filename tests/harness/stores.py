"""Outboxes as their stores hold them, read without relay's own code."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import apsw

from tests.harness.postgres import query

_STORED = """
    SELECT source, message_id, state, {due_at}, attempts, reason, detail, body
    FROM entries ORDER BY id
"""


@dataclass(frozen=True)
class StoredRow:
    """A row of the table `entries`.

    Attributes:
        due_at: in epoch milliseconds.
    """

    source: str
    message_id: str
    state: str
    due_at: int | None
    attempts: int
    reason: str | None
    detail: str | None
    body: bytes


class Store(Protocol):
    """The store of an outbox, read and changed behind relay's back."""

    @property
    def url(self) -> str:
        """The value of `RELAY_OUTBOX_URL`."""
        ...

    @property
    def logs(self) -> Path:
        """The directory for the logs of the relays that use it."""
        ...

    def stored(self) -> list[StoredRow]:
        """Return every entry, oldest first."""
        ...

    def run_sql(self, statement: str) -> list[Any]:
        """Run a statement on its tables; return the rows."""
        ...


@dataclass(frozen=True)
class SqliteStore:
    """See `Store`."""

    path: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    @property
    def logs(self) -> Path:
        return self.path.parent

    def stored(self) -> list[StoredRow]:
        return [StoredRow(*row) for row in self.run_sql(_STORED.format(due_at="pending_since"))]

    def run_sql(self, statement: str) -> list[Any]:
        """See `Store`. Two builds of SQLite in one process would drop each other's file locks."""
        with closing(apsw.Connection(str(self.path))) as connection:
            connection.set_busy_timeout(10_000)
            return connection.execute(statement).fetchall()


@dataclass(frozen=True)
class PostgresStore:
    """See `Store`."""

    url: str
    logs: Path

    def stored(self) -> list[StoredRow]:
        milliseconds = "(extract(epoch FROM due_at) * 1000)::bigint"
        return [StoredRow(*row) for row in self.run_sql(_STORED.format(due_at=milliseconds))]

    def run_sql(self, statement: str) -> list[Any]:
        return query(self.url, statement, search_path="relay")


def pending(store: Store) -> int:
    """Return how many entries are pending."""
    ((count,),) = store.run_sql("SELECT count(*) FROM entries WHERE state = 'pending'")
    return int(count)


def stored(outbox: Path) -> list[StoredRow]:
    """Return every entry of the SQLite outbox, oldest first."""
    return SqliteStore(outbox).stored()


def run_sql(outbox: Path, statement: str) -> list[Any]:
    """Run a statement on a SQLite outbox; return the rows."""
    return SqliteStore(outbox).run_sql(statement)

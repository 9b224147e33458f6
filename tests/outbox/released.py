"""Outboxes as released versions of relay left them, which every later version must open.

`released/<store>-<version>.sql` makes the outbox of a relay that was killed during its work: with
entries in every state, their histories, counters, finished operations, and claims. The version is
the number of the store's migrations. A fixture is never changed, nor is a migration that has one.

How to add the next one, at a release with a new migration: run `python -m tests.outbox.released`,
which writes what is missing for today's versions, and raise the number in `LATEST`. The tests in
test_released.py take every file.
"""

import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import psycopg

from relay.outbox.postgres import migrations as postgres_migrations
from relay.outbox.sqlite.migrations import MIGRATIONS as SQLITE_MIGRATIONS
from relay.outbox.sqlite.schema import MARK
from tests.cli.desk import Desk, webhook
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import PostgresStore, SqliteStore, Store

LATEST = {"sqlite": 1, "postgres": 2}
"""The versions of the latest release."""

RELEASED = Path(__file__).with_name("released")

REFUSED = "refused"
"""The campaign of events that Segment refused."""
DELIVERED = [webhook("ann"), webhook("ben", kind="sent"), webhook("ben", kind="bounced")]
REJECTED = [webhook("ann", 1, campaign={"name": REFUSED})]
REPLAYED = [webhook("cay", 1, campaign={"name": "replayed"})]
UNUSABLE = [webhook("ann", 2, kind="snoozed"), b"no JSON"]
ERASED = [webhook("gone")]
PENDING = [webhook("dan", number) for number in range(3)]


def fixtures(store: str) -> list[int]:
    """Return the versions of the store's fixtures, oldest first."""
    return sorted(int(file.stem.partition("-")[2]) for file in RELEASED.glob(f"{store}-*.sql"))


def load(store: Store, version: int) -> None:
    """Make a released version's outbox in an empty store."""
    if isinstance(store, SqliteStore):
        with closing(apsw.Connection(str(store.path))) as connection:
            connection.execute(_file("sqlite", version).read_text())
    else:
        with psycopg.connect(store.url, autocommit=True) as session:
            session.execute(_file("postgres", version).read_bytes())


def _file(store: str, version: int) -> Path:
    return RELEASED / f"{store}-{version}.sql"


def work(store: Store) -> None:
    """Have a relay do all kinds of work with the store, and kill it."""
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        desk = Desk(store, relay, segment, refused={REFUSED, "replayed"})
        desk.delivered(*DELIVERED, *REJECTED, *REPLAYED, *ERASED)
        for body in UNUSABLE:
            assert relay.post(body).content["status"] == "dead"
        desk.refused.remove("replayed")
        desk.run("replay", "--user-id", "user-cay", "--state", "dead", "--yes")
        desk.settle()
        desk.run("erase", "--user-id", "user-gone", "--yes")
        segment.judge = lambda _batch: Answer(503)
        desk.post(*PENDING)
        assert within(
            20, lambda: bool(store.run_sql("SELECT 1 FROM history WHERE detail LIKE '5%'"))
        )


def _dump_sqlite(store: SqliteStore) -> str:
    """Return the store as a script. Triggers come last, so that they count nothing twice."""
    with closing(apsw.Connection(str(store.path))) as connection:
        objects: list[Any] = connection.execute(
            "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid"
        ).fetchall()
        version = connection.pragma("user_version")
        lines = [
            f"PRAGMA application_id = {MARK};",
            f"PRAGMA user_version = {version};",
        ]
        lines += [f"{sql};" for type_, _, sql in objects if type_ == "table"]
        for type_, name, _ in objects:
            if type_ == "table":
                for row in connection.execute(f"SELECT * FROM {name}"):  # noqa: S608 (relay's own)
                    values = ", ".join(map(apsw.format_sql_value, row))
                    lines.append(f"INSERT INTO {name} VALUES ({values});")  # noqa: S608 (as above)
        lines += [f"{sql};" for type_, _, sql in objects if type_ != "table"]
    return "\n".join(lines) + "\n"


def _dump_postgres(server: PostgresServer, store: PostgresStore) -> str:
    """Return the store as a script without psql's own commands."""
    dumped = subprocess.run(  # noqa: S603 (PostgreSQL's own program)
        [
            *(server.programs / "pg_dump", "--schema=relay", "--inserts", "--no-owner"),
            *("--no-comments", f"--dbname={store.url}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in dumped.splitlines() if line and not line.startswith(("\\", "--"))]
    return "\n".join(lines) + "\n"


def _write(store: str, version: int, dump: Callable[[], str]) -> None:
    file = _file(store, version)
    if not file.exists():
        file.write_text(dump())
        print(file)  # noqa: T201 (it is run by hand)


def main() -> None:
    """Write the fixtures of today's versions, unless they are there."""
    RELEASED.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, PostgresServer() as server:
        sqlite = SqliteStore(Path(directory) / "relay.db")
        postgres = PostgresStore(server.create_database(), Path(directory))

        def of_sqlite() -> str:
            work(sqlite)
            return _dump_sqlite(sqlite)

        def of_postgres() -> str:
            work(postgres)
            return _dump_postgres(server, postgres)

        _write("sqlite", len(SQLITE_MIGRATIONS), of_sqlite)
        _write("postgres", len(postgres_migrations.MIGRATIONS), of_postgres)


if __name__ == "__main__":
    main()

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.desk import Desk
from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import PostgresStore, RelayProcess, SqliteStore, Store


@contextmanager
def _at_work(store: Store) -> Iterator[Desk]:
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)
        relay.end()


@pytest.fixture(scope="session")
def sqlite_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One relay on SQLite for all tests of the tools."""
    with _at_work(SqliteStore(tmp_path_factory.mktemp("sqlite") / "relay.db")) as desk:
        yield desk


@pytest.fixture(scope="session")
def postgres_desk(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """One relay on PostgreSQL for all tests of the tools."""
    url = postgres.create_database()
    with _at_work(PostgresStore(url, tmp_path_factory.mktemp("postgres"))) as desk:
        yield desk
    postgres.drop_database(url)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest) -> Desk:
    """Each of them in turn. Nothing is pending when a test begins; its recipients are its own."""
    desk: Desk = request.getfixturevalue(f"{request.param}_desk")
    return desk

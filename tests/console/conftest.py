from collections.abc import Iterator

import pytest

from tests.cli.desk import Desk
from tests.console.client import at_work
from tests.harness.postgres import PostgresServer
from tests.harness.stores import PostgresStore, SqliteStore


@pytest.fixture(scope="module")
def sqlite_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One relay on SQLite for all tests of a module."""
    yield from at_work(SqliteStore(tmp_path_factory.mktemp("sqlite") / "relay.db"))


@pytest.fixture(scope="module")
def postgres_desk(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """One relay on PostgreSQL for all tests of a module."""
    url = postgres.create_database()
    yield from at_work(PostgresStore(url, tmp_path_factory.mktemp("postgres")))
    postgres.drop_database(url)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest) -> Desk:
    """Either relay; the recipients of each test are its own."""
    desk: Desk = request.getfixturevalue(f"{request.param}_desk")
    return desk

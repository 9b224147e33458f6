from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.desk import Desk
from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import RelayProcess
from tests.harness.stores import PostgresStore, SqliteStore, Store


@contextmanager
def _running_desk(store: Store) -> Iterator[Desk]:
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)
        relay.end()


@pytest.fixture(scope="session")
def sqlite_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Return one relay on SQLite for all tests of the commands."""
    with _running_desk(SqliteStore(tmp_path_factory.mktemp("sqlite") / "relay.db")) as desk:
        yield desk


@pytest.fixture(scope="session")
def postgres_desk(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    """Return one relay on PostgreSQL for all tests of the commands."""
    url = postgres.create_database()
    with _running_desk(PostgresStore(url, tmp_path_factory.mktemp("postgres"))) as desk:
        yield desk
    postgres.drop_database(url)


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def desk(request: pytest.FixtureRequest) -> Desk:
    """Return each desk in turn. Nothing is pending on it; each test has its own recipients."""
    desk: Desk = request.getfixturevalue(f"{request.param}_desk")
    return desk

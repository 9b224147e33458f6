"""PostgreSQL databases for the tests of its outbox."""

from collections.abc import Iterator

import pytest

from relay.outbox.postgres.store import PostgresOutbox
from tests.harness.postgres import PostgresServer, database_of


@pytest.fixture(scope="session")
def migrated(postgres: PostgresServer) -> str:
    """The name of a database with an empty outbox: to copy it is quicker than to migrate."""
    url = postgres.create_database()
    PostgresOutbox(url).close()
    return database_of(url)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)

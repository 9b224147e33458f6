from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
from coverage import Coverage
from hypothesis import settings

import relay
from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.stores import PostgresStore, SqliteStore, Store

_FAULTS = Path(__file__).parent / "faults"

pytest.register_assert_rewrite("tests.contracts")
# A machine shared with others stalls now and then: how long an example takes says nothing.
settings.register_profile("relay", deadline=None)
settings.load_profile("relay")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make faults` tries each fault many times, `make test` a few times."""
    parser.addoption("--long", action="store_true", help="try each fault many times")


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How often to try a fault: the first number, or the second one with `--long`."""
    long: bool = request.config.getoption("--long")
    return lambda few, many: many if long else few


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests, started when the first of them asks for it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def sqlite_store(tmp_path: Path) -> SqliteStore:
    """A file that nobody has made yet."""
    return SqliteStore(tmp_path / "relay.db")


@pytest.fixture
def postgres_store(postgres: PostgresServer, tmp_path: Path) -> Iterator[PostgresStore]:
    """An empty database."""
    url = postgres.create_database()
    yield PostgresStore(url, tmp_path)
    postgres.drop_database(url)


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the stores."""
    kind: str = request.param
    return kind


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest) -> Store:
    """An outbox of each kind that nobody has opened yet."""
    store: Store = request.getfixturevalue(f"{kind}_store")
    return store


@pytest.fixture
def server() -> Iterator[SegmentServer]:
    """A stand-in for Segment."""
    with SegmentServer() as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark the tests that `make check` leaves out."""
    if item.path.is_relative_to(_FAULTS):
        item.add_marker("fault")
    fixtures: set[str] = {*getattr(item, "fixturenames", ())}
    parameters: str = item.callspec.id if hasattr(item, "callspec") else ""
    if "postgres" in fixtures or "postgres" in parameters.lower():
        item.add_marker("postgres")
    if "browser" in fixtures:
        item.add_marker("browser")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Measure no collection of tests, but what relay's modules do when they are imported."""
    coverage = Coverage.current()
    if coverage is None or session.config.getoption("numprocesses", None):  # workers collect
        return (yield)
    for module in walk_packages(relay.__path__, f"{relay.__name__}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure coverage in quick tests only: it would double the time of the others."""
    coverage = Coverage.current()
    measured = not (item.get_closest_marker("slow") or item.get_closest_marker("fault"))
    if coverage is None or measured:
        return (yield)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of the slow tests, so that none is left for the end.

    At first each worker gets an equal part of the list, from its beginning to its end.
    """
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    size = -(-len(items) // workers)
    ordered: list[pytest.Item] = []
    for number in range(workers):
        share = slow[number::workers]
        room = size - len(share)
        ordered += share + quick[:room]
        quick = quick[room:]
    items[:] = ordered + quick

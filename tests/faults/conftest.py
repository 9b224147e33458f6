import pytest

from tests.harness.processes import Store


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the stores."""
    kind: str = request.param
    return kind


@pytest.fixture
def store(kind: str, request: pytest.FixtureRequest) -> Store:
    """An outbox that nobody has opened yet."""
    store: Store = request.getfixturevalue(f"{kind}_store")
    return store

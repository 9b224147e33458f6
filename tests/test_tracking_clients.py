"""What Segment's own libraries send to a running relay arrives at Vero, and makes people there."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Timer

import pytest
from playwright.sync_api import Browser

from tests.console.browsing import CHROMIUM, chromium
from tests.harness.clients import (
    Result,
    browser_client,
    no_libraries,
    no_node,
    node_client,
    old_node_client,
    python_client,
    serving_page,
)
from tests.harness.processes import RelayProcess, closed_port, within
from tests.harness.routes import NOBODY
from tests.harness.stores import SqliteStore, Store, pending
from tests.harness.vero import AUTH_TOKEN, VeroServer, people_in
from tests.harness.vero_model import Event, Person

Client = Callable[..., Result]

WRITE_KEY = "a-write-key-of-servers"
BROWSER_KEY = "a-write-key-of-browsers"
EXAMPLES = ("identify", "alias", "tags", "group", "page", "screen", "unsubscribe", "burst")
CALLS = 307
BURST = 300
BUYERS = [f"1234{number}" for number in range(10)]
BURST_OF_BROWSER = 60

_NO_NODE = no_node()
_needs_node = pytest.mark.skipif(_NO_NODE is not None, reason=_NO_NODE or "")

pytestmark = pytest.mark.slow


@pytest.fixture
def vero() -> Iterator[VeroServer]:
    with VeroServer() as vero:
        yield vero


@pytest.fixture
def page() -> Iterator[str]:
    """A web page with analytics.js."""
    with serving_page() as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this module; without one, or analytics.js, they are skipped."""
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium-headless-shell")
    if missing := no_libraries():
        pytest.skip(missing)
    with chromium() as browser:
        yield browser


def relay(
    store: Store, vero: VeroServer, page: str = "", *, may: str = "write", port: int = 0
) -> RelayProcess:
    """Return a relay that takes calls, also of the page, and sends them to Vero."""
    return RelayProcess(
        store,
        NOBODY,
        port=port,
        RELAY_SEGMENT_WRITE_KEY=WRITE_KEY,
        RELAY_SEGMENT_BROWSER_WRITE_KEY=BROWSER_KEY,
        RELAY_SEGMENT_ORIGINS=page.removesuffix("/page.html"),
        RELAY_SEGMENT_BROWSER_MAY=may,
        VERO_RATE="1000",
        VERO_AUTH_TOKEN=AUTH_TOKEN,
        VERO_HOST=vero.url,
    )


def fates(store: Store) -> Counter[str]:
    """Return how many entries are `delivered`, or dead for each reason, once none is pending."""
    assert within(60, lambda: not pending(store)), f"{pending(store)} pending"
    return Counter(row.reason or row.state for row in store.stored())


def ordered(vero: VeroServer, person: str) -> list[int]:
    """Return the numbers of the person's orders, in the order in which Vero got them."""
    events = vero.person(person).events
    return [event.data["number"] for event in events if event.name == "Ordered"]


def paths(vero: VeroServer, person: str) -> list[str]:
    """Return the paths of the requests about a person, in the order in which Vero got them."""
    return [request.path for request in vero.requests if person in people_in(request.body)]


@pytest.mark.parametrize(
    ("client", "batch"),
    [
        (python_client, BURST),
        pytest.param(node_client, 15, marks=_needs_node),
        pytest.param(old_node_client, 20, marks=_needs_node),
    ],
)
def test_the_calls_of_a_program_make_people(
    store: Store, vero: VeroServer, client: Client, batch: int
) -> None:
    with relay(store, vero) as running:
        result = client(running.url, WRITE_KEY, *EXAMPLES)
        entries = fates(store)
    others = {name: each for name, each in vero.people.by_name.items() if name not in BUYERS}
    page = {"url": "https://shop.example.com/pricing"}
    (viewed,) = vero.person("324LKJF").events

    assert result == Result(CALLS, [])
    assert entries == {"delivered": CALLS - 1}  # without the screen, which is ignored
    assert others == {
        "8765309": Person(
            "8765309",
            "example@example.com",
            {"id": "example@example.com", "email": "example@example.com", "plan": "free"},
        ),
        "324LKJF": Person(
            "324LKJF",
            "example@example.com",
            {
                "id": "324LKJF",
                "email": "example@example.com",
                "group": {"id": "acme-1", "name": "Acme", "sizes": [7, 2.5, None]},
            },
            events=[Event("viewed_page", page, viewed.created_at)],
        ),
        "235FAG": Person("235FAG", tags={"warriors", "giants", "niners"}),
    }
    assert viewed.created_at == pytest.approx(time.time(), abs=100)
    assert {name for name in BUYERS if not vero.person(name).subscribed} == {"12345"}
    assert paths(vero, "example@example.com") == ["users/track", "users/reidentify"]
    assert paths(vero, "324LKJF") == ["users/track", "users/edit", "events/track"]
    assert paths(vero, "12345") == ["users/unsubscribe", *["events/track"] * 30]
    for name in BUYERS:
        numbers = ordered(vero, name)
        due = [*range(int(name[-1]), BURST, 10)]

        assert sorted(numbers) == due
        # The libraries for Node.js send several batches at a time. Each arrives in its order.
        assert by_batch(numbers, batch) == by_batch(due, batch)


def by_batch(numbers: list[int], size: int) -> list[list[int]]:
    """Return the numbers of each batch of so many calls, in the order of the numbers given."""
    return [
        [number for number in numbers if number // size == batch] for batch in range(BURST // size)
    ]


@pytest.mark.parametrize(
    "client",
    [
        python_client,
        pytest.param(node_client, marks=_needs_node),
        pytest.param(old_node_client, marks=_needs_node),
    ],
)
def test_a_program_learns_that_its_write_key_is_wrong(
    sqlite_store: SqliteStore, vero: VeroServer, client: Client
) -> None:
    with relay(sqlite_store, vero) as running:
        result = client(running.url, "no-write-key-of-relay", "identify", "alias")

    assert result.calls == len(result.errors) == 2
    assert all("401" in error for error in result.errors)
    assert not sqlite_store.stored()
    assert not vero.requests


@pytest.mark.parametrize("client", [python_client, pytest.param(node_client, marks=_needs_node)])
def test_a_program_tries_again_until_relay_can_store(
    sqlite_store: SqliteStore, vero: VeroServer, client: Client
) -> None:
    """analytics-node gives up after a second and a half."""
    with relay(sqlite_store, vero) as running:
        client(running.url, WRITE_KEY, "identify")
        fates(sqlite_store)
        sqlite_store.run_sql("ALTER TABLE entries RENAME TO away")
        mend = Timer(1, sqlite_store.run_sql, ["ALTER TABLE away RENAME TO entries"])
        mend.start()
        began_at = time.monotonic()
        result = client(running.url, WRITE_KEY, "alias", "burst")
        seconds = time.monotonic() - began_at
        mend.join()
        entries = fates(sqlite_store)

    assert seconds > 1
    assert result == Result(1 + BURST, [])
    assert entries == {"delivered": 2 + BURST}
    assert vero.person("8765309").traits["plan"] == "free"
    assert sum(len(ordered(vero, name)) for name in BUYERS) == BURST


@pytest.mark.parametrize(
    ("client", "batch"),
    [(python_client, BURST), pytest.param(node_client, 15, marks=_needs_node)],
)
def test_a_program_that_calls_while_relay_is_away_or_killed_loses_nothing(
    sqlite_store: SqliteStore, vero: VeroServer, client: Client, batch: int
) -> None:
    port = closed_port()
    with ThreadPoolExecutor() as pool:
        calling = pool.submit(client, f"http://127.0.0.1:{port}", WRITE_KEY, "identify", "burst")
        time.sleep(1)
        with relay(sqlite_store, vero, port=port) as running:
            assert within(30, lambda: bool(sqlite_store.stored()))
            running.kill()
        with relay(sqlite_store, vero, port=port):
            result = calling.result(60)
            entries = fates(sqlite_store)
    numbers = sorted(number for name in BUYERS for number in ordered(vero, name))

    assert result == Result(1 + BURST, [])
    assert entries == {"delivered": 1 + BURST}
    assert numbers == [*range(BURST)]
    for name in BUYERS:
        due = [*range(int(name[-1]), BURST, 10)]

        assert by_batch(ordered(vero, name), batch) == by_batch(due, batch)


@pytest.mark.parametrize("batches", [False, True])
def test_the_calls_of_a_web_page_make_people(
    browser: Browser, page: str, sqlite_store: SqliteStore, vero: VeroServer, *, batches: bool
) -> None:
    calls = len(EXAMPLES) - 2 + BURST_OF_BROWSER
    with relay(sqlite_store, vero, page, may="all") as running:
        python_client(running.url, WRITE_KEY, "identify")
        visit = browser_client(
            browser, page, running.url, BROWSER_KEY, *EXAMPLES[1:], batches=batches
        )
        with visit as result:
            assert within(30, lambda: len(sqlite_store.stored()) == calls)
        entries = fates(sqlite_store)
    visitor = vero.person("324LKJF")

    assert result == Result(calls, [])
    assert entries == {"delivered": calls}
    assert vero.people.by_name.keys() == {"8765309", "324LKJF", "235FAG", "12345"}
    assert vero.person("8765309").traits["plan"] == "free"
    assert vero.person("235FAG").tags == {"warriors", "giants", "niners"}
    assert visitor.email == "example@example.com"
    assert visitor.group == {"id": "acme-1", "name": "Acme", "sizes": [7, 2.5, None]}
    assert visitor.events[0].data == {"url": page}
    assert "Chrome" in visitor.traits["userAgent"]
    assert not vero.person("12345").subscribed
    assert sorted(ordered(vero, "324LKJF")) == [*range(BURST_OF_BROWSER)]


def test_a_web_page_may_only_write_about_its_own_visitor(
    browser: Browser, page: str, sqlite_store: SqliteStore, vero: VeroServer
) -> None:
    with (
        relay(sqlite_store, vero, page) as running,
        browser_client(browser, page, running.url, BROWSER_KEY, *EXAMPLES[1:-1]) as result,
    ):
        entries = fates(sqlite_store)

    assert result == Result(6, [])
    assert entries == {"delivered": 2, "forbidden": 3}
    assert vero.people.by_name.keys() == {"324LKJF"}


def test_a_web_page_of_another_origin_may_not_call(
    browser: Browser, page: str, sqlite_store: SqliteStore, vero: VeroServer
) -> None:
    origin = "https://shop.example.com"
    with (
        relay(sqlite_store, vero, origin) as running,
        browser_client(browser, page, running.url, BROWSER_KEY, "tags", "page"),
    ):
        pass

    assert not sqlite_store.stored()
    assert not vero.requests

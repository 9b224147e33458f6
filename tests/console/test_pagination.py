from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from relay.console.pagination import PAGE_SIZE, PATIENCE_SECONDS, EntriesPage, find_page
from relay.events import DeadReason, Unusable
from relay.operations.search import Criteria, Search
from relay.outbox.entries import Arrival, State
from relay.outbox.sqlite.store import SqliteOutbox
from relay.sources.vero import Vero, VeroSettings
from tests.cli.desk import webhook
from tests.contracts.outbox import NOON
from tests.harness.fakes import Clock
from tests.harness.routes import route, segment_at

VERO = Vero(VeroSettings())
SEGMENT = segment_at("http://127.0.0.1:1")
FEW, MANY = 130, 2_504
SECOND = timedelta(seconds=1)
ANY = Criteria()
NAMES = ("ana", "ben", "cleo")
Time = Callable[[], float]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """One event a second; each seventh is dead, and each fourteenth cannot be read either."""
    yield from _filled(tmp_path_factory.mktemp("few") / "relay.db", FEW)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    """More events than one stretch holds."""
    yield from _filled(tmp_path_factory.mktemp("many") / "relay.db", MANY)


def _filled(path: Path, count: int) -> Iterator[Search]:
    outbox = SqliteOutbox(path)
    outbox.add([_event(number) for number in range(1, count + 1)])
    yield Search(outbox.entries, [VERO])
    outbox.close()


def _event(number: int) -> Arrival:
    body = webhook(NAMES[number % 3], number, kind="snoozed" if number % 7 == 0 else "opened")
    if number % 14 == 0:
        body = body[:-1]
    arrival = route(VERO, SEGMENT).accept(body, NOON + number * SECOND)
    assert isinstance(arrival, Arrival)
    return arrival


def ids(page: EntriesPage) -> list[int]:
    return [entry.id for entry in page.entries]


def patiently() -> float:
    """No time passes."""
    return 0


def impatiently() -> Time:
    """Each look at the clock takes longer than a page may."""
    clock = Clock()

    def look() -> float:
        clock.sleep(2 * PATIENCE_SECONDS)
        return clock.monotonic()

    return look


def through(
    search: Search,
    criteria: Criteria,
    text: str = "",
    clock: Callable[[], Time] = lambda: patiently,
) -> list[int]:
    """Return the ids on all pages."""
    found: list[int] = []
    start = None
    while True:
        page = find_page(search, criteria, text, start=start, clock=clock())
        found += ids(page)
        assert page.older is None or start is None or page.older < start
        if page.older is None:
            return found
        start = page.older


def test_a_page_holds_the_newest_entries(search: Search) -> None:
    page = find_page(search, ANY, "", clock=patiently)

    assert ids(page) == [*range(FEW, FEW - PAGE_SIZE, -1)]
    assert (page.older, page.looked_to, page.given_up) == (FEW - PAGE_SIZE + 1, None, False)


def test_the_last_page_has_no_older_one(search: Search) -> None:
    page = find_page(search, ANY, "", start=PAGE_SIZE + 1, clock=patiently)

    assert ids(page) == [*range(PAGE_SIZE, 0, -1)]
    assert (page.older, page.looked_to) == (None, None)


@pytest.mark.parametrize("start", [FEW + 1, FEW * 1_000, 2**63 - 1])
def test_a_start_beyond_all_entries_begins_at_the_newest(search: Search, start: int) -> None:
    assert find_page(search, ANY, "", start=start, clock=impatiently()) == find_page(
        search, ANY, "", clock=patiently
    )


@pytest.mark.parametrize("start", [0, 1])
def test_nothing_is_found_before_the_first_entry(search: Search, start: int) -> None:
    for text in ("", "user-ana"):
        assert find_page(search, ANY, text, start=start, clock=impatiently()) == EntriesPage(
            [], None
        )


def test_a_search_stops_when_its_time_is_over(large: Search) -> None:
    nobody = Criteria(source="nobody")
    first = find_page(large, nobody, "", clock=impatiently())
    second = find_page(large, nobody, "", start=first.older, clock=impatiently())

    assert first == EntriesPage([], older=MANY - 1_999, looked_to=MANY - 1_999)
    assert second == EntriesPage([], None)  # every entry was looked at, however long it took


def test_pages_cut_short_lose_and_repeat_nothing(large: Search) -> None:
    dead = Criteria(states=(State.DEAD,))

    assert through(large, dead, clock=impatiently) == through(large, dead)
    assert len(through(large, dead)) == MANY // 7

    rare = Criteria(ids=(1, 503, 504, 505, 506, MANY))  # around the end of the first stretch

    for clock in (impatiently, lambda: patiently):
        assert through(large, rare, clock=clock) == [MANY, 506, 505, 504, 503, 1]


@pytest.mark.parametrize("clock", [lambda: patiently, impatiently])
def test_times_bound_what_is_looked_at(large: Search, clock: Callable[[], Time]) -> None:
    criteria = Criteria(since=NOON + 10 * SECOND, until=NOON + 20 * SECOND)
    page = find_page(large, criteria, "", clock=clock())

    assert ids(page) == [*range(19, 9, -1)]
    assert (page.older, page.looked_to) == (None, None)


def test_an_event_is_found_once_however_many_fields_match(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "relay.db")
    same = "ana@example.com"
    body = webhook("ana", message_id=same, user={"id": same, "email": same})
    arrivals = [route(VERO, SEGMENT).accept(each, NOON) for each in (body, body[:-1])]
    outbox.add([arrival for arrival in arrivals if isinstance(arrival, Arrival)])
    search = Search(outbox.entries, [VERO])

    assert ids(find_page(search, ANY, same)) == [2, 1]
    assert ids(find_page(search, ANY, sha256(same.encode()).hexdigest())) == [2, 1]
    assert ids(find_page(search, ANY, "ana")) == []

    outbox.close()


def test_giving_up_on_unreadable_dead_letters_hides_nothing_else(tmp_path: Path) -> None:
    outbox = SqliteOutbox(tmp_path / "relay.db")
    mine = [_event(1), _event(4), _event(7)]  # the last one is of an unknown type
    outbox.add(mine[:2])
    (entry, _) = outbox.claim("segment", 2, lease=SECOND)
    outbox.dead_letter(entry, Unusable(DeadReason.REJECTED, "refused"))
    outbox.add([*mine[2:], *(_unreadable(number) for number in range(1_200))])
    search = Search(outbox.entries, [VERO])
    in_haste = find_page(search, ANY, "user-ben", clock=impatiently())
    at_leisure = find_page(search, ANY, "user-ben", clock=patiently)

    assert (ids(at_leisure), at_leisure.given_up) == ([3, 2, 1], False)
    assert (ids(in_haste), in_haste.given_up) == ([2, 1], True)
    assert find_page(search, ANY, "user-x", clock=impatiently()) == EntriesPage(
        [], None, given_up=True
    )
    for criteria, expected in (
        (Criteria(states=(State.DEAD,)), [1]),
        (Criteria(states=(State.PENDING,)), [2]),
        (Criteria(reason="unknown_type"), [3]),
        (Criteria(reason="rejected"), [1]),
    ):
        assert ids(find_page(search, criteria, "user-ben", clock=impatiently())) == expected

    outbox.close()


def _unreadable(number: int) -> Arrival:
    fault = Unusable(DeadReason.UNREADABLE, "not JSON")
    return Arrival("vero", "segment", f"vero-{number:08}", NOON, b"user-nobody", fault)


def times() -> st.SearchStrategy[datetime | None]:
    return st.none() | st.integers(-5, FEW + 5).map(lambda seconds: NOON + seconds * SECOND)


@given(
    criteria=st.builds(
        Criteria,
        states=st.lists(st.sampled_from(State), unique=True, max_size=2).map(tuple),
        source=st.sampled_from([None, None, "vero", "nobody"]),
        collection=st.sampled_from([None, None, "Email Opened"]),
        reason=st.sampled_from([None, None, "unreadable", "unknown_type"]),
        since=times(),
        until=times(),
    ),
    user=st.sampled_from([None, "user-ana", "user-ben", "user-nobody"]),
    hasty=st.booleans(),
)
def test_all_pages_together_hold_what_a_search_without_pages_finds(
    search: Search,
    criteria: Criteria,
    user: str | None,
    hasty: bool,  # noqa: FBT001 (hypothesis gives it)
) -> None:
    whole = structs.replace(criteria, user_id=user)
    clock = impatiently if hasty and not user else lambda: patiently

    assert through(search, criteria, user or "", clock) == [r.id for r in search.find(whole)]

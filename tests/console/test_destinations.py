from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest
from starlette.requests import Request
from starlette.responses import Response

from relay.console.event import EventPage
from relay.console.events import EventList
from relay.console.overview import OverviewPages
from relay.console.overview_data import OverviewCache
from relay.console.pages import Pages
from relay.console.replays import Replays
from relay.destinations.segment import Segment, SegmentSettings
from relay.events import DeadReason, Unusable
from relay.operations.search import Search
from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from relay.sources.vero import Vero, VeroSettings
from relay.throttle import Permit, Throttle
from tests.cli.desk import webhook
from tests.console.client import Html
from tests.contracts.outbox import MINUTE
from tests.harness.fakes import Clock
from tests.harness.routes import NOBODY, WRITE_KEY, segment_at, vero


class Other(Segment):
    """A second destination."""

    name = "other"
    title = "Other"


class Elsewhere(Vero):
    """A source of the second destination."""

    name = "elsewhere"
    destination = "other"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SqliteOutbox]:
    """It shares the clock."""
    with closing(SqliteOutbox(tmp_path / "relay.db", clock=clock.now)) as outbox:
        yield outbox


@pytest.fixture
def routes() -> Routes:
    """Two sources, each with a destination of its own."""
    variables = {"SEGMENT_WRITE_KEY": WRITE_KEY, "SEGMENT_HOST": NOBODY}
    other = Other(SegmentSettings.model_validate(variables))
    return Routes([vero(), Elsewhere(VeroSettings())], [segment_at(), other])


@pytest.fixture
def pages(routes: Routes, clock: Clock) -> Pages:
    return Pages(clock.now, routes, has_sessions=False)


@pytest.fixture
def overview_cache(outbox: SqliteOutbox, routes: Routes, clock: Clock) -> OverviewCache:
    return OverviewCache(outbox, routes, clock=clock.now, elapsed=clock.monotonic)


@pytest.fixture
def events(outbox: SqliteOutbox, routes: Routes, pages: Pages) -> EventList:
    return EventList(outbox, routes, Search(outbox.entries, routes.sources), pages)


def add(outbox: SqliteOutbox, routes: Routes, clock: Clock, source: str, count: int) -> None:
    """Store events of the source."""
    bodies = [webhook(source, number) for number in range(count)]
    arrivals = [routes[source].accept(body, clock.now()) for body in bodies]
    outbox.add([arrival for arrival in arrivals if isinstance(arrival, Arrival)])


def refuse(throttle: Throttle, now: float) -> None:
    """Have the destination refuse a request."""
    permit = throttle.acquire(now, 10)
    assert isinstance(permit, Permit)
    throttle.refused(permit, now, "HTTP 401")


def request(path: str, **query: object) -> Request:
    """Return what a browser would ask for."""
    scope = {
        "type": "http",
        "method": "GET",
        "scheme": "http",
        "path": f"/console{path}",
        "query_string": urlencode(query).encode(),
        "headers": [(b"host", b"localhost")],
        "path_params": {"id": path.rpartition("/")[2]},
    }
    return Request(scope)


def read(response: Response) -> Html:
    """Return the elements of the page."""
    html = Html()
    html.feed(bytes(response.body).decode())
    html.close()
    return html


def found(events: EventList, **query: object) -> list[int]:
    """Return the ids of the events on the page."""
    rows = read(events.page(request("/events", **query))).all("tr", "id")
    return [int(row.removeprefix("event-")) for row in rows]


def test_each_destination_is_watched_by_itself(
    overview_cache: OverviewCache, outbox: SqliteOutbox, routes: Routes, clock: Clock
) -> None:
    overview_cache.current()
    began_at = clock.now()
    add(outbox, routes, clock, "vero", 4)
    add(outbox, routes, clock, "elsewhere", 2)
    clock.sleep(10)
    outbox.ack(outbox.claim("segment", 3, lease=MINUTE))
    outbox.throttle("other", refuse)
    (entry,) = outbox.claim("other", 1, lease=MINUTE)
    outbox.dead_letter(entry, Unusable(DeadReason.REJECTED, "why"))
    to_segment, to_other = overview_cache.current().flows

    assert (to_segment.title, to_other.title) == ("Segment", "Other")
    assert (to_segment.counts.pending, to_segment.counts.delivered) == (1, 3)
    assert (to_other.counts.pending, to_other.counts.delivered) == (1, 0)
    assert (to_segment.dead, to_other.dead) == (0, 1)
    assert to_segment.counts.waiting_since == to_other.counts.waiting_since == began_at
    assert (to_segment.status.hold, to_other.status.hold) == (None, "HTTP 401")
    assert to_other.status.next_at is not None
    assert (to_segment.delivered.rate, to_other.delivered.rate) == (0.3, 0)
    assert (sum(to_segment.delivered.bars), sum(to_other.delivered.bars)) == (3, 0)
    assert (to_segment.delivered.latest, to_other.delivered.latest) == (clock.now(), None)


def test_the_overview_shows_every_destination(
    overview_cache: OverviewCache, outbox: SqliteOutbox, routes: Routes, pages: Pages, clock: Clock
) -> None:
    add(outbox, routes, clock, "vero", 1)
    add(outbox, routes, clock, "elsewhere", 2)
    outbox.throttle("other", refuse)
    clock.sleep(20)
    html = read(OverviewPages(overview_cache, [], pages).page(request("/")))
    text = " ".join(html.text.split())

    assert "Segment has 0" in text
    assert "Other has 0" in text
    assert "Pending for Segment 1 the oldest for 20 s" in text
    assert "Pending for Other 2 the oldest for 20 s" in text
    assert "Nothing has been sent to Segment yet." in text
    assert "Other is on hold. Other answered HTTP 401" in text
    assert "The next probe goes in " in text
    assert "/console/events?state=pending&destination=other" in html.all("a", "href")


def test_events_are_filtered_by_destination(
    events: EventList, outbox: SqliteOutbox, routes: Routes, clock: Clock
) -> None:
    add(outbox, routes, clock, "vero", 2)
    add(outbox, routes, clock, "elsewhere", 1)
    names = read(events.page(request("/events"))).all("select", "name")

    assert "destination" in names
    assert found(events) == [3, 2, 1]
    assert found(events, destination="other") == [3]
    assert found(events, destination="segment", q="user-vero") == [2, 1]
    assert found(events, destination="other", q="user-vero") == []


def test_an_event_names_its_destination(
    outbox: SqliteOutbox, routes: Routes, pages: Pages, clock: Clock
) -> None:
    add(outbox, routes, clock, "elsewhere", 1)
    outbox.ack(outbox.claim("other", 1, lease=MINUTE))
    clock.sleep(60)
    search = Search(outbox.entries, routes.sources)
    replays = Replays(outbox, search, routes)
    event = EventPage(outbox, routes, search, replays, pages, clock=clock.now)
    text = read(event.page(request("/events/1"))).text

    assert "delivered: Other accepted it" in text
    assert "Other has this already" in text
    assert "The message, to Other" in text
    assert "Segment" not in text.replace("SEGMENT", "").partition("History")[2]

"""The console's pages with both flows: email events to Segment, and calls to Vero."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relay.console.dead import DeadLetterPages
from relay.console.event import EventPage
from relay.console.events import EventList
from relay.console.overview import CALLS_PATH, Endpoint, OverviewPages
from relay.console.overview_data import OverviewCache
from relay.console.pages import Pages
from relay.console.playground import MAX_CALLS, Playground
from relay.console.replays import Replays
from relay.destinations.segment import Segment, SegmentSettings
from relay.events import CallType, Collection, DeadReason, Unusable
from relay.operations.search import Search
from relay.outbox.entries import Arrival
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from tests.cli.desk import webhook
from tests.console.client import Html
from tests.console.test_destinations import read, refuse, request
from tests.contracts.outbox import MINUTE
from tests.harness.calls import accepted, routes_both_ways, segment_source, vero_at
from tests.harness.fakes import Clock
from tests.harness.routes import vero

IDENTIFY = {"type": "identify", "userId": "42", "traits": {"plan": "pro"}}
TRACK = {"type": "track", "userId": "42", "event": "Seeds Ordered"}
TAGGED = {**IDENTIFY, "integrations": {"Vero": {"tags": {"action": "add", "values": ["early"]}}}}
BAD_TAGS = {**IDENTIFY, "integrations": {"Vero": {"tags": "early"}}}
REFUSED = Unusable(DeadReason.REJECTED, "400 Bad Request: id is invalid")


class Site:
    """The console's pages over one outbox, without a server.

    Attributes:
        clock: the clock of all of them.
    """

    def __init__(self, outbox: SqliteOutbox, clock: Clock, routes: Routes) -> None:
        pages = Pages(clock.now, routes, has_sessions=False)
        search = Search(outbox.entries, routes.sources)
        replays = Replays(outbox, search, routes)
        cache = OverviewCache(outbox, routes, clock=clock.now, elapsed=clock.monotonic)
        self._outbox, self._routes = outbox, routes
        self._cache, self._pages = cache, pages
        self._events = EventList(outbox, routes, search, pages)
        self._event = EventPage(outbox, routes, search, replays, pages, clock=clock.now)
        self._dead = DeadLetterPages(outbox, routes, search, replays, pages)
        self._playground = Playground(outbox, routes, pages, clock=clock.now)
        self.clock = clock

    def add(self, *calls: dict[str, Any]) -> None:
        """Store calls."""
        self._outbox.add(accepted(self._routes, *calls, received_at=self.clock.now()))

    def add_email(self) -> None:
        """Store an email event."""
        arrival = self._routes["vero"].accept(webhook("ana"), self.clock.now())
        assert isinstance(arrival, Arrival)
        self._outbox.add([arrival])

    def deliver(self) -> None:
        """Settle the calls that are due as delivered."""
        self._outbox.ack(self._outbox.claim("vero", 9, lease=MINUTE, ordered=True))
        self.clock.sleep(1)

    def bury(self, fault: Unusable = REFUSED, *, sent: int = 0) -> None:
        """Make the call that is due first a dead letter, once so many messages are sent."""
        (entry,) = self._outbox.claim("vero", 1, lease=MINUTE, ordered=True)
        self._outbox.advance(entry, sent)
        self._outbox.dead_letter(entry, fault)
        self.clock.sleep(1)

    def overview(self, *endpoints: Endpoint) -> Html:
        """Return the overview."""
        self.clock.sleep(1)
        return read(OverviewPages(self._cache, endpoints, self._pages).page(request("/")))

    def events(self, **query: object) -> Html:
        """Return the list of events."""
        return read(self._events.page(request("/events", **query)))

    def event(self, id_: int, **query: object) -> Html:
        """Return the page of an event."""
        return read(self._event.page(request(f"/events/{id_}", **query)))

    def dead(self) -> Html:
        """Return the page of dead letters."""
        return read(self._dead.page(request("/dead")))

    def played(self, body: object, source: str = "segment") -> Html:
        """Return the playground's page for a body."""
        text = body if isinstance(body, str) else json.dumps(body)
        form = {"source": source, "body": text}
        return read(self._playground.page(request("/playground"), form))


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[SqliteOutbox]:
    """It shares the clock."""
    with closing(SqliteOutbox(tmp_path / "relay.db", clock=clock.now)) as outbox:
        yield outbox


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(outbox: SqliteOutbox, clock: Clock) -> Site:
    """Both destinations are configured."""
    return Site(outbox, clock, routes_both_ways())


@pytest.fixture
def calls_only(outbox: SqliteOutbox, clock: Clock) -> Site:
    """Only Vero is configured."""
    without_key = Segment(SegmentSettings())
    routes = Routes([vero(), segment_source()], [without_key, vero_at()])
    return Site(outbox, clock, routes)


def words(html: Html) -> str:
    """Return the page's text with single blanks."""
    return " ".join(html.text.split())


def hrefs(html: Html) -> list[str]:
    return html.all("a", "href")


def test_the_overview_shows_each_flow_with_its_own_kinds(site: Site) -> None:
    site.add_email()
    site.add(IDENTIFY, TRACK)
    site.deliver()
    html = site.overview()
    text = words(html)

    assert "no source → Segment" in text
    assert "no source → Vero" in text
    assert "Pending for Segment 1" in text
    assert "Pending for Vero 1" in text
    assert "Vero has 1" in text
    assert all(kind in text for kind in (*Collection, *CallType))
    assert "Who a person is, with facts about the person." in text
    assert "/console/events?collection=track" in hrefs(html)


def test_the_overview_hides_a_flow_that_is_not_configured(calls_only: Site) -> None:
    calls_only.add(IDENTIFY)
    text = words(calls_only.overview())

    assert "Vero has 0" in text
    assert "Calls by type" in text
    assert "Segment has" not in text
    assert "The seven collections" not in text


def test_the_overview_names_entries_for_a_destination_that_is_not_configured(
    site: Site, outbox: SqliteOutbox, clock: Clock
) -> None:
    site.add(IDENTIFY)
    without_vero = Site(outbox, clock, routes_both_ways(vero_at(auth_token="")))
    warning = "1 entry waits for vero, which is not configured: set VERO_AUTH_TOKEN."

    assert warning in words(without_vero.overview())
    assert warning not in words(site.overview())


def test_a_call_only_relay_shows_the_host_for_segments_libraries(calls_only: Site) -> None:
    html = calls_only.overview(Endpoint("segment", CALLS_PATH))

    assert "Waiting for your first call" in html.text
    assert "Give this to Segment's libraries as their host" in html.text
    assert "http://localhost" in html.text
    assert "http://localhost/v1" not in html.text


def test_a_hold_names_the_credential_to_correct(site: Site, outbox: SqliteOutbox) -> None:
    outbox.throttle("vero", refuse)

    assert "Vero is on hold. Vero answered HTTP 401" in words(site.overview())
    assert "Correct VERO_AUTH_TOKEN or the host." in words(site.overview())


def test_the_first_run_is_shown_for_a_source_without_a_secret_in_its_path(site: Site) -> None:
    html = site.overview(Endpoint("customerio", "/webhooks/customerio"))

    assert "Waiting for your first webhook" in html.text
    assert "http://localhost/webhooks/customerio" in html.text
    assert "Reveal the secret" not in html.text


def test_events_are_filtered_by_the_type_of_call(site: Site) -> None:
    site.add_email()
    site.add(IDENTIFY, TRACK)
    html = site.events(collection="track")

    assert html.all("tr", "id") == ["event-3"]
    assert site.events(collection="Email Opened").all("tr", "id") == ["event-1"]
    assert html.all("optgroup", "label") == ["no source → Segment", "no source → Vero"]
    assert "Collection or call" in html.text


def test_the_list_names_the_person_and_what_the_person_did(site: Site) -> None:
    site.add(TRACK, {"type": "delete", "userId": "43"}, {"type": "alias", "previousId": "44"})
    track, delete, alias = words(site.events()).rpartition("Email id")[2].split("segment ")[:0:-1]

    assert track.split()[:4] == ["track", "Seeds", "Ordered", "pending"]
    assert "42" in track
    assert delete.split()[:4] == ["delete", "deletion_requested", "dead", "43"]
    assert alias.split()[:4] == ["alias", "incomplete", "dead", "44"]


def test_a_list_of_calls_has_no_column_for_emails(calls_only: Site, site: Site) -> None:
    calls_only.add(IDENTIFY)
    text, both = words(calls_only.events()), words(site.events())

    assert "Email id" not in text
    assert "Call any identify" in text
    assert "Email id" in both
    assert "Collection or call any Email Sent" in both


def test_the_page_of_a_call_shows_each_request_in_its_order(site: Site) -> None:
    site.add(TAGGED)
    before = words(site.event(1))
    site.deliver()
    text = words(site.event(1))

    assert "The call, as received" in text
    assert "What Vero is sent 1 of 2 sent {" in text
    assert "} 2 of 2 sent {" in text
    assert text.index("/api/v2/users/track") < text.index("/api/v2/users/tags/edit")
    assert "1 of 2 {" in before
    assert "sent {" not in before
    assert "Message 2, to Vero" in text
    assert "webhook" not in text.replace("/webhooks/", "")


def test_the_lines_of_two_requests_are_told_apart(site: Site) -> None:
    site.add(TAGGED)
    paths = site.event(1).all("li", "data-path")
    (links,) = site.event(1).all("div", "data-links")

    assert "body.id" in paths
    assert "2:body.id" in paths
    assert ["userId", "2:body.id"] in json.loads(links)
    assert ["integrations.Vero.tags.values[0]", "2:body.add[0]"] in json.loads(links)


def test_a_request_that_is_sent_is_marked_although_the_rest_is_not(site: Site) -> None:
    site.add(TAGGED)
    site.bury(sent=1)
    text = words(site.event(1))

    assert "1 of 2 sent {" in text
    assert "2 of 2 {" in text
    assert "400 Bad Request: id is invalid" in text.partition("History")[2]


def test_bad_tags_are_shown_beside_the_call_that_is_sent(site: Site) -> None:
    site.add(BAD_TAGS)
    site.bury(Unusable(DeadReason.BAD_TAGS, "not an object"), sent=1)
    html = site.event(1)
    text = words(html)

    assert "1 of 1 sent {" in text
    assert "bad_tags integrations.Vero.tags: it is not an object" in text
    assert "The rest is not sent to Vero." in text
    assert html.all("form", "action") == []  # nothing of it is left to be replayed


def test_a_pending_call_names_the_entry_that_it_waits_behind(site: Site) -> None:
    site.add(IDENTIFY, TRACK)
    html = site.event(2)

    assert "it waits behind entry 1, which concerns the same person" in words(html)
    assert "/console/events/1" in hrefs(html)
    assert "pending: it waits to be sent" in words(site.event(1))


def test_a_pending_call_says_when_it_is_tried_again(site: Site, outbox: SqliteOutbox) -> None:
    site.add(IDENTIFY)
    (entry,) = outbox.claim("vero", 1, lease=MINUTE, ordered=True)
    now = site.clock.now()
    outbox.postpone(entry, retry_at=now + MINUTE, answer="503 Down", failing_since=now)
    text = words(site.event(1))

    assert "posted, not accepted: 503 Down" in text
    assert "Vero fails at it, and it is tried again in 1 min" in text


def test_a_pending_call_says_that_its_destination_is_on_hold_or_not_configured(
    site: Site, outbox: SqliteOutbox
) -> None:
    site.add(IDENTIFY)
    without_vero = Site(outbox, site.clock, routes_both_ways(vero_at(auth_token="")))
    outbox.throttle("vero", refuse)

    assert "it waits, because Vero is on hold: it answered HTTP 401" in words(site.event(1))
    assert "it waits for Vero, which is not configured" in words(without_vero.event(1))


def test_a_replay_warns_of_later_calls_about_the_same_people(site: Site) -> None:
    site.add({"type": "alias", "userId": "42", "previousId": "7"})
    site.bury()
    offer = words(site.event(1)).partition("History")[2]
    site.add(IDENTIFY, {"type": "identify", "userId": "8"}, {"type": "identify", "userId": "7"})
    warned = words(site.event(1))

    assert "may undo" not in offer
    assert "Replay with today's mapping" in offer
    assert "2 calls about the same people were received since" in warned
    assert "Replayed, this one is sent after those, and may undo what they changed." in warned


def test_a_delivered_call_that_nothing_followed_says_how_often_it_counts(site: Site) -> None:
    site.add(TRACK)
    site.deliver()
    soon = words(site.event(1))
    site.clock.sleep(600)
    late = words(site.event(1))

    assert "Vero has this already and recognises a copy: sent again, it counts once." in soon
    assert "no longer recognises a copy: sent again, it may count twice." in late


@pytest.mark.parametrize(
    "call",
    [
        TAGGED,
        {"type": "group", "userId": "42", "groupId": "7"},
        {"type": "alias", "userId": "42", "previousId": "7"},
        {"type": "track", "userId": "42", "event": "Unsubscribe"},
    ],
    ids=["identify with tags", "group", "alias", "unsubscribe"],
)
def test_a_delivered_call_that_says_how_things_are_changes_nothing_if_sent_again(
    site: Site, call: dict[str, object]
) -> None:
    site.add(call)
    site.deliver()
    site.clock.sleep(600)
    text = words(site.event(1))

    assert "Vero has this already: sent again, it changes nothing there." in text
    assert "count" not in text


def test_the_page_of_dead_letters_warns_before_calls_are_replayed(site: Site) -> None:
    site.add(IDENTIFY)
    site.bury()
    html = site.dead()

    assert "It reaches Vero after what was received later about the same person" in words(html)
    assert ("details", {}) in html.elements


def test_dead_letters_without_an_order_are_replayed_without_a_warning(
    site: Site, outbox: SqliteOutbox
) -> None:
    site.add_email()
    (entry,) = outbox.claim("segment", 1, lease=MINUTE)
    outbox.dead_letter(entry, REFUSED)
    html = site.dead()

    assert "Replay it" in words(html)
    assert "about the same" not in html.text
    assert ("details", {}) not in html.elements


@pytest.mark.parametrize(
    "body", [TRACK, {"batch": [TRACK]}, [TRACK]], ids=["call", "batch", "array"]
)
def test_the_playground_takes_calls_in_each_form(site: Site, body: object) -> None:
    text = words(site.played(body))

    assert "1. track “Seeds Ordered” accepted" in text
    assert "What Vero is sent" in text
    assert "/api/v2/events/track" in text


def test_the_playground_shows_what_becomes_of_each_call(site: Site) -> None:
    visitor = {"type": "page", "anonymousId": "a-1"}
    known = {**TRACK, "messageId": "call-1"}
    text = words(site.played({"batch": [TAGGED, visitor, {"type": "novel"}, known, known, 7]}))

    assert "1. identify accepted" in text
    assert "2. ignored anonymous It is understood, and not for Vero: anonymous" in text
    assert "set by VERO_ANONYMOUS. relay would count it" in text
    assert "3. dead unknown_type" in text
    assert "4. track “Seeds Ordered” accepted" in text
    assert "5. track “Seeds Ordered” duplicate" in text
    assert "6. dead unreadable" in text


def test_the_playground_shows_a_limited_number_of_calls(site: Site) -> None:
    text = words(site.played([TRACK] * (MAX_CALLS + 3)))

    assert f"{MAX_CALLS}. track" in text
    assert f"{MAX_CALLS + 1}. track" not in text
    assert f"The first {MAX_CALLS} calls are shown, 3 more are not." in text


def test_the_playground_says_that_there_is_no_call(site: Site) -> None:
    assert "There is no call in it." in site.played({"batch": []}).text
    assert "There is no call in it." not in site.played(webhook("ana").decode(), "vero").text


def test_ids_on_a_page_are_unique_however_many_calls_it_shows(site: Site) -> None:
    site.add(IDENTIFY)
    for html in (site.played([TAGGED, TRACK, IDENTIFY]), site.overview(), site.events()):
        ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]

        assert len({*ids}) == len(ids)

"""The demo's other direction: calls of Segment's library, and requests to a stand-in for Vero."""

import json
from collections import defaultdict
from contextlib import closing
from http.client import HTTPConnection
from itertools import islice
from random import Random

import click

from relay.demo.customers import Call, lives
from relay.demo.display import Ledger
from relay.demo.standins import VeroStandIn
from tests.harness.fakes import Clock


def _calls(seed: int = 1) -> list[Call]:
    """Return 200 calls: enough for every kind."""
    return list(islice(lives(Random(seed)), 200))  # noqa: S311 (not for secrets)


class Screen:
    """A ledger, and the lines that it has printed, without colours and time."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.clock = Clock()
        self.ledger = Ledger(write=self._write, clock=self.clock.monotonic)

    def _write(self, line: str) -> None:
        self.lines.append(click.unstyle(line))

    def texts(self) -> list[str]:
        """Return the lines without the time, with single blanks."""
        return [" ".join(line.split()[1:]) for line in self.lines]


def test_customers_make_every_kind_of_call() -> None:
    calls = _calls()
    events = {call.arguments.get("event") for call in calls}

    assert {call.method for call in calls} == {"identify", "track", "alias", "group"}
    assert events >= {"Signed Up", "Plan Changed", "Unsubscribe", "Resubscribe"}
    assert any("integrations" in call.arguments for call in calls)


def test_a_customer_is_known_by_an_address_until_the_alias() -> None:
    by_id = defaultdict(list)
    for call in _calls():
        by_id[call.arguments["user_id"]].append(call.method)
    first = next(call for call in _calls() if call.method == "alias")

    assert by_id[first.arguments["previous_id"]] == ["identify", "track"]
    assert by_id["7001"][:2] == ["alias", "identify"]


def test_a_call_is_shown_when_vero_gets_its_request() -> None:
    screen = Screen()
    screen.ledger.call("identify", "7")
    screen.ledger.call("track", "7")
    screen.clock.sleep(0.25)
    screen.ledger.requested("users/track", {"id": "7"})
    screen.ledger.requested("users/tags/edit", {"id": "7"})
    screen.clock.sleep(1)
    screen.ledger.requested("events/track", {"identity": {"id": "7"}})
    screen.ledger.requested("users/track", {"email": "me@example.com"})

    assert screen.texts() == [
        "identify() 7 accepted users/track id 7 0.25 s",
        "7 users/tags/edit id 7",
        "track() 7 accepted events/track id 7 1.25 s",
        "(yours) me@example.com accepted users/track id me@example.com",
    ]
    assert "2 calls made; requests to Vero: 4." in screen.ledger.summary(0)


def test_no_line_of_a_call_is_wider_than_110_columns() -> None:
    screen = Screen()
    for call in _calls():
        screen.ledger.call(call.method, call.person)
        screen.clock.sleep(999)
        screen.ledger.requested("users/resubscribe", {"id": call.person})
        screen.ledger.requested("users/tags/edit", {"id": "x" * 200})

    assert len(screen.lines) == 400
    assert max(map(len, screen.lines)) <= 110


def test_the_stand_in_takes_requests_and_shows_them() -> None:
    screen = Screen()
    screen.ledger.call("alias", "ann@example.com")
    body = json.dumps({"id": "ann@example.com", "new_id": "7", "auth_token": "a-token"})
    with VeroStandIn(screen.ledger).running() as stand_in:
        host = stand_in.url.removeprefix("http://")
        with closing(HTTPConnection(host, timeout=10)) as connection:
            connection.request("PUT", "/api/v2/users/reidentify", body)
            response = connection.getresponse()
            answer = json.load(response)

    assert (response.status, answer["message"]) == (200, "Success.")
    assert screen.texts()[0].startswith("alias() ann@example.com accepted users/reidentify")

"""Whether the tests' model of Vero is one of what its reference says."""

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.harness.fakes import Answer, Clock
from tests.harness.vero import AUTH_TOKEN, Fault, VeroServer
from tests.harness.vero_model import DEDUPE_SECONDS, ApiError, Event, People, Person


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def people(clock: Clock) -> People:
    return People(clock.monotonic)


@pytest.fixture
def vero() -> Iterator[VeroServer]:
    with VeroServer() as vero:
        yield vero


def identify(people: People, name: str, **data: object) -> None:
    people.take("POST", "users/track", {"id": name, "data": data})


def track(people: People, name: str, **data: object) -> None:
    identity = {"id": name}
    body = {"event_name": name, "identity": identity, "data": data, "extras": {"created_at": 7}}
    people.take("POST", "events/track", body)


def test_a_person_is_known_by_id_or_else_by_email(people: People) -> None:
    email = "ann@example.com"
    people.take("POST", "users/track", {"id": "42", "email": email, "data": {"plan": "pro"}})
    people.take("POST", "users/track", {"id": "42", "data": {"city": "Graz"}})
    people.take("POST", "users/track", {"email": email, "data": {"plan": "free"}})

    assert people.by_name == {
        "42": Person("42", email, {"plan": "pro", "city": "Graz"}),
        email: Person(None, email, {"plan": "free"}),
    }


def test_a_new_id_takes_everything_along_and_the_old_one_is_gone(people: People) -> None:
    identify(people, "old", plan="pro", city="Graz")
    people.take("PUT", "users/tags/edit", {"id": "old", "add": ["vip"]})
    track(people, "old", price=3)
    identify(people, "new", plan="team")
    people.take("PUT", "users/reidentify", {"id": "old", "new_id": "new"})

    assert people.by_name == {
        "new": Person(
            "new",
            traits={"plan": "team", "city": "Graz"},
            tags={"vip"},
            events=[Event("old", {"price": 3}, 7)],
        )
    }
    with pytest.raises(ApiError, match="no such user"):
        people.take("PUT", "users/reidentify", {"id": "old", "new_id": "new"})


def test_tags_groups_and_subscriptions(people: People) -> None:
    people.take("PUT", "users/edit", {"id": "42", "changes": {"group": {"id": "acme"}}})
    people.take("PUT", "users/tags/edit", {"id": "42", "add": ["a", "b"]})
    people.take("PUT", "users/tags/edit", {"id": "42", "add": ["c"], "remove": ["a"]})
    person = people.by_name["42"]
    subscribed = []
    for path in ("users/unsubscribe", "users/resubscribe"):
        people.take("POST", path, {"id": "42"})
        subscribed.append(person.subscribed)
    people.take("PUT", "users/tags/edit", {"id": "42", "add": ["unsubscribed"]})

    assert person.group == {"id": "acme"}
    assert person.tags == {"b", "c", "unsubscribed"}
    assert subscribed == [False, True]
    assert not person.subscribed


def test_a_deleted_person_is_gone(people: People) -> None:
    identify(people, "42")
    people.take("POST", "users/delete", {"id": "42"})

    assert people.by_name == {}
    with pytest.raises(ApiError, match="no such user"):
        people.take("POST", "users/delete", {"id": "42"})


def test_a_copy_of_an_event_within_five_minutes_is_none(people: People, clock: Clock) -> None:
    track(people, "42", price=3)
    clock.sleep(DEDUPE_SECONDS - 1)
    track(people, "42", price=3)
    track(people, "42", price=4)
    clock.sleep(1)
    track(people, "42", price=3)

    assert [event.data["price"] for event in people.by_name["42"].events] == [3, 4, 3]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("users/track", {}),
        ("users/track", {"id": "x" * 255}),
        ("users/track", {"id": 42}),
        ("users/track", {"email": "nobody"}),
        ("users/track", {"id": "42", "data": "text"}),
        ("users/unsubscribe", {}),
        ("users/delete", {}),
        ("events/track", {"event_name": "Seen", "identity": {}}),
        ("events/track", {"event_name": "Seen"}),
        ("events/track", {"identity": {"id": "42"}}),
        ("events/track", {"event_name": "x" * 255, "identity": {"id": "42"}}),
        ("events/track", {"event_name": "Seen", "identity": {"id": "x" * 255}}),
    ],
)
def test_a_request_with_a_mistake_changes_nothing(
    people: People, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(ApiError):
        people.take("POST", path, body)

    assert people.by_name == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("users/tags/edit", {"id": "42"}),
        ("users/tags/edit", {"id": "42", "add": "vip"}),
        ("users/tags/edit", {"add": ["vip"]}),
        ("users/edit", {"id": "42"}),
        ("users/reidentify", {"id": "42"}),
        ("users/reidentify", {"new_id": "42"}),
    ],
)
def test_a_change_with_a_mistake_changes_nothing(
    people: People, path: str, body: dict[str, Any]
) -> None:
    with pytest.raises(ApiError):
        people.take("PUT", path, body)

    assert people.by_name == {}


def ask(vero: VeroServer, path: str, token: str = AUTH_TOKEN) -> tuple[int, bytes]:
    body = json.dumps({"auth_token": token, "id": "42", "data": {"plan": "pro"}})
    address = vero.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address)) as connection:
        connection.request("POST", f"/api/v2/{path}", body)
        response = connection.getresponse()
        return response.status, response.read()


def test_the_server_answers_as_vero_does(vero: VeroServer) -> None:
    answers = [
        ask(vero, "users/track", "another token"),
        ask(vero, "users/tracks"),
        ask(vero, "users/delete"),
        ask(vero, "users/track"),
    ]

    assert [status for status, _ in answers] == [401, 404, 404, 200]
    assert [body[:1] for _, body in answers] == [b"{", b"<", b"{", b"{"]
    assert vero.person("42").traits == {"plan": "pro"}
    assert [request.taken for request in vero.requests] == [False, False, False, True]
    assert [request.refused for request in vero.requests] == [False, False, True, False]
    assert [request.settled for request in vero.requests] == [False, False, True, True]
    assert vero.most_at_once == 1
    assert "auth_token" not in str(vero.requests)


def test_an_answer_that_is_lost_leaves_the_request_taken(vero: VeroServer) -> None:
    vero.judge = lambda _request: Fault(Answer(0), taken=True)
    with pytest.raises(ConnectionResetError):
        ask(vero, "users/track")

    assert vero.person("42").traits == {"plan": "pro"}


def test_a_fault_leaves_the_request_undone(vero: VeroServer) -> None:
    vero.judge = lambda _request: Fault(Answer(503))
    status, _ = ask(vero, "users/track")

    assert status == 503
    assert vero.people.by_name == {}

"""Searches find every call about a person."""

import json
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from relay.operations.search import Criteria, Search
from relay.outbox.entries import NO_KEYS, Arrival
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from tests.cli.desk import webhook
from tests.harness.calls import NOON, accepted, routes_both_ways, vero_at

ADDRESS = "Ana@example.com"
TAGS = {"action": "add", "values": ["a tag"]}


@pytest.fixture
def routes() -> Routes:
    return routes_both_ways()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        yield outbox


def tagged(**tags: object) -> dict[str, Any]:
    """Return the integrations of a call with tags."""
    return {"Vero": {"tags": {**TAGS, **tags}}}


def found(outbox: Outbox, routes: Routes, **values: str) -> list[int]:
    """Return the ids of the entries that meet the criteria, oldest first."""
    search = Search(outbox.entries, routes.sources)
    criteria = structs.replace(Criteria(), **values)
    entries = [*search.find(criteria, newest_first=False)]
    by_keys = search.find_read(criteria, start=None, end=None)
    with_keys = [entry.id for entry in entries if entry.keys != NO_KEYS]
    assert [entry.id for entry in by_keys] == with_keys[::-1]
    return [entry.id for entry in entries]


@pytest.mark.parametrize(
    "call",
    [
        {"type": "identify", "userId": "42"},
        {"type": "identify", "userId": 42},
        {"type": "alias", "userId": "7", "previousId": "42"},
        {"type": "alias", "userId": "42", "previousId": "7"},
        {"type": "alias", "User ID": "7", "Previous ID": "42"},
        {"type": "track", "userId": "7", "event": "Unsubscribe", "properties": {"id": 42}},
        {"type": "track", "userId": "7", "event": "un_subscribed", "properties": {"id": "42"}},
        {"type": "track", "event": "Resubscribe", "properties": {"id": "42"}},
        {"type": "identify", "userId": "7", "integrations": tagged(id="42")},
        {"type": "alias", "userId": "7", "previousId": "8", "integrations": tagged(id="42")},
        {"type": "delete", "userId": "42"},
    ],
    ids=lambda call: json.dumps(call)[:60],
)
def test_a_call_is_found_by_each_person_that_it_names(
    outbox: Outbox, routes: Routes, call: dict[str, Any]
) -> None:
    others = [
        {"type": "identify", "userId": "7", "traits": {"id": "42", "friend": "42"}},
        {"type": "track", "userId": "7", "event": "Seen", "properties": {"id": "42"}},
        {"type": "group", "userId": "7", "groupId": "42"},
    ]
    outbox.add(accepted(routes, call, *others))

    assert found(outbox, routes, user_id="42") == [1]


def test_a_call_is_found_by_an_anonymous_id_only_if_nothing_else_names_the_person(
    outbox: Outbox,
) -> None:
    routes = routes_both_ways(vero_at(VERO_ANONYMOUS="id"))
    visitor = {"type": "page", "anonymousId": "a-1", "properties": {"url": "https://example.com"}}
    outbox.add(accepted(routes, visitor, {**visitor, "userId": "42"}))

    assert found(outbox, routes, user_id="a-1") == [1]
    assert found(outbox, routes, user_id="42") == [2]


@pytest.mark.parametrize("address", [ADDRESS, ADDRESS.upper(), ADDRESS.lower()])
def test_a_call_is_found_by_an_address_that_is_an_id_or_among_its_traits(
    outbox: Outbox, routes: Routes, address: str
) -> None:
    calls = [
        {"type": "identify", "userId": "42", "traits": {"email": ADDRESS}},
        {"type": "track", "event": "Seen", "context": {"traits": {"email": ADDRESS}}},
        {"type": "alias", "previousId": ADDRESS, "userId": "8765309"},
        {"type": "identify", "userId": ADDRESS, "traits": {"email": "other@example.com"}},
        {"type": "identify", "userId": ADDRESS, "traits": {"email": ADDRESS}},
        {"type": "identify", "userId": "7", "traits": {"email": "other@example.com"}},
    ]
    outbox.add(accepted(routes, *calls))
    hashed = sha256(address.lower().encode()).hexdigest()

    assert found(outbox, routes, address=address) == [1, 2, 3, 4, 5]
    assert found(outbox, routes, address=hashed) == [1, 2, 3, 4, 5]
    assert found(outbox, routes, user_id=ADDRESS) == [3, 4, 5]


def test_events_and_calls_of_one_person_are_found_together_each_once(
    outbox: Outbox, routes: Routes
) -> None:
    email = routes["vero"].accept(webhook("ana", user={"id": "42", "email": ADDRESS}), NOON)
    assert isinstance(email, Arrival)
    same = {"type": "identify", "userId": "42", "traits": {"email": ADDRESS}}
    outbox.add([email, *accepted(routes, {**same, "integrations": tagged(id="42")})])

    assert found(outbox, routes, user_id="42") == [1, 2]
    assert found(outbox, routes, address=ADDRESS) == [1, 2]
    assert found(outbox, routes, user_id="42", address=ADDRESS) == [1, 2]
    assert found(outbox, routes, user_id="7", address=ADDRESS) == []
    assert found(outbox, routes, user_id="42", source="segment") == [2]


def test_an_event_whose_user_id_is_an_address_is_found_by_that_id(
    outbox: Outbox, routes: Routes
) -> None:
    email = routes["vero"].accept(webhook("ana", user={"id": ADDRESS}), NOON)
    assert isinstance(email, Arrival)
    outbox.add([email])

    assert found(outbox, routes, user_id=ADDRESS) == [1]
    assert found(outbox, routes, user_id=ADDRESS.lower()) == []


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        (b'{"type":"alias","previousId":"42","userId":"7"', True),
        (b'{"type":"page","anonymousId":"42"', True),
        (b'{"integrations":{"Vero":{"tags":{"action":"add","values":["x"],"id":"42"', True),
        (b'{"type":"novel","integrations":{"Vero":{"tags":{"id":"42"}}}}', True),
        (b'{"type":"novel","previousId":"42"}', True),
        (b'{"type":"novel","properties":{"id":"42"}}', False),
        (b'{"campaign":{"tags":["42"', False),
        (b'{"type":"novel","campaign":{"tags":["42"]}}', False),
    ],
)
def test_an_unreadable_call_is_found_if_a_field_about_a_person_has_the_id(
    outbox: Outbox, routes: Routes, body: bytes, *, is_found: bool
) -> None:
    arrival = routes["segment"].accept(body, NOON)
    assert isinstance(arrival, Arrival)
    outbox.add([arrival])

    assert found(outbox, routes, user_id="42") == [1] * is_found

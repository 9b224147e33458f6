"""Whether the tests' own judge of order notices what it should."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from tests.harness.customers import Customers, Expected
from tests.harness.fakes import Answer
from tests.harness.order import MOST_AT_ONCE, Ledger, well
from tests.harness.stores import SqliteStore, StoredRow
from tests.harness.vero import AUTH_TOKEN, Fault, Vero, says

CALLS = 250
FAILURES = [
    Fault(Answer(0)),
    Fault(Answer(0), taken=True),
    Fault(Answer(503)),
    Fault(Answer(200, body=b"<html>"), taken=True),
    Fault(says(401, "Unauthorized")),
    Fault(says(429, "Slow down", **{"Retry-After": "1"})),
]


class Scene:
    """Calls that relay has answered, and a Vero that gets their requests from a test.

    Attributes:
        due: all that must be sent, in the order of the calls.
    """

    def __init__(self, seed: int) -> None:
        customers = Customers(Random(seed), "a")  # noqa: S311 (no secret)
        self.calls = [*islice(customers.calls(), CALLS)]
        self.due = [request for call in self.calls for request in call.requests]
        self.ledger = Ledger()
        self.ledger.answered(self.calls)
        self.start_again()

    def start_again(self) -> None:
        """Forget what was sent."""
        self.vero = Vero()
        self.vero.judge = well

    def send(self, *requests: Expected, fault: Fault | None = None) -> None:
        """Send the requests, to a Vero with the fault."""
        self.vero.judge = (lambda _request: fault) if fault else well
        for each in requests:
            body = json.dumps({"auth_token": AUTH_TOKEN, **each.body}).encode()
            self.vero.receive(1, each.method, f"/api/v2/{each.path}", body)

    def broken(self) -> list[str]:
        return self.ledger.broken_promises(self.vero)

    @cached_property
    def neighbours(self) -> list[tuple[int, int]]:
        """The places of two requests that follow each other about one person."""
        latest: dict[str, int] = {}
        found = []
        for place, request in enumerate(self.due):
            found += [(latest[name], place) for name in request.people if name in latest]
            latest |= dict.fromkeys(request.people, place)
        return found


@pytest.fixture(params=range(3))
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


def test_all_in_order_breaks_no_promise(scene: Scene) -> None:
    scene.send(*scene.due)

    assert scene.broken() == []
    assert {request.path for request in scene.due} == {
        *("users/track", "users/edit", "users/reidentify", "users/unsubscribe"),
        *("users/resubscribe", "users/delete", "users/tags/edit", "events/track"),
    }
    assert {call.fate for call in scene.calls} == {
        *("delivered", "rejected", "bad_tags", "incomplete", "ignored")
    }


def test_people_do_not_wait_for_each_other(scene: Scene) -> None:
    """A request goes before others as long as these are about other people."""
    requests: list[Expected] = []
    for request in scene.due:
        place = len(requests)
        while place and not {*requests[place - 1].people} & {*request.people}:
            place -= 1
        requests.insert(place, request)
    scene.send(*requests)

    assert requests != scene.due
    assert scene.broken() == []


@pytest.mark.parametrize("place", [0, 7, 100, -1])
def test_a_lost_request_is_noticed(scene: Scene, place: int) -> None:
    lost = scene.due.pop(place)
    scene.send(*scene.due)

    assert any(f"{lost.method} {lost.path}" in each for each in scene.broken())


def test_any_two_requests_about_a_person_that_are_swapped_are_noticed(scene: Scene) -> None:
    for earlier, later in scene.neighbours[:: len(scene.neighbours) // 10]:
        requests = [*scene.due]
        requests[earlier], requests[later] = requests[later], requests[earlier]
        scene.start_again()
        scene.send(*requests)

        assert any("was due" in each for each in scene.broken()), (earlier, later)


@pytest.mark.parametrize("place", [0, 7, 100, -1])
def test_a_request_that_is_repeated_although_it_was_answered_is_noticed(
    scene: Scene, place: int
) -> None:
    scene.due.insert(place, scene.due[place])
    scene.send(*scene.due)

    assert any("was repeated needlessly" in each for each in scene.broken())


def test_a_request_that_is_repeated_after_the_next_one_is_noticed(scene: Scene) -> None:
    earlier, later = scene.neighbours[40]
    scene.send(*scene.due[:earlier])
    scene.send(scene.due[earlier], fault=FAILURES[1])
    scene.send(*scene.due[earlier + 1 : later + 1], *scene.due[earlier:])

    assert any("was due" in each for each in scene.broken())


@pytest.mark.parametrize("fault", FAILURES)
def test_what_was_not_answered_may_be_repeated_and_must_be(scene: Scene, fault: Fault) -> None:
    refused = [call.requests[0] for call in scene.calls if call.fate == "rejected"]
    for number, request in enumerate(scene.due):
        if number % 5 == 0 and request not in refused:
            scene.send(request, request, fault=fault)
        scene.send(request)
    repeated = scene.broken()
    scene.start_again()
    scene.send(*scene.due[:-1])
    scene.send(scene.due[-1], fault=replace(fault, taken=False))

    assert repeated == []
    assert any("is missing" in each or "refused" in each for each in scene.broken())


def test_a_kill_excuses_what_was_under_way_and_no_more(scene: Scene) -> None:
    first = next(request for request in scene.due if request.path == "events/track")
    place = scene.due.index(first)
    scene.send(*scene.due[: place + 1])
    with scene.ledger.killing():
        pass
    scene.send(*scene.due[place:])
    once = scene.broken()
    scene.send(scene.due[-1])

    assert once == []
    assert any("was repeated needlessly" in each for each in scene.broken())


def test_more_repeated_after_a_kill_than_was_under_way_is_noticed() -> None:
    scene = Scene(0)
    scene.calls[:] = [
        call
        for number in range(MOST_AT_ONCE + 1)
        for call in islice(Customers(Random(number), f"shop-{number}").calls(), 1)  # noqa: S311
    ]
    scene.ledger.calls = scene.calls
    first = [call.requests[0] for call in scene.calls if call.requests]
    scene.send(*first)
    with scene.ledger.killing():
        pass
    scene.send(*(request for call in scene.calls for request in call.requests))

    assert len(first) == MOST_AT_ONCE + 1
    assert scene.broken() == [f"{MOST_AT_ONCE + 1} requests were repeated after one kill"]


def test_two_requests_about_a_person_at_once_are_noticed(scene: Scene) -> None:
    earlier, later = scene.neighbours[20]
    scene.send(*scene.due)
    scene.vero.requests[earlier].answered_at = scene.vero.requests[later].arrived_at + 1

    assert any("was under way" in each for each in scene.broken())


def test_what_nobody_has_called_for_is_noticed(scene: Scene) -> None:
    stranger = Expected("POST", "users/track", {"id": "a stranger", "data": {}})
    scene.send(*scene.due, stranger)

    assert any("when nothing was due" in each for each in scene.broken())
    assert any("a stranger should be None" in each for each in scene.broken())


def test_another_value_is_noticed(scene: Scene) -> None:
    (place, changed), *_ = (
        (number, each) for number, each in enumerate(scene.due) if each.path == "users/track"
    )
    data = changed.body["data"] | {"plan": "another"}
    scene.due[place] = replace(changed, body=changed.body | {"data": data})
    scene.send(*scene.due)

    assert any("was due" in each for each in scene.broken())


def test_what_must_be_refused_and_is_not_is_noticed(scene: Scene) -> None:
    for request in scene.due:
        scene.send(request, fault=Fault())

    assert any("was never refused" in each for each in scene.broken())


@dataclass(frozen=True)
class Fates(SqliteStore):
    """A store with these fates, by message id."""

    fates: Sequence[tuple[str, str]] = ()

    def stored(self) -> list[StoredRow]:
        return [
            StoredRow(
                "segment",
                message_id,
                fate if fate in {"delivered", "pending"} else "dead",
                None,
                1,
                None if fate in {"delivered", "pending"} else fate,
                None,
                json.dumps({"messageId": message_id}).encode(),
            )
            for message_id, fate in self.fates
        ]


def test_an_entry_with_another_fate_is_noticed(scene: Scene) -> None:
    scene.send(*scene.due)
    right = [(call.message_id, call.fate) for call in scene.calls if call.fate != "ignored"]
    (name, fate), *rest = right
    another = "rejected" if fate == "delivered" else "delivered"

    def broken(*fates: tuple[str, str]) -> list[str]:
        return scene.ledger.broken_promises(scene.vero, Fates(Path(), fates))

    assert broken(*right) == []
    assert broken((name, another), *rest) == [f"{name} should be {fate} and is {another}"]
    assert broken((name, "pending"), *rest) == [f"{name} should be {fate} and is pending"]
    assert broken(*rest) == [f"{name} is stored 0 times"]
    assert broken(*right, right[0]) == [f"{name} is stored 2 times"]

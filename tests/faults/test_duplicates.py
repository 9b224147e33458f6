import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import Store, pending

_OPENED: dict[str, Any] = {
    "type": "opened",
    "opened_at": 1_767_225_600,
    "message_id": "mail-1",
    "user": {"id": 7, "email": "reader@example.com"},
    "campaign": {"id": 3, "name": "Spring"},
    "user_agent": "Mail/1",
}


def reordered(document: dict[str, Any]) -> dict[str, Any]:
    """The same, with its keys the other way round on each level."""
    return {
        key: reordered(value) if isinstance(value, dict) else value
        for key, value in reversed(document.items())
    }


def age_by_25_hours(store: Store, kind: str) -> None:
    """Let what is stored have come and been delivered that long ago."""
    ago = "- interval '25 hours'" if kind == "postgres" else "- 25 * 3600 * 1000"
    store.run_sql(
        f"UPDATE entries SET received_at = received_at {ago}, delivered_at = delivered_at {ago}"  # noqa: S608 (its own text)
    )


@pytest.mark.parametrize("aged", [False, True], ids=["at once", "after 25 hours"])
def test_one_event_a_hundred_times_is_delivered_once(store: Store, kind: str, aged: bool) -> None:  # noqa: FBT001 (a parameter)
    bodies = [json.dumps(_OPENED), json.dumps(reordered(_OPENED)), json.dumps(_OPENED, indent=2)]
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        if aged:
            first = relay.post(bodies[0].encode())
            delivered = within(30, lambda: not pending(store))
            age_by_25_hours(store, kind)

            assert first.content["status"] == "accepted"
            assert delivered
        with ThreadPoolExecutor(20) as threads:
            posts = [bodies[number % 3].encode() for number in range(100)]
            replies = list(threads.map(relay.post, posts))
        settled = within(30, lambda: not pending(store))
    outcomes = Counter(reply.content["status"] for reply in replies)

    assert outcomes == ({"duplicate": 100} if aged else {"accepted": 1, "duplicate": 99})
    assert len({reply.content["message_id"] for reply in replies}) == 1
    assert settled
    assert len(server.accepted) == 1


def test_two_opens_in_one_second_are_two_events(store: Store) -> None:
    others: list[dict[str, Any]] = [
        {"user_agent": "Mail/2"},
        {"user": {"id": 8}},
        {"message_id": "mail-2"},
        {"type": "clicked", "clicked_at": _OPENED["opened_at"]},
    ]
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        replies = [relay.post(json.dumps(_OPENED | other).encode()) for other in ({}, *others)]
        settled = within(30, lambda: not pending(store))

    assert [reply.content["status"] for reply in replies] == ["accepted"] * 5
    assert settled
    assert len({message["messageId"] for message in server.accepted}) == 5


def test_webhooks_whose_times_cannot_be_read_are_delivered_each_and_once(store: Store) -> None:
    times = ["11/28/2026 05:00", "11/28/2026 06:00", "noon", {"at": 1}, {"at": 2}, True]
    times += ["2026-11-28 05:00:00 UTC", "Sat, 28 Nov 2026 06:00:00 +0000"]
    bodies = [json.dumps(_OPENED | {"opened_at": time}).encode() for time in times]
    timeless = json.dumps(_OPENED | {"opened_at": None}).encode()
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        first, again = ([relay.post(body).content for body in bodies] for _ in range(2))
        untold = [relay.post(timeless).content for _ in range(2)]
        settled = within(30, lambda: not pending(store))

    assert {content["status"] for content in (*first, *untold)} == {"accepted"}
    assert again == [content | {"status": "duplicate"} for content in first]
    assert settled
    assert {message["messageId"] for message in server.accepted} == {
        content["message_id"] for content in (*first, *untold)
    }
    assert len(server.accepted) == len(times) + 2


def test_half_an_emoji_is_delivered_as_the_replacement_character(store: Store) -> None:
    body = json.dumps(_OPENED | {"campaign": {"name": "Spring \ud83c"}}).encode()
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        reply = relay.post(body)
        settled = within(30, lambda: not pending(store))
    (entry,) = store.stored()
    (message,) = server.accepted

    assert reply.content["status"] == "accepted"
    assert settled
    assert entry.body == body
    assert message["properties"]["campaign_name"] == "Spring \ufffd"

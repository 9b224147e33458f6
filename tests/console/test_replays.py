from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from tests.cli.desk import Desk, webhook
from tests.console.client import (
    act,
    event,
    id_of,
    look,
    newest,
    rejected,
)
from tests.harness.processes import (
    within,
)


def test_a_dead_letter_is_replayed_once_under_its_message_id(desk: Desk) -> None:
    (id_,) = rejected(desk, webhook("replayed"))
    ((message_id, _),) = desk.states("replayed")
    offer = event(desk, id_).html.text
    answer = act(desk.relay, f"/console/events/{id_}/replay", reveal="1")
    desk.settle()
    page = look(desk.relay, answer.headers["location"])

    assert "under the same messageId" in offer
    assert answer.headers["location"] == f"/console/events/{id_}?replayed=1&reveal=1"
    assert [message["messageId"] for message in desk.arrivals("replayed")] == [message_id]
    assert "It is pending again" in page.html.text
    assert "replayed" in page.html.text.partition("History")[2]


def test_all_dead_letters_of_a_reason_are_replayed_once(desk: Desk) -> None:
    rejected(desk, *(webhook("all", number) for number in range(5)))
    desk.relay.post(webhook("all", kind="snoozed"))
    answer = act(desk.relay, "/console/dead/replay", reason="rejected")

    assert answer.headers["location"] == "/console/dead?asked=rejected"
    assert within(20, lambda: len(desk.arrivals("all")) == 5)

    desk.settle()
    text = look(desk.relay, answer.headers["location"]).html.text

    assert sorted(m["messageId"] for m in desk.arrivals("all")) == sorted(
        message_id for message_id, state in desk.states("all") if state == "delivered"
    )
    assert "Replaying all of rejected" in text
    assert "state=dead reason=rejected" in text


def test_an_event_for_which_nothing_can_be_sent_is_not_replayed(desk: Desk) -> None:
    desk.relay.post(webhook("alone", kind="snoozed"))
    id_ = newest(desk)
    answer = act(desk.relay, f"/console/events/{id_}/replay")

    assert event(desk, id_).html.all("form", "action") == ["/console/sign-out"]
    assert answer.headers["location"] == f"/console/events/{id_}?replayed=0"
    assert "It was not replayed" in look(desk.relay, answer.headers["location"]).html.text
    assert [state for _, state in desk.states("alone")] == ["dead"]


@pytest.mark.parametrize("reason", ["", "no_such", "rejected' OR 1=1", "\0"])
def test_an_unknown_reason_is_refused(desk: Desk, reason: str) -> None:
    assert act(desk.relay, "/console/dead/replay", reason=reason).status == 400
    assert f"Replaying all of {reason}" not in look(
        desk.relay, f"/console/dead?asked={quote(reason)}"
    ).html.text.replace("Replaying all of rejected,", "")


@pytest.mark.parametrize(
    ("hours", "text"), [(1, "sent again, it counts once"), (25, "sent again, it counts twice")]
)
def test_the_replay_of_a_delivered_event_says_how_often_it_counts(
    sqlite_desk: Desk, hours: int, text: str
) -> None:
    (message_id,) = sqlite_desk.delivered(webhook(f"again-{hours}"))
    sqlite_desk.store.run_sql(
        f"UPDATE entries SET delivered_at = delivered_at - {hours * 3_600_000},"  # noqa: S608 (relay's own)
        f" received_at = received_at - {hours * 3_600_000} WHERE message_id = '{message_id}'"
    )
    id_ = id_of(sqlite_desk, message_id)
    offer = event(sqlite_desk, id_).html.text
    act(sqlite_desk.relay, f"/console/events/{id_}/replay")
    sqlite_desk.settle()

    assert text in offer
    assert [m["messageId"] for m in sqlite_desk.arrivals(f"again-{hours}")] == [message_id] * 2


def test_concurrent_replays_send_nothing_twice(desk: Desk) -> None:
    rejected(desk, *(webhook("twice", number) for number in range(20)))
    with ThreadPoolExecutor(8) as people:
        asked = [
            people.submit(act, desk.relay, "/console/dead/replay", reason="rejected")
            for _ in range(8)
        ]
        answers = [each.result().headers["location"] for each in asked]
    assert within(20, lambda: len(desk.arrivals("twice")) >= 20)
    desk.settle()

    assert {*answers} <= {"/console/dead?asked=rejected", "/console/dead?asked=busy"}
    assert len(desk.arrivals("twice")) == 20

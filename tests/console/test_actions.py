import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from relay.receiver.bodies import MAX_BODY_BYTES
from tests.cli.desk import CANARY, Desk, webhook
from tests.console.asking import (
    WEBHOOK_URLS,
    act,
    event,
    id_of,
    live,
    look,
    newest,
    rejected,
    shown,
)
from tests.harness.fakes import SegmentServer
from tests.harness.processes import (
    PATH,
    SECRET,
    RelayProcess,
    Store,
    within,
)

PAGES = ["", "events", "events?q=x", "events/1", "dead", "dead/export"]


def test_a_dead_letter_is_replayed_once_under_its_message_id(desk: Desk) -> None:
    (id_,) = rejected(desk, webhook("replayed"))
    ((message_id, _),) = desk.states("replayed")
    offer = event(desk, id_).html.said
    answer = act(desk.relay, f"/console/events/{id_}/replay", reveal="1")
    desk.settle()
    page = look(desk.relay, answer.headers["location"])

    assert "under the same messageId" in offer
    assert answer.headers["location"] == f"/console/events/{id_}?replayed=1&reveal=1"
    assert [message["messageId"] for message in desk.arrivals("replayed")] == [message_id]
    assert "It is pending again" in page.html.said
    assert "replayed" in page.html.said.partition("Its story")[2]


def test_all_dead_letters_of_a_reason_are_replayed_once(desk: Desk) -> None:
    rejected(desk, *(webhook("all", number) for number in range(5)))
    desk.relay.post(webhook("all", kind="snoozed"))
    answer = act(desk.relay, "/console/dead/replay", reason="rejected")

    assert answer.headers["location"] == "/console/dead?asked=rejected"
    assert within(20, lambda: len(desk.arrivals("all")) == 5)

    desk.settle()
    said = look(desk.relay, answer.headers["location"]).html.said

    assert sorted(m["messageId"] for m in desk.arrivals("all")) == sorted(
        message_id for message_id, state in desk.states("all") if state == "delivered"
    )
    assert "Replaying all of rejected" in said
    assert "state=dead reason=rejected" in said


def test_what_nothing_can_be_sent_for_is_left_alone(desk: Desk) -> None:
    desk.relay.post(webhook("alone", kind="snoozed"))
    id_ = newest(desk)
    answer = act(desk.relay, f"/console/events/{id_}/replay")

    assert event(desk, id_).html.all("form", "action") == ["/console/sign-out"]
    assert answer.headers["location"] == f"/console/events/{id_}?replayed=0"
    assert "It was left alone" in look(desk.relay, answer.headers["location"]).html.said
    assert [state for _, state in desk.states("alone")] == ["dead"]


@pytest.mark.parametrize("reason", ["", "no_such", "rejected' OR 1=1", "\0"])
def test_there_are_no_other_reasons(desk: Desk, reason: str) -> None:
    assert act(desk.relay, "/console/dead/replay", reason=reason).status == 400
    assert f"Replaying all of {reason}" not in look(
        desk.relay, f"/console/dead?asked={quote(reason)}"
    ).html.said.replace("Replaying all of rejected;", "")


@pytest.mark.parametrize(
    ("hours", "said"), [(1, "sent again, it counts once"), (25, "sent again, it counts twice")]
)
def test_a_replay_of_what_segment_has_says_what_it_means(
    sqlite_desk: Desk, hours: int, said: str
) -> None:
    (message_id,) = sqlite_desk.delivered(webhook(f"again-{hours}"))
    sqlite_desk.store.run_sql(
        f"UPDATE entries SET delivered_at = delivered_at - {hours * 3_600_000},"  # noqa: S608 (relay's own)
        f" received_at = received_at - {hours * 3_600_000} WHERE message_id = '{message_id}'"
    )
    id_ = id_of(sqlite_desk, message_id)
    offer = event(sqlite_desk, id_).html.said
    act(sqlite_desk.relay, f"/console/events/{id_}/replay")
    sqlite_desk.settle()

    assert said in offer
    assert [m["messageId"] for m in sqlite_desk.arrivals(f"again-{hours}")] == [message_id] * 2


def test_replays_at_the_same_time_send_nothing_twice(desk: Desk) -> None:
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


@pytest.mark.parametrize("reveal", [False, True])
def test_an_export_is_that_of_the_command(desk: Desk, reveal: bool) -> None:  # noqa: FBT001 (pytest gives it)
    rejected(desk, webhook(f"export-{reveal}", user_agent="Zoë\u2028"))
    desk.relay.post(webhook(f"export-{reveal}")[:-1])
    for reason in ("rejected", "unreadable", ""):
        page = look(desk.relay, f"/console/dead/export?reason={reason}&reveal={int(reveal)}")
        of_reason = ["--reason", reason] if reason else ["--state", "dead"]
        told = desk.told("export", *of_reason, *(["--reveal"] if reveal else []))

        assert [json.loads(line) for line in page.text.split("\n")[:-1]] == told
        assert (CANARY in page.text) == reveal
        assert page.headers["content-type"] == "application/jsonl"
        assert page.headers["content-disposition"].startswith('attachment; filename="dead-')


@pytest.mark.parametrize(
    "body",
    [
        webhook("play"),
        webhook("play", 1, tags=["<b>", "'"], user={"email": "canary@example.com"}),
        webhook("play", kind="user_updated"),
        webhook("play", campaign={"channel": "sms"}),
        webhook("play", user={"id": 123, "email": "steve@getvero.com"}),
        webhook("play", kind="snoozed"),
        webhook("play", user={}),
        webhook("play")[:-1],
        b"",
        b"[]",
        b"\xef\xbb\xbf" + webhook("play", 2),
        b'{"a":' * 60 + b"1" + b"}" * 60,
        webhook("play", 3, x=" " * (MAX_BODY_BYTES - 200)),
        webhook("play", 3, x=" " * MAX_BODY_BYTES),
        webhook("play", 4, subject="x" * 40_000),
        webhook("play", 5, campaign={"name": "\n\r\n"}),
    ],
    ids=range(16),
)
def test_the_playground_answers_as_the_receiver_and_stores_nothing(
    sqlite_desk: Desk, body: bytes
) -> None:
    before = sqlite_desk.store.run_sql("SELECT count(*), max(id) FROM entries")
    play = {"body": body.decode(), "source": "vero"}
    page = act(sqlite_desk.relay, "/console/playground", **play)
    after = sqlite_desk.store.run_sql("SELECT count(*), max(id) FROM entries")
    reply = sqlite_desk.relay.post(body)
    again = act(sqlite_desk.relay, "/console/playground", **play)
    reply_again = sqlite_desk.relay.post(body)

    assert page.status == 200
    assert after == before
    assert told(page.html.said) == (reply.status, dict(reply.content))
    assert told(again.html.said) == (reply_again.status, dict(reply_again.content))


def told(said: str) -> tuple[int, dict[str, str]]:
    """The status and the JSON of the answer on the page."""
    status, _, rest = said.partition("What relay would answer")[2].strip().partition(" ")
    return int(status), json.JSONDecoder().raw_decode(rest)[0]


def test_a_provider_that_there_is_not_cannot_be_played(desk: Desk) -> None:
    assert act(desk.relay, "/console/playground", body="{}", source="nobody").status == 400


def test_what_is_ignored_and_refused_is_counted(store: Store) -> None:
    with (
        SegmentServer() as segment,
        RelayProcess(
            store, segment.url, RELAY_CUSTOMERIO_SIGNING_KEY="a-key-for-the-tests"
        ) as relay,
    ):
        before = look(relay).html.said
        for _ in range(2):
            relay.post(webhook("counted", kind="user_updated"))
        relay.ask("POST", PATH.replace(SECRET, "x" * 20), b"{}")
        relay.ask("POST", "/webhooks/<script>/x", b"{}")
        relay.ask("POST", "/webhooks/customerio", b"{}")

        assert "Nothing has been ignored" in before
        assert "Nothing has been refused" in before
        assert within(9, lambda: "user_updated 2" in " ".join(look(relay).html.said.split()))

        said = " ".join(look(relay).html.said.split())

    assert "vero 401 wrong or missing secret 1" in said
    assert "customerio 401 wrong or missing signature 1" in said
    assert "unknown 404 no such source 1" in said


def test_the_first_page_says_where_webhooks_go(tmp_path: Path) -> None:
    secret = "a+secret/of?odd#chars%41&ü"
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "relay.db", segment.url, RELAY_VERO_SECRET=secret) as relay,
    ):
        hidden = look(relay).html.said
        unasked = look(relay, "/console/?reveal=1").text + look(relay, "/console/?secret=1").text
        with live(relay, "/console/live/overview?reveal=1") as response:
            streamed = shown(response)
        foreign = look(relay, WEBHOOK_URLS, method="POST", Origin="https://example.com")
        anonymous = look(relay, WEBHOOK_URLS, method="POST", Origin="own", Host="own", Cookie="")
        own = {"Origin": "http://localhost:1", "Host": "localhost:1"}
        revealed = look(relay, WEBHOOK_URLS, method="POST", **own).html.said
        path = revealed.partition("http://localhost:1")[2].split()[0]
        reply = relay.ask("POST", path, webhook("first"))
        within(9, lambda: "Waiting" not in look(relay).html.said)
        later = look(relay, "/console/?reveal=1").html.said

    assert "Waiting for your first webhook" in hidden
    assert f"http://127.0.0.1:{relay.port}/webhooks/vero/•" in hidden
    assert quote(secret) not in hidden + unasked + streamed + foreign.text + anonymous.text
    assert (foreign.status, anonymous.status) == (403, 401)
    assert reply.status == 200
    assert "Waiting" not in later
    assert quote(secret) not in later


def test_an_outbox_that_fails_is_told_of_on_a_page(store: Store) -> None:
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        relay.post(webhook("gone", kind="snoozed"))
        with live(relay, "/console/live/events") as response:
            before = shown(response)
            store.run_sql("ALTER TABLE entries RENAME TO gone")
            store.run_sql("ALTER TABLE tallies RENAME TO gone_too")
            pages = {path: look(relay, f"/console/{path}") for path in PAGES}
            played = act(relay, "/console/playground", body=webhook("gone").decode())
            done = act(relay, "/console/events/1/replay")
            store.run_sql("ALTER TABLE gone RENAME TO entries")
            store.run_sql("ALTER TABLE gone_too RENAME TO tallies")
            relay.post(webhook("gone", 1, kind="snoozed"))

            assert before.count("<tr id=") == 1
            assert shown(response).count("<tr id=") == 2  # nothing else was shown meanwhile

    for path, page in {**pages, "played": played, "done": done}.items():
        assert page.status == 503, path
        assert "The outbox does not answer" in page.html.said
        assert "Traceback" not in page.text
    assert not any("exception" in line or "exc_info" in line for line in relay.log())

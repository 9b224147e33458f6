"""The commands with Segment's calls, on an outbox from which nothing is forwarded meanwhile."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.events import DeadReason, Unusable
from relay.outbox import open_outbox
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import MINUTE
from tests.harness.fakes import SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, run, within
from tests.harness.stores import SqliteStore, Store, pending
from tests.harness.vero import AUTH_TOKEN, Fault, Request, VeroServer, says

BOTH = {
    "SEGMENT_WRITE_KEY": WRITE_KEY,
    "SEGMENT_HOST": "http://127.0.0.1:1",
    "RELAY_VERO_SECRET": SECRET,
    "RELAY_SEGMENT_WRITE_KEY": "a-write-key-of-servers",
    "VERO_AUTH_TOKEN": "a-token-of-vero",
    "VERO_HOST": "http://127.0.0.1:1",
}
IDENTIFY = {"type": "identify", "userId": "42", "traits": {"plan": "pro"}, "messageId": "1"}
TRACK = {"type": "track", "userId": "42", "event": "Seeds Ordered", "messageId": "2"}
TAGS = {"Vero": {"tags": {"action": "add", "values": ["early"]}}}
REFUSED = Unusable(DeadReason.REJECTED, '400 Bad Request: {"message":"id is invalid"}')


def relay(store: Store, *arguments: str, code: int = 0, **changed: str) -> str:
    """Run a command on the store's outbox; return what it prints."""
    environ = {**BOTH, "RELAY_OUTBOX_URL": store.url, **changed}
    done = run(*arguments, **{name: value for name, value in environ.items() if value})
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "a-token-of-vero" not in output
    return output


def documents(store: Store, *arguments: str) -> list[dict[str, Any]]:
    """Return the JSON documents that a command prints."""
    return [json.loads(line) for line in relay(store, *arguments, "--json").splitlines()]


def add(store: Store, *lines: object) -> str:
    """Import lines of calls; return what the command prints."""
    file = store.logs / "calls.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return relay(store, "import", "--source", "segment", str(file)).replace(f"{file}, ", "")


@contextmanager
def opened(store: Store) -> Iterator[Outbox]:
    """Open the outbox."""
    outbox = open_outbox(store.url)
    try:
        yield outbox
    finally:
        outbox.close()


def bury(store: Store, fault: Unusable = REFUSED, *, sent: int = 0) -> None:
    """Make the call that is due first a dead letter, once so many of its messages are sent."""
    with opened(store) as outbox:
        (entry,) = outbox.claim("vero", 1, lease=MINUTE, ordered=True)
        outbox.advance(entry, sent)
        outbox.dead_letter(entry, fault)


def order(store: Store) -> list[int]:
    """Return the ids of the calls to Vero in the order in which they are sent."""
    ids: list[int] = []
    with opened(store) as outbox:
        while claimed := outbox.claim("vero", 9, lease=MINUTE, ordered=True):
            outbox.ack(claimed)
            ids += [entry.id for entry in claimed]
    return ids


def test_a_line_is_one_call_a_batch_or_an_array(store: Store) -> None:
    batch = {"batch": [{**TRACK, "messageId": f"batch-{number}"} for number in range(3)]}
    lines = (IDENTIFY, {**batch, "context": {"ip": "192.0.2.1"}}, [TRACK, TRACK])
    first, again = add(store, *lines), add(store, *lines)
    events = documents(store, "events", "--source", "segment")

    assert first == "5 accepted, 1 duplicate\n"
    assert again == "6 duplicate\n"
    assert [event["collection"] for event in events] == ["track"] * 4 + ["identify"]
    assert order(store) == sorted(event["id"] for event in events)


def test_an_import_reports_the_calls_that_cannot_be_sent_by_their_line(store: Store) -> None:
    nobody = {"type": "identify", "traits": {}}
    visitor = {"type": "page", "anonymousId": "a-1"}
    batch = {"batch": [nobody, visitor, {"type": "novel"}]}
    output = add(store, IDENTIFY, batch, {"type": "alias"}, 7)

    assert output == (
        "line 2: no_recipient: no user id, no address and no anonymous id\n"
        "line 2: unknown_type: a type relay does not know: novel\n"
        "line 3: incomplete: an alias without previousId or without userId\n"
        "line 4: unreadable: not a JSON object\n"
        "1 accepted, 4 dead, 1 ignored\n"
    )


def test_a_line_with_too_many_calls_is_refused(sqlite_store: SqliteStore) -> None:
    output = add(sqlite_store, [{}] * 5_001, IDENTIFY)

    assert output.splitlines() == [
        "line 1: 5001 calls in one body; relay takes 5000 (not kept)",
        "1 accepted, 1 refused",
    ]


def test_equal_calls_without_a_message_id_are_apart_and_imported_once(store: Store) -> None:
    same = {"type": "track", "userId": "42", "event": "Seen"}

    assert add(store, same, {"batch": [same, same]}) == "3 accepted\n"
    assert add(store, same, {"batch": [same, same]}) == "3 duplicate\n"


def test_show_prints_each_message_and_what_is_sent_already(store: Store) -> None:
    add(store, {**IDENTIFY, "integrations": TAGS})
    bury(store, sent=1)
    shown = relay(store, "show", "1")
    (document,) = documents(store, "show", "1")

    assert "\ncall, as received\n" in shown
    assert "\nto Vero, as it would be sent now\n1 of 2, sent already\n{" in shown
    assert "}\n2 of 2\n{" in shown
    assert "id is invalid" in shown
    assert [message["path"] for message in document["messages"]] == [
        "/api/v2/users/track",
        "/api/v2/users/tags/edit",
    ]
    assert (document["sent"], document["not_sent_because"]) == (1, None)


def test_show_prints_why_a_part_is_not_sent(store: Store) -> None:
    add(store, {**IDENTIFY, "integrations": {"Vero": {"tags": "early"}}})
    bury(store, Unusable(DeadReason.BAD_TAGS, "not an object"), sent=1)
    shown = relay(store, "show", "1")
    (document,) = documents(store, "show", "1")

    assert "\n1 of 1, sent already\n{" in shown
    assert "}\nnot sent: bad_tags: integrations.Vero.tags: it is not an object" in shown
    assert (len(document["messages"]), document["sent"]) == (1, 1)
    assert document["not_sent_because"].startswith("bad_tags: integrations.Vero.tags: ")


def test_show_says_what_a_call_waits_for(store: Store) -> None:
    add(store, IDENTIFY, TRACK)
    first, second = relay(store, "show", "1"), relay(store, "show", "2")
    without_vero = relay(store, "show", "1", VERO_AUTH_TOKEN="", RELAY_SEGMENT_WRITE_KEY="")
    (document,) = documents(store, "show", "2")

    assert "pending: waits to be sent, or is being sent" in first
    assert "pending: waits behind entry 1, which concerns the same person" in second
    assert (document["behind"], document["retry_at"]) == (1, None)
    assert "pending: waits for vero, which is not configured" in without_vero


def test_show_says_when_a_call_is_tried_again(store: Store) -> None:
    add(store, IDENTIFY)
    with opened(store) as outbox:
        (entry,) = outbox.claim("vero", 1, lease=MINUTE, ordered=True)
        now = entry.received_at
        outbox.postpone(entry, retry_at=now + 30 * MINUTE, answer="503", failing_since=now)
    (document,) = documents(store, "show", "1")
    shown = relay(store, "show", "1")

    assert f"Vero fails at it; it is tried again at {document['retry_at']}" in shown
    assert document["behind"] is None


def test_events_names_the_person_of_a_call_that_cannot_be_sent(store: Store) -> None:
    add(store, {"type": "delete", "userId": "43"}, IDENTIFY)
    (deletion,) = documents(store, "events", "--reason", "deletion_requested")

    assert (deletion["collection"], deletion["user_id"]) == ("delete", "43")
    assert [e["id"] for e in documents(store, "events", "--collection", "IDENTIFY")] == [2]


def test_a_replay_into_lanes_asks_first_and_comes_after_later_calls(store: Store) -> None:
    add(store, IDENTIFY)
    bury(store)
    add(store, TRACK)
    command = ("replay", "--reason", "rejected")
    (plan,) = documents(store, *command, "--dry-run")
    asked = relay(store, *command, code=1)  # no answer on standard input
    untouched = documents(store, "events", "--state", "dead")
    output = relay(store, *command, "--yes")

    assert (plan["to_send"], plan["in_lanes"], plan["again"]) == (1, 1, 0)
    assert "1 of them go to Vero after what was received later about the same people" in asked
    assert "Send 1 after what was received later about the same people? [y/N]" in asked
    assert len(untouched) == 1
    assert "1 entry replayed" in output
    assert order(store) == [2, 1]


def test_what_a_browser_may_not_do_is_replayed_only_by_its_reason(store: Store) -> None:
    add(store, IDENTIFY)
    bury(store, Unusable(DeadReason.FORBIDDEN, "a browser's write key may not do this: alias"))
    everything = relay(store, "replay", "--since", "1h", "--yes")
    chosen = relay(store, "replay", "--reason", "forbidden", "--yes")

    assert "1 entry left alone: still forbidden\n0 entries replayed" in everything
    assert "1 entry replayed" in chosen


@pytest.mark.parametrize(
    "call",
    [
        {"type": "alias", "userId": "7", "previousId": "42"},
        {"type": "track", "userId": "7", "event": "Unsubscribe", "properties": {"id": "42"}},
        {"type": "identify", "userId": "7", "integrations": {"Vero": {"tags": {"id": "42"}}}},
    ],
)
def test_erase_deletes_calls_that_name_the_person_anywhere(
    store: Store, call: dict[str, Any]
) -> None:
    add(store, call, IDENTIFY, {"type": "identify", "userId": "7"})
    output = relay(store, "erase", "--user-id", "42", "--yes")
    left = [json.loads(entry.body) for entry in store.stored()]

    assert "2 entries erased" in output
    assert left == [{"type": "identify", "userId": "7"}]


def test_a_copy_keeps_lanes_and_steps(store: Store, tmp_path: Path) -> None:
    add(store, {**IDENTIFY, "integrations": TAGS}, TRACK, {"type": "identify", "userId": "7"})
    bury(store, sent=1)
    copy, back = tmp_path / "copy.db", SqliteStore(tmp_path / "back.db")
    relay(store, "backup", str(copy))
    relay(back, "restore", str(copy))
    relay(back, "replay", "--reason", "rejected", "--yes")
    (restored,) = documents(back, "show", "1")

    assert (restored["sent"], restored["behind"]) == (1, 2)
    assert order(back) == [2, 3, 1]


def test_check_reports_each_destination_and_where_relay_receives(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    add(store, IDENTIFY)
    with SegmentServer() as segment:
        lines = relay(
            store,
            "check",
            code=1,
            SEGMENT_HOST=segment.url,
            RELAY_SEGMENT_SHARED_SECRET="a-secret-of-segment",
        ).splitlines()
        without_vero = relay(
            store,
            "check",
            SEGMENT_HOST=segment.url,
            VERO_AUTH_TOKEN="",
            RELAY_SEGMENT_WRITE_KEY="",
        )

    assert f"segment   ok: {segment.url} can be reached" in lines
    assert lines[-1].startswith("Error: vero: http://127.0.0.1:1: ")
    assert "1 entry waits for vero, which is not configured: set VERO_AUTH_TOKEN" in without_vero
    assert "webhook   https://<your host>/webhooks/vero/<secret>" in without_vero
    assert "calls " not in without_vero


def test_check_prints_the_host_as_segments_libraries_take_it(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    with SegmentServer() as server:
        printed = relay(store, "check", SEGMENT_HOST=server.url, VERO_HOST=server.url)

    assert (
        "calls     https://<your host> (the host for Segment's libraries; they add /v1)" in printed
    )


@pytest.mark.parametrize(
    ("token", "code", "line"),
    [
        (AUTH_TOKEN, 0, "vero      ok: {} takes the token"),
        ("another-token", 1, "Error: vero: {}: 401 Unauthorized: it does not take VERO_AUTH_TOKEN"),
    ],
)
def test_check_says_whether_vero_takes_the_token(
    sqlite_store: SqliteStore, token: str, code: int, line: str
) -> None:
    with VeroServer() as vero, SegmentServer() as segment:
        output = relay(
            sqlite_store,
            "check",
            code=code,
            SEGMENT_HOST=segment.url,
            VERO_HOST=vero.url,
            VERO_AUTH_TOKEN=token,
        )

    assert line.format(vero.url) in output.splitlines()
    assert vero.people.by_name.keys() <= {"relay-check"}


def test_a_replay_undoes_what_came_later_and_the_history_tells_it(store: Store) -> None:
    def judge(request: Request) -> Fault | None:
        is_old = request.body["data"]["plan"] == "old"
        return Fault(says(400, "id is invalid")) if is_old and not vero.requests[2:] else None

    with VeroServer() as vero, SegmentServer() as segment:
        vero.judge = judge
        with RelayProcess(store, segment.url, port=0, options=(), **{**BOTH, **vero.environ}):
            calls = [{**IDENTIFY, "traits": {"plan": plan}, "messageId": plan} for plan in _PLANS]
            add(store, *calls)
            assert within(20, lambda: len(vero.requests) == 2 and pending(store) == 0)
            before = vero.person("42").traits["plan"]
            relay(store, "replay", "--reason", "rejected", "--yes")
            assert within(20, lambda: len(vero.requests) == 3 and pending(store) == 0)
        (document,) = documents(store, "show", "1")
        shown = relay(store, "show", "1")

    assert (before, vero.person("42").traits["plan"]) == ("new", "old")
    assert [step["what"] for step in document["history"]] == ["dead", "replayed"]
    assert "delivered: Vero answered 2xx" in shown


_PLANS = ("old", "new")

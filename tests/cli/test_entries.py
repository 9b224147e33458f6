import itertools
import json
import os
import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.events import DeadReason, ParseResult, Unusable
from relay.operations.search import Criteria, Search
from relay.outbox.entries import Arrival, State, StoredEntry
from relay.sources.vero import Vero, VeroSettings
from tests.cli.desk import CANARY, Desk, address, hashed, webhook
from tests.harness.fakes import Answer

NOW = datetime.now(UTC)
HOSTILE = "\x1b[31mred\x1b]0;owned\x07\r\n\u202e<b>" + "x" * 3_000


def found(desk: Desk, criteria: Criteria) -> list[StoredEntry]:
    """Search the outbox of the running relay; return the entries, oldest first."""
    sources = [Vero(VeroSettings())]
    with closing(desk.outbox()) as outbox:
        return [*Search(outbox.entries, sources).find(criteria, newest_first=False)]


@pytest.mark.parametrize(
    ("criteria", "numbers"),
    [
        (Criteria(user_id="user-finder"), [0, 1]),
        (Criteria(user_id="user-finder", states=(State.DELIVERED,)), [0, 1]),
        (Criteria(user_id="user-finder", states=(State.PENDING,)), []),
        (Criteria(user_id="user-finder", collection="Email Opened"), [0]),
        (Criteria(user_id="user-finder", since=NOW - timedelta(hours=1)), [0, 1]),
        (Criteria(user_id="user-finder", until=NOW - timedelta(hours=1)), []),
        (Criteria(user_id="user-finder", source="another"), []),
        (Criteria(user_id="user-finder", reason="rejected"), []),
        (Criteria(user_id="USER-finder"), []),
        (Criteria(address=address("finder")), [0, 1]),
        (Criteria(address=address("finder").upper()), [0, 1]),
        (Criteria(address=hashed("finder")), [0, 1]),
        (Criteria(address=hashed("finder").upper()), [0, 1]),
        (Criteria(address=address("finder")[1:]), []),
        (Criteria(email_id="mail-finder-1"), [1]),
        (Criteria(email_id="mail-finder"), []),
        (Criteria(email_id="mail-finder-1", user_id="user-finder"), [1]),
        (Criteria(email_id="mail-finder-1", address=address("else")), []),
    ],
    ids=itertools.count(),  # the times in the criteria differ from process to process
)
def test_search_finds_the_entries_that_match_the_criteria(
    desk: Desk, criteria: Criteria, numbers: list[int]
) -> None:
    bodies = [webhook("finder"), webhook("finder", 1, kind="clicked")]
    for body in (*bodies, webhook("finder-2")):
        desk.relay.post(body)
    desk.settle()

    assert [entry.body for entry in found(desk, criteria)] == [bodies[n] for n in numbers]


def test_search_finds_an_entry_by_message_id_and_by_entry_id(desk: Desk) -> None:
    (message_id,) = desk.delivered(webhook("by-id"))
    (entry,) = found(desk, Criteria(message_id=message_id))

    assert found(desk, Criteria(ids=(entry.id,))) == [entry]
    assert found(desk, Criteria(ids=(entry.id,), states=(State.DEAD,))) == []


_CUT_OFF = webhook("mentioned")[:-1]
_UNKNOWN = webhook("mentioned", kind="snoozed")


@pytest.mark.parametrize("body", [_CUT_OFF, _UNKNOWN])
@pytest.mark.parametrize(
    ("criteria", "is_found"),
    [
        (Criteria(address=address("mentioned").upper()), True),
        (Criteria(address=hashed("mentioned")), True),
        (Criteria(user_id="user-mentioned"), True),
        (Criteria(email_id="mail-mentioned-0"), True),
        (Criteria(address=address("mentioned")[1:]), False),
        (Criteria(user_id="mentioned"), False),
        (Criteria(email_id="mail-mentioned"), False),
        (Criteria(user_id="user-mentioned", email_id="another"), False),
        # The campaign's id: a number stands in many fields, so it identifies nobody.
        (Criteria(user_id="7"), False),
    ],
    ids=repr,
)
def test_search_finds_an_unreadable_dead_letter_by_person_or_email(
    sqlite_desk: Desk, body: bytes, criteria: Criteria, *, is_found: bool
) -> None:
    body = body.replace(b'"type"', b'"campaign": {"id": 7}, "type"')
    sqlite_desk.relay.post(body)

    assert (body in [entry.body for entry in found(sqlite_desk, criteria)]) == is_found


def test_search_finds_an_address_in_any_encoding_in_a_dead_letter(sqlite_desk: Desk) -> None:
    bodies = [
        b'{"type": "opened", "user": {"email": "' + form.encode()
        for form in (
            f"sent to <{address('forms')}>, in vain",
            address("forms").replace("@", "\\u0040"),
            "https://example.com/?e=" + address("forms").replace("@", "%40"),
        )
    ]
    bodies.append(address("forms").encode("utf-16"))
    for body in bodies:
        sqlite_desk.relay.post(body)

    assert [entry.body for entry in found(sqlite_desk, Criteria(address=address("forms")))] == (
        bodies
    )


class _Failing(Vero):
    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        """Raise for every body."""
        raise KeyError(body, received_at)


def test_search_finds_an_entry_whose_parsing_raises(sqlite_desk: Desk) -> None:
    fault = Unusable(DeadReason.POISON, "the mapping failed: KeyError")
    with closing(sqlite_desk.outbox()) as outbox:
        outbox.add([Arrival("vero", "segment", "vero-poison", NOW, webhook("poison"), fault)])
        search = Search(outbox.entries, [_Failing(VeroSettings())])
        entries = [*search.find(Criteria(address=address("poison")))]

    assert [entry.message_id for entry in entries] == ["vero-poison"]


def test_events_lists_the_newest_and_masks_addresses_without_reveal(desk: Desk) -> None:
    desk.delivered(*(webhook("listed", number) for number in range(3)))
    table = desk.run("events", "--address", address("listed").upper(), "--limit", "2")
    (revealed,) = desk.run_json("events", "--email-id", "mail-listed-1", "--json", "--reveal")

    assert [line.split()[-1] for line in table.splitlines()] == [
        "id",
        "mail-listed-2",
        "mail-listed-1",
    ]
    assert (revealed["address"], revealed["user_id"]) == (address("listed"), "user-listed")


def test_hostile_values_are_printed_short_and_without_control_characters(sqlite_desk: Desk) -> None:
    user = {"id": HOSTILE, "email": address("hostile")}
    (message_id,) = sqlite_desk.delivered(webhook("hostile", user=user, message_id=HOSTILE))
    table = sqlite_desk.run("events", "--message-id", message_id)
    shown = sqlite_desk.run("show", message_id)

    assert len(table.splitlines()) == 2
    assert max(map(len, table.splitlines())) < 250
    assert all(character.isprintable() for character in (table + shown).replace("\n", ""))


@pytest.mark.slow
def test_follow_prints_new_entries_until_it_is_interrupted(desk: Desk) -> None:
    desk.delivered(webhook("before-follow"))
    with desk.start("events", "--follow", "--json", "--limit", "1") as following:
        assert following.stdout is not None
        lines = [following.stdout.readline()]  # --follow has started
        desk.post(webhook("follow"), webhook("follow", 1))
        lines += [following.stdout.readline() for _ in range(2)]
        os.killpg(following.pid, signal.SIGINT)
        rest, errors = following.communicate(timeout=20)
    email_ids = [json.loads(line)["email_id"] for line in lines]
    desk.settle()

    assert email_ids == ["mail-before-follow-0", "mail-follow-0", "mail-follow-1"]
    assert CANARY.encode() not in b"".join(lines)
    assert (following.returncode, rest, errors) == (0, b"", b"")


def test_show_prints_the_whole_history_in_order(desk: Desk) -> None:
    desk.segment.answers.append(Answer(503))
    desk.refused.add("refused at first")
    campaign = {"name": "refused at first"}
    (message_id,) = desk.delivered(webhook("story", campaign=campaign))
    desk.refused.clear()
    desk.run("replay", "--message-id", message_id)
    desk.settle()
    (entry,) = desk.run_json("show", message_id, "--json")
    shown = desk.run("show", str(entry["id"]))

    assert [(step["what"], step["detail"]) for step in entry["history"]] == [
        ("posted", "503 Service Unavailable"),
        ("dead", "rejected"),
        ("replayed", ""),
    ]
    assert entry["state"] == "delivered"
    assert [message["messageId"] for message in entry["messages"]] == [message_id]
    assert json.loads(entry["body"])["message_id"] == "mail-story-0"
    steps = ["received, and on", "503 Service Un", "dead letter: rej", "replayed", "answered 2xx"]
    assert all(step in shown for step in steps)
    assert sorted(steps, key=shown.index) == steps


def test_show_prints_a_dead_letter_that_is_nested_too_deep(sqlite_desk: Desk) -> None:
    body = b'{"user": "' + address("deep").encode() + b'", "x": ' + b"[" * 100_000
    sqlite_desk.relay.post(body)
    (entry,) = found(sqlite_desk, Criteria(address=address("deep")))
    shown = sqlite_desk.run("show", str(entry.id))

    assert '"***"' in shown
    assert shown.endswith("none: unreadable: nested deeper than 50 levels\n")


@pytest.mark.parametrize("entry", ["vero-nobody", "9" * 18, "9" * 30])
def test_show_reports_an_id_that_no_entry_has(sqlite_desk: Desk, entry: str) -> None:
    assert sqlite_desk.run("show", entry, code=1) == f"Error: no entry has the id {entry}\n"


def test_dead_groups_dead_letters_by_reason_with_a_remedy(desk: Desk) -> None:
    desk.relay.post(webhook("grouped", kind="snoozed"))
    desk.relay.post(webhook("grouped", user={}))
    groups = {group["reason"]: group for group in desk.run_json("dead", "--json")}
    table = desk.run("dead")

    for reason, detail in (("unknown_type", "know: snoozed"), ("no_recipient", "neither a user")):
        assert groups[reason]["count"] == sum(e.reason == reason for e in desk.store.stored())
        assert detail in groups[reason]["example"]["detail"]
        assert f"\n{reason}: " in table


def test_a_missing_outbox_is_reported_and_not_created(sqlite_desk: Desk) -> None:
    missing = sqlite_desk.store.logs / "missing.db"
    output = sqlite_desk.run("events", code=1, RELAY_OUTBOX_URL=f"sqlite:///{missing}")

    assert output.startswith(f"Error: outbox: {missing} does not exist")
    assert not missing.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("erase", "--address", " "),
        ("erase",),
        ("replay",),
        ("replay", "--email-id", ""),
        ("events", "--limit", "-1"),
        ("events", "--id", "9" * 30),
        ("events", "--since", "999999w"),
    ],
)
def test_empty_or_impossible_arguments_are_refused(
    sqlite_desk: Desk, arguments: tuple[str, ...]
) -> None:
    """An unset shell variable gives an empty argument: it must not mean everybody."""
    assert "Usage: relay" in sqlite_desk.run(*arguments, code=2)


def test_a_closed_pipe_ends_export_without_an_error(sqlite_desk: Desk) -> None:
    sqlite_desk.delivered(*(webhook("pipe", number, x="x" * 9_000) for number in range(20)))
    with sqlite_desk.start("export", "--user-id", "user-pipe") as exporting:
        assert exporting.stdout is not None
        assert exporting.stdout.read(1) == b"{"
        exporting.stdout.close()
        assert exporting.stderr is not None

        assert exporting.stderr.read() == b""


def test_output_on_a_full_disk_is_reported(sqlite_desk: Desk) -> None:
    with Path("/dev/full").open("wb") as full:
        _, errors = sqlite_desk.start("events", stdout=full).communicate(timeout=20)

    assert errors == b"Error: the output cannot be written: No space left on device\n"

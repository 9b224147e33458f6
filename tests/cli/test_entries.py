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
    """What is found in the outbox of a running relay, oldest first."""
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
    ids=itertools.count(),  # the times in them are others in each process
)
def test_entries_are_found_by(desk: Desk, criteria: Criteria, numbers: list[int]) -> None:
    bodies = [webhook("finder"), webhook("finder", 1, kind="clicked")]
    for body in (*bodies, webhook("finder-2")):
        desk.relay.post(body)
    desk.settle()

    assert [entry.body for entry in found(desk, criteria)] == [bodies[n] for n in numbers]


def test_an_entry_is_found_by_its_message_id_and_its_own(desk: Desk) -> None:
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
        # That of the campaign: a number stands in many fields, and tells of nobody.
        (Criteria(user_id="7"), False),
    ],
    ids=repr,
)
def test_a_dead_letter_that_was_never_read_is_found_by_whom_it_mentions(
    sqlite_desk: Desk, body: bytes, criteria: Criteria, *, is_found: bool
) -> None:
    body = body.replace(b'"type"', b'"campaign": {"id": 7}, "type"')
    sqlite_desk.relay.post(body)

    assert (body in [entry.body for entry in found(sqlite_desk, criteria)]) == is_found


def test_an_address_is_found_however_a_dead_letter_holds_it(sqlite_desk: Desk) -> None:
    bodies = [
        b'{"type": "opened", "user": {"email": "' + form.encode()
        for form in (
            f"said to <{address('forms')}>, in vain",
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
        """Fail at everything."""
        raise KeyError(body, received_at)


def test_what_makes_the_mapping_fail_is_found_all_the_same(sqlite_desk: Desk) -> None:
    fault = Unusable(DeadReason.POISON, "the mapping failed: KeyError")
    with closing(sqlite_desk.outbox()) as outbox:
        outbox.add([Arrival("vero", "segment", "vero-poison", NOW, webhook("poison"), fault)])
        search = Search(outbox.entries, [_Failing(VeroSettings())])
        entries = [*search.find(Criteria(address=address("poison")))]

    assert [entry.message_id for entry in entries] == ["vero-poison"]


def test_events_lists_the_newest_masked_unless_they_are_to_be_revealed(desk: Desk) -> None:
    desk.delivered(*(webhook("listed", number) for number in range(3)))
    table = desk.run("events", "--address", address("listed").upper(), "--limit", "2")
    (told,) = desk.told("events", "--email-id", "mail-listed-1", "--json", "--reveal")

    assert [line.split()[-1] for line in table.splitlines()] == [
        "id",
        "mail-listed-2",
        "mail-listed-1",
    ]
    assert (told["address"], told["user_id"]) == (address("listed"), "user-listed")


def test_a_value_can_neither_command_the_terminal_nor_spread_over_it(sqlite_desk: Desk) -> None:
    user = {"id": HOSTILE, "email": address("hostile")}
    (message_id,) = sqlite_desk.delivered(webhook("hostile", user=user, message_id=HOSTILE))
    table = sqlite_desk.run("events", "--message-id", message_id)
    story = sqlite_desk.run("show", message_id)

    assert len(table.splitlines()) == 2
    assert max(map(len, table.splitlines())) < 250
    assert all(character.isprintable() for character in (table + story).replace("\n", ""))


@pytest.mark.slow
def test_follow_goes_on_with_what_comes_in_until_it_is_interrupted(desk: Desk) -> None:
    desk.delivered(webhook("before-follow"))
    with desk.start("events", "--follow", "--json", "--limit", "1") as following:
        assert following.stdout is not None
        lines = [following.stdout.readline()]  # it has begun
        desk.post(webhook("follow"), webhook("follow", 1))
        lines += [following.stdout.readline() for _ in range(2)]
        os.killpg(following.pid, signal.SIGINT)
        rest, errors = following.communicate(timeout=20)
    told = [json.loads(line)["email_id"] for line in lines]
    desk.settle()

    assert told == ["mail-before-follow-0", "mail-follow-0", "mail-follow-1"]
    assert CANARY.encode() not in b"".join(lines)
    assert (following.returncode, rest, errors) == (0, b"", b"")


def test_show_tells_the_whole_story(desk: Desk) -> None:
    desk.segment.answers.append(Answer(503))
    desk.refused.add("refused at first")
    campaign = {"name": "refused at first"}
    (message_id,) = desk.delivered(webhook("story", campaign=campaign))
    desk.refused.clear()
    desk.run("replay", "--message-id", message_id)
    desk.settle()
    (told,) = desk.told("show", message_id, "--json")
    shown = desk.run("show", str(told["id"]))

    assert [(step["what"], step["detail"]) for step in told["history"]] == [
        ("posted", "503 Service Unavailable"),
        ("dead", "rejected"),
        ("replayed", ""),
    ]
    assert told["state"] == "delivered"
    assert told["track"]["messageId"] == message_id
    assert json.loads(told["body"])["message_id"] == "mail-story-0"
    story = ["received, and on", "503 Service Un", "dead letter: rej", "replayed", "answered 2xx"]
    assert all(step in shown for step in story)
    assert sorted(story, key=shown.index) == story


def test_show_tells_a_dead_letter_that_no_json_parser_would_take(sqlite_desk: Desk) -> None:
    body = b'{"user": "' + address("deep").encode() + b'", "x": ' + b"[" * 100_000
    sqlite_desk.relay.post(body)
    (entry,) = found(sqlite_desk, Criteria(address=address("deep")))
    shown = sqlite_desk.run("show", str(entry.id))

    assert '"***"' in shown
    assert shown.endswith("none: unreadable: nested deeper than 50 levels\n")


@pytest.mark.parametrize("entry", ["vero-nobody", "9" * 18, "9" * 30])
def test_show_tells_that_there_is_no_such_entry(sqlite_desk: Desk, entry: str) -> None:
    assert sqlite_desk.run("show", entry, code=1) == f"Error: no entry has the id {entry}\n"


def test_dead_groups_by_reason_and_says_what_to_do(desk: Desk) -> None:
    desk.relay.post(webhook("grouped", kind="snoozed"))
    desk.relay.post(webhook("grouped", user={}))
    groups = {group["reason"]: group for group in desk.told("dead", "--json")}
    table = desk.run("dead")

    for reason, detail in (("unknown_type", "know: snoozed"), ("no_recipient", "neither a user")):
        assert groups[reason]["count"] == sum(e.reason == reason for e in desk.store.stored())
        assert detail in groups[reason]["example"]["detail"]
        assert f"\n{reason}: " in table


def test_a_file_that_does_not_exist_is_told_and_not_made(sqlite_desk: Desk) -> None:
    missing = sqlite_desk.store.logs / "missing.db"
    told = sqlite_desk.run("events", code=1, RELAY_OUTBOX_URL=f"sqlite:///{missing}")

    assert told.startswith(f"Error: outbox: {missing} does not exist")
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
def test_what_cannot_be_meant_is_refused(sqlite_desk: Desk, arguments: tuple[str, ...]) -> None:
    """A variable of the shell that is not set, above all: it must not mean everybody."""
    assert "Usage: relay" in sqlite_desk.run(*arguments, code=2)


def test_nobody_who_reads_on_is_no_fault(sqlite_desk: Desk) -> None:
    sqlite_desk.delivered(*(webhook("pipe", number, x="x" * 9_000) for number in range(20)))
    with sqlite_desk.start("export", "--user-id", "user-pipe") as exporting:
        assert exporting.stdout is not None
        assert exporting.stdout.read(1) == b"{"
        exporting.stdout.close()
        assert exporting.stderr is not None

        assert exporting.stderr.read() == b""


def test_a_full_disk_under_the_output_is_told(sqlite_desk: Desk) -> None:
    with Path("/dev/full").open("wb") as full:
        _, errors = sqlite_desk.start("events", stdout=full).communicate(timeout=20)

    assert errors == b"Error: the output cannot be written: No space left on device\n"

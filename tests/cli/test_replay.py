from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.outbox.entries import Arrival
from tests.cli.desk import Desk, kill_once, webhook

MANY = 2_000


def dead_letter(name: str, number: int = 0, reason: DeadReason = DeadReason.UNREADABLE) -> Arrival:
    """Return a dead letter that could not be read on arrival and can be now."""
    return Arrival(
        "vero",
        "segment",
        f"vero-{name}-{number}",
        datetime.now(UTC),
        webhook(name, number),
        Unusable(reason, "by an earlier mapping"),
    )


def message_id_of(example: dict[str, Any]) -> str:
    """Return the id of the only message in an example of a plan."""
    (message,) = example["messages"]
    id_: str = message["messageId"]
    return id_


def everything(desk: Desk) -> list[object]:
    """Return all rows of the outbox."""
    tables = ("history", "operations")
    return [*desk.store.stored(), *(desk.store.run_sql(f"SELECT * FROM {t}") for t in tables)]  # noqa: S608 (their names)


def test_replayed_dead_letters_are_delivered_under_their_message_id(desk: Desk) -> None:
    still_bad = Arrival(
        *(
            "vero",
            "segment",
            "vero-still-bad",
            datetime.now(UTC),
            webhook("mended", kind="snoozed"),
        ),
        Unusable(DeadReason.UNKNOWN_TYPE, "a type relay does not know"),
    )
    with closing(desk.outbox()) as outbox:
        outbox.add([dead_letter("mended", number) for number in range(3)] + [still_bad])
    before = everything(desk)
    (plan,) = desk.run_json("replay", "--user-id", "user-mended", "--dry-run", "--json")
    unchanged = everything(desk) == before
    output = desk.run("replay", "--user-id", "user-mended")
    desk.settle()
    ids = [f"vero-mended-{number}" for number in range(3)]

    assert unchanged
    assert (plan["to_send"], plan["again"], plan["unusable"]) == (3, 0, {"unknown_type": 1})
    assert [message_id_of(example) for example in plan["examples"]] == ids
    assert output.startswith("3 entries to send\n1 entry left alone: still unknown_type\n3 entries")
    assert sorted(message["messageId"] for message in desk.arrivals("mended")) == ids
    assert Counter(state for _, state in desk.states("mended")) == {"delivered": 3, "dead": 1}


def test_replay_uses_the_current_settings(sqlite_desk: Desk) -> None:
    sample = b'{"type":"sent","sent_at":1435016238,"user":{"id":123,"email":"steve@getvero.com"}}'
    fault = Unusable(DeadReason.IGNORED, "test_sample: set by RELAY_VERO_TESTS")
    with closing(sqlite_desk.outbox()) as outbox:
        outbox.add([Arrival("vero", "segment", "vero-sample", datetime.now(UTC), sample, fault)])
    command = ("replay", "--message-id", "vero-sample", "--dry-run", "--json")
    (ignored,) = sqlite_desk.run_json(*command)
    (forwarded,) = sqlite_desk.run_json(*command, RELAY_VERO_TESTS="forward")

    assert (ignored["to_send"], ignored["unusable"]) == (0, {"ignored": 1})
    assert forwarded["to_send"] == 1


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (["--reason", "poison"], [1]),
        (["--state", "dead"], [0, 1]),
        (["--until", "2026-01-02"], [0]),
        (["--message-id", "vero-chosen-1"], [1]),
    ],
)
def test_replay_sends_only_the_entries_that_match_the_filters(
    sqlite_desk: Desk, filters: list[str], chosen: list[int]
) -> None:
    old = datetime(2026, 1, 1, tzinfo=UTC)
    letters = [dead_letter("chosen"), dead_letter("chosen", 1, DeadReason.POISON)]
    with closing(sqlite_desk.outbox()) as outbox:
        outbox.add([structs.replace(letters[0], received_at=old), letters[1]])
    command = ("replay", "--user-id", "user-chosen", *filters, "--dry-run", "--json")
    (plan,) = sqlite_desk.run_json(*command)
    ids = [message_id_of(example) for example in plan["examples"]]

    assert ids == [f"vero-chosen-{number}" for number in chosen]


def test_delivered_entries_are_replayed_only_after_confirmation(desk: Desk) -> None:
    recent, old = desk.delivered(webhook("again"), webhook("again", 1))
    desk.store.run_sql(_AGE[desk.store.url[:6]].format(old))
    command = ("replay", "--user-id", "user-again", "--state", "delivered")
    asked = desk.run(*command, code=1)  # no answer on standard input
    arrived_before = len(desk.arrivals("again"))
    output = desk.run(*command, "--yes")
    desk.settle()

    assert asked.startswith(
        "2 entries to send\n  2 of them delivered to Segment before\n  1 of these"
    )
    assert "so long ago that Segment no longer recognises them" in asked
    assert "Send 2 delivered entries again? [y/N]" in asked
    assert arrived_before == 2
    assert "2 entries replayed" in output
    assert Counter(m["messageId"] for m in desk.arrivals("again")) == {recent: 2, old: 2}


_AGE = {
    "sqlite": "UPDATE entries SET delivered_at = delivered_at - 90000000 WHERE message_id = '{}'",
    "postgr": "UPDATE entries SET delivered_at = delivered_at - interval '25 h'"
    " WHERE message_id = '{}'",
}


def replayed(desk: Desk) -> int:
    """Return how many entries the replay below has made pending so far."""
    operations = desk.store.run_sql("SELECT entries FROM operations WHERE what LIKE '% since=1h %'")
    return operations[0][0] if operations else 0


@pytest.mark.slow
def test_a_killed_replay_continues_and_sends_no_entry_twice(desk: Desk) -> None:
    file = desk.file(webhook("killed", number) for number in range(MANY))
    desk.run("import", str(file))
    desk.settle()
    user, filters = ("--user-id", "user-killed"), ("--state", "delivered", "--since", "1h")
    kill_once(desk.fork("replay", *user, *filters, "--yes"), lambda: replayed(desk) > 0)
    desk.settle()
    done = replayed(desk)
    # `1h` now means another time; the replay is still recognised as the same.
    output = desk.run("replay", "--yes", *filters, *user)
    desk.settle()
    arrived = Counter(message["messageId"] for message in desk.arrivals("killed"))
    operation = desk.run_json("operations", "--json", "--limit", "1")[0]

    assert 0 < done < MANY
    assert output.startswith("continuing the same replay, begun at ")
    assert f"{MANY - done:,} entries replayed" in output
    assert set(arrived.values()) == {2}
    assert len(arrived) == MANY
    assert operation["entries"] == MANY
    assert operation["finished"]

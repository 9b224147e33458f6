from pathlib import Path

import pytest

from tests.cli.desk import Desk, address, hashed, kill_once, webhook
from tests.harness.processes import SqliteStore

MANY = 6_000
REFUSED = {"name": "refused"}


def lives(desk: Desk, name: str) -> dict[str, bytes]:
    """Entries of the recipient of that name in every state that lasts, by what became of them."""
    bodies = {
        "delivered": webhook(name),
        "rejected": webhook(name, 1, campaign=REFUSED),
        "unknown_type": webhook(name, 2, kind="snoozed"),
        "unreadable": webhook(name, 3)[:-1],
    }
    desk.refused.add("refused")
    for body in bodies.values():
        desk.relay.post(body)
    desk.settle()
    desk.refused.clear()
    return bodies


@pytest.mark.parametrize("by", ["--address", "--user-id"])
def test_one_person_is_forgotten_in_every_state_and_nobody_else(desk: Desk, by: str) -> None:
    name = f"gone-by{by}"
    bodies = [*lives(desk, name).values()]
    others = [*lives(desk, f"{name}-2").values(), webhook("about", 1, campaign={"id": 7})[:-1]]
    desk.relay.post(others[-1])
    whom = {"--address": address(name).upper(), "--user-id": f"user-{name}"}[by]
    with desk.posting(webhook(name, 4, campaign={"name": name}), name):
        counted = desk.run("erase", by, whom, "--dry-run")
        before = [entry.body for entry in desk.store.stored()]
        (told,) = desk.told("erase", by, whom, "--yes", "--json")
        after = [entry.body for entry in desk.store.stored()]
    operations = desk.told("operations", "--json")

    assert counted.startswith("5 entries found: ")
    assert {*bodies} <= {*before}
    assert told == {"found": 5, "erased": 5, "states": {"dead": 3, "delivered": 1, "pending": 1}}
    assert not [body for body in after if f'"{address(name)}"'.encode() in body]
    assert {*others} <= {*after}
    assert (operations[0]["what"], operations[0]["entries"]) == ("erase", 5)
    assert operations[0]["finished"]
    assert not any(secret in str(operations) for secret in (name, address(name), hashed(name)))


def test_erasing_what_is_being_posted_costs_no_other_event(desk: Desk) -> None:
    """SQLite gives the last id again once its entry has been erased."""
    with desk.posting(webhook("erased", campaign={"name": "erased"}), "erased"):
        desk.run("erase", "--address", address("erased"), "--yes")
        (message_id,) = desk.post(webhook("next to it"))

    assert [message["messageId"] for message in desk.arrivals("next to it")] == [message_id]


def test_an_erasure_is_asked_for_and_noted_though_nobody_is_found(sqlite_desk: Desk) -> None:
    sqlite_desk.delivered(webhook("asked"))
    asked = sqlite_desk.run("erase", "--user-id", "user-asked", code=1)  # nobody answers
    nobody = sqlite_desk.run("erase", "--user-id", "user-nobody")
    latest = sqlite_desk.told("operations", "--json", "--limit", "1")[0]

    assert "Erase them? This cannot be undone. [y/N]" in asked
    assert sqlite_desk.states("asked")
    assert nobody == "0 entries found\n0 entries erased\n"
    assert (latest["what"], latest["entries"]) == ("erase", 0)


def erased(desk: Desk) -> int:
    """How many entries an erasure that is not finished has erased so far."""
    unfinished = "SELECT entries FROM operations WHERE kind = 'erase' AND finished_at IS NULL"
    return sum(entries for (entries,) in desk.store.run_sql(unfinished))


@pytest.mark.slow
def test_an_erasure_killed_in_the_middle_and_begun_again_leaves_nothing(desk: Desk) -> None:
    file = desk.file(webhook("many", number) for number in range(MANY))
    desk.run("import", str(file))
    desk.settle()
    command = ("erase", "--address", address("many"), "--yes")
    kill_once(desk.start(*command), lambda: erased(desk) > 0)
    left = len(desk.states("many"))
    said = desk.run(*command)
    latest = desk.told("operations", "--json", "--limit", "1")[0]

    assert 0 < left < MANY
    assert said.endswith(f"{left:,} entries erased\n")
    assert not desk.states("many")
    assert latest["entries"] == MANY


def holds(files: list[Path], text: str) -> bool:
    """Whether the bytes stand anywhere in the files."""
    return any(text.encode() in file.read_bytes() for file in files if file.exists())


def test_its_bytes_are_gone_from_the_files_while_relay_runs(sqlite_desk: Desk) -> None:
    """Of what was settled, replayed and forgotten, copies may be left in the pages."""
    assert isinstance(sqlite_desk.store, SqliteStore)
    path = sqlite_desk.store.path
    files = [path, path.with_name("relay.db-wal")]
    lives(sqlite_desk, "bytes")
    sizes = (10, 300, 1_000, 3_000, 9_000, 50_000)
    bodies = (
        webhook(name, number, x=address(name) * (sizes[number % 6] // 25))
        for number in range(300)
        for name in ("bytes", "kept", "kept-2")
    )
    sqlite_desk.run("import", str(sqlite_desk.file(bodies)))
    sqlite_desk.settle()
    sqlite_desk.run("replay", "--user-id", "user-bytes", "--state", "delivered", "--yes")
    sqlite_desk.settle()
    there = holds(files, address("bytes"))
    sqlite_desk.run("erase", "--user-id", "user-bytes", "--yes")

    assert there
    assert not holds(files, address("bytes"))
    assert not holds(files, "user-bytes")

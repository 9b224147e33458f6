from pathlib import Path

import pytest

from tests.cli.desk import Desk, address, hashed, kill_once, webhook
from tests.harness.stores import SqliteStore

MANY = 3_000
REFUSED = {"name": "refused"}


def store_each_outcome(desk: Desk, name: str) -> dict[str, bytes]:
    """Store an entry in each lasting state for the recipient; return the bodies by outcome."""
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
def test_erase_removes_one_persons_entries_in_every_state(desk: Desk, by: str) -> None:
    name = f"gone-by{by}"
    bodies = [*store_each_outcome(desk, name).values()]
    others = [
        *store_each_outcome(desk, f"{name}-2").values(),
        webhook("about", 1, campaign={"id": 7})[:-1],
    ]
    desk.relay.post(others[-1])
    whom = {"--address": address(name).upper(), "--user-id": f"user-{name}"}[by]
    with desk.posting(webhook(name, 4, campaign={"name": name}), name):
        counted = desk.run("erase", by, whom, "--dry-run")
        before = [entry.body for entry in desk.store.stored()]
        (result,) = desk.run_json("erase", by, whom, "--yes", "--json")
        after = [entry.body for entry in desk.store.stored()]
    operations = desk.run_json("operations", "--json")

    assert counted.startswith("5 entries found: ")
    assert {*bodies} <= {*before}
    assert result == {"found": 5, "erased": 5, "states": {"dead": 3, "delivered": 1, "pending": 1}}
    assert not [body for body in after if f'"{address(name)}"'.encode() in body]
    assert {*others} <= {*after}
    assert (operations[0]["what"], operations[0]["entries"]) == ("erase", 5)
    assert operations[0]["finished"]
    assert not any(secret in str(operations) for secret in (name, address(name), hashed(name)))


def test_erasing_an_entry_that_is_being_sent_loses_no_other_entry(desk: Desk) -> None:
    """SQLite reuses the highest id after its entry is erased."""
    with desk.posting(webhook("erased", campaign={"name": "erased"}), "erased"):
        desk.run("erase", "--address", address("erased"), "--yes")
        (message_id,) = desk.post(webhook("next to it"))

    assert [message["messageId"] for message in desk.arrivals("next to it")] == [message_id]


def test_erase_asks_first_and_is_recorded_even_if_nothing_is_found(sqlite_desk: Desk) -> None:
    sqlite_desk.delivered(webhook("asked"))
    # Standard input is empty, so the question gets no answer.
    asked = sqlite_desk.run("erase", "--user-id", "user-asked", code=1)
    nobody = sqlite_desk.run("erase", "--user-id", "user-nobody")
    latest = sqlite_desk.run_json("operations", "--json", "--limit", "1")[0]

    assert "Erase them? This cannot be undone. [y/N]" in asked
    assert sqlite_desk.states("asked")
    assert nobody == "0 entries found\n0 entries erased\n"
    assert (latest["what"], latest["entries"]) == ("erase", 0)


def erased(desk: Desk) -> int:
    """Return how many entries the unfinished erasures have erased so far."""
    unfinished = "SELECT entries FROM operations WHERE kind = 'erase' AND finished_at IS NULL"
    return sum(entries for (entries,) in desk.store.run_sql(unfinished))


@pytest.mark.slow
def test_a_killed_erase_finishes_when_it_is_run_again(desk: Desk) -> None:
    file = desk.file(webhook("many", number) for number in range(MANY))
    desk.run("import", str(file))
    desk.settle()
    command = ("erase", "--address", address("many"), "--yes")
    kill_once(desk.fork(*command), lambda: erased(desk) > 0)
    left = len(desk.states("many"))
    output = desk.run(*command)
    latest = desk.run_json("operations", "--json", "--limit", "1")[0]

    assert 0 < left < MANY
    assert output.endswith(f"{left:,} entries erased\n")
    assert not desk.states("many")
    assert latest["entries"] == MANY


def contain(files: list[Path], text: str) -> bool:
    """Return whether any of the files contains the text."""
    return any(text.encode() in file.read_bytes() for file in files if file.exists())


def test_erase_removes_the_bytes_from_the_files_of_a_running_relay(sqlite_desk: Desk) -> None:
    """Settling and replaying move an entry, so old pages may hold copies."""
    assert isinstance(sqlite_desk.store, SqliteStore)
    path = sqlite_desk.store.path
    files = [path, path.with_name("relay.db-wal")]
    store_each_outcome(sqlite_desk, "bytes")
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
    before = contain(files, address("bytes"))
    sqlite_desk.run("erase", "--user-id", "user-bytes", "--yes")

    assert before
    assert not contain(files, address("bytes"))
    assert not contain(files, "user-bytes")

"""The files of a SQLite outbox are deleted, moved or replaced while relay runs."""

import os
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path

import pytest

from relay.outbox.sqlite.store import SqliteOutbox
from tests.cli.desk import webhook
from tests.harness.entries import by_name
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, ForwarderProcess, RelayProcess, run, within
from tests.harness.stores import SqliteStore, pending

_END_SECONDS = 30

Loss = Callable[[Path], object]


def delete(path: Path) -> None:
    """As `git clean -fdx` does."""
    for file in path.parent.glob("relay.db*"):
        file.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def delete_log(path: Path) -> None:
    path.with_name("relay.db-wal").unlink()


losses = pytest.mark.parametrize("lose", [delete, move, replace, delete_log])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the outbox is, in a directory of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "relay.db"


def events(relay: RelayProcess) -> list[str]:
    return [line["event"] for line in relay.log()]


@losses
def test_nothing_more_is_answered_200_and_relay_ends(path: Path, lose: Loss) -> None:
    with SegmentServer() as segment, RelayProcess(path, segment.url) as relay:
        segment.judge = lambda _batch: Answer(503)
        kept = [relay.post(webhook("lost", number)).content["message_id"] for number in range(5)]
        lose(path)
        answers: list[int] = []
        while relay.alive():
            with suppress(OSError, HTTPException):
                answers.append(relay.post(webhook("lost", 100 + len(answers))).status)

        assert 200 not in answers
        assert relay.wait(_END_SECONDS) == os.EX_IOERR
        (broken, *_) = [line for line in relay.log() if line["event"] == "serve.outbox_broken"]
        (rescued,) = [line for line in relay.log() if line["event"] == "outbox.rescued"]
    assert broken["level"] == "critical"
    assert str(path) in broken["error"] or "forwarder's process" in broken["error"]
    with closing(SqliteOutbox(Path(rescued["file"]), create=False)) as outbox:
        assert [*by_name(outbox.entries)] == kept


@losses
def test_it_is_noticed_without_a_webhook_and_without_a_forwarder(path: Path, lose: Loss) -> None:
    with (
        SegmentServer() as segment,
        RelayProcess(path, segment.url, options=["--no-forward"]) as relay,
    ):
        relay.post(webhook("lost", 0))
        lose(path)

        assert relay.wait(_END_SECONDS) == os.EX_IOERR


def test_what_was_kept_is_restored_and_forwarded(path: Path) -> None:
    with SegmentServer() as segment:
        with RelayProcess(path, segment.url) as relay:
            segment.judge = lambda _batch: Answer(503)
            kept = {
                relay.post(webhook("lost", number)).content["message_id"] for number in range(5)
            }
            delete(path)
            relay.wait(_END_SECONDS)
        (rescued,) = path.parent.glob("relay.db.rescued-*")
        segment.judge = lambda _batch: Answer()
        with RelayProcess(path, segment.url) as relay:
            warnings = [
                line["warning"] for line in relay.log() if line["event"] == "outbox.warning"
            ]
            done = run(
                *("restore", str(rescued)),
                SEGMENT_WRITE_KEY=WRITE_KEY,
                RELAY_OUTBOX_URL=relay.store.url,
            )

            assert within(_END_SECONDS, lambda: len(segment.accepted) == 5)
    assert done.stdout == "5 entries restored\n"
    assert [warning for warning in warnings if f"`relay restore {rescued}`" in warning]
    assert {message["messageId"] for message in segment.accepted} == kept


def test_a_forwarder_alone_ends_and_makes_no_other_outbox(path: Path) -> None:
    with SegmentServer() as segment:
        with closing(SqliteOutbox(path)):
            pass
        with ForwarderProcess(path, segment.url) as forwarder:
            delete(path)

            assert forwarder.wait(_END_SECONDS) == os.EX_IOERR
        done = run(
            "forward",
            SEGMENT_WRITE_KEY=WRITE_KEY,
            SEGMENT_HOST=segment.url,
            RELAY_OUTBOX_URL=SqliteStore(path).url,
        )

    assert done.returncode == 1
    assert f"{path} does not exist" in done.stderr
    assert not path.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["events"],
        ["dead"],
        ["operations"],
        ["export"],
        ["replay", "--reason", "rejected"],
        ["erase", "--user-id", "7", "--yes"],
        ["backup", "copy.db"],
        ["check"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_makes_an_outbox(path: Path, command: list[str]) -> None:
    done = run(
        *command,
        SEGMENT_WRITE_KEY=WRITE_KEY,
        RELAY_VERO_SECRET=SECRET,
        SEGMENT_HOST="http://127.0.0.1:9",
        RELAY_OUTBOX_URL=SqliteStore(path).url,
    )

    assert done.returncode == 1
    assert "does not exist" in done.stderr + done.stdout
    assert [*path.parent.iterdir()] == []


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277])
def test_what_relay_writes_is_nobodys_to_read_but_its_owners(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with SegmentServer() as segment, RelayProcess(path, segment.url) as relay:
            relay.post(webhook("lost", 0))
            assert within(_END_SECONDS, lambda: pending(relay.store) == 0)
            environ = {"SEGMENT_WRITE_KEY": WRITE_KEY, "RELAY_OUTBOX_URL": relay.store.url}
            run("backup", str(path.with_name("backup.db")), **environ)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)

    names = ["relay.db", "relay.db-wal", "relay.db-shm", "relay.db-receiver", "relay.db-forwarder"]

    assert {name: modes[name] for name in [*names, "backup.db"]} == dict.fromkeys(
        [*names, "backup.db"], 0o600
    )


def test_files_that_others_may_read_are_logged_at_the_start_and_left_so(path: Path) -> None:
    SqliteOutbox(path).close()
    path.chmod(0o644)
    with SegmentServer() as segment, RelayProcess(path, segment.url) as relay:
        warnings = [line["warning"] for line in relay.log() if line["event"] == "outbox.warning"]

    assert warnings[0].startswith(f"{path} has mode 0644")
    assert path.stat().st_mode & 0o777 == 0o644

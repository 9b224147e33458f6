import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relay.errors import OutboxError
from relay.outbox.entries import Query, Role
from relay.outbox.sqlite.connection import connect, refuse_damage
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.lanes import call, claim, drain
from tests.contracts.outbox import FAULT, MINUTE, NOON, arrival, states
from tests.harness.fakes import SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, run, within
from tests.harness.stores import run_sql, stored

pytestmark = pytest.mark.slow

PAGE = 4096
STATES = Counter(pending=7, delivered=30, dead=3)


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """Return the path of an outbox whose log has not been moved into the file yet."""
    path = tmp_path / "logged" / "relay.db"
    path.parent.mkdir()
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add([arrival(f"sent-{number}", body=bytes(2_000)) for number in range(30)])
        outbox.ack(outbox.claim("segment", 30, lease=MINUTE))
        outbox.add([arrival(f"new-{number}", body=b"%d" % number * 20_000) for number in range(7)])
        outbox.add([arrival(f"dead-{number}", fault=FAULT) for number in range(3)])
        for file in ("relay.db", "relay.db-wal"):
            shutil.copy(tmp_path / file, path.parent)
    return path


@pytest.fixture
def path(logged: Path) -> Path:
    """Return the path of an outbox without a log."""
    SqliteOutbox(logged).close()
    return logged


def _log(path: Path) -> Path:
    return Path(f"{path}-wal")


def _write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def _refusal(path: Path) -> str:
    """Return why the outbox is refused, and assert that it is left as it is."""
    files = [file for file in (path, _log(path)) if file.exists()]
    before = {file: file.read_bytes() for file in files}
    with pytest.raises(OutboxError) as refusal:
        SqliteOutbox(path)

    assert {file: file.read_bytes() for file in files} == before
    return str(refusal.value)


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: _write(path, 0, bytes(100)), id="no head"),
        pytest.param(lambda path: _write(path, 100, bytes(PAGE - 100)), id="no schema"),
        pytest.param(lambda path: _write(path, 0, b"another file " * 500), id="another start"),
        pytest.param(lambda path: _write(path, PAGE, bytes(PAGE)), id="no root"),
        pytest.param(lambda path: _write(path, 20 * PAGE, bytes(PAGE)), id="a page of zeros"),
        pytest.param(lambda path: os.truncate(path, 20 * PAGE), id="cut off"),
    ],
)
def test_a_damaged_file_is_refused_with_a_remedy(path: Path, damage: Damage) -> None:
    damage(path)
    refusal = _refusal(path)

    assert refusal.startswith(f"{path} is damaged (")
    assert f"run `relay salvage {path} NEW`" in refusal


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: _write(_log(path), 0, bytes(32)), id="no head"),
        pytest.param(lambda path: _write(_log(path), 18, b"?"), id="another salt"),
        pytest.param(lambda path: os.truncate(path, 0), id="an empty file"),
        pytest.param(lambda path: path.unlink(), id="no file"),
    ],
)
def test_a_log_that_sqlite_would_drop_is_refused(logged: Path, damage: Damage) -> None:
    damage(logged)

    assert "run `relay salvage" in _refusal(logged)


def test_an_unfinished_commit_is_not_damage(logged: Path) -> None:
    """A power cut leaves an unfinished commit."""
    os.truncate(_log(logged), _log(logged).stat().st_size - 1_000)
    with closing(SqliteOutbox(logged)) as outbox:
        assert states(outbox) < STATES


def test_damage_found_later_is_reported_with_a_remedy(path: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        _write(path, PAGE, bytes(PAGE))
        with pytest.raises(OutboxError, match=r"is damaged .* `relay salvage DAMAGED NEW`"):
            outbox.entries.find(Query(), 1)


def test_the_check_for_damage_ends_after_its_time_limit(path: Path) -> None:
    _write(path, 20 * PAGE, bytes(PAGE))
    with closing(connect(path)) as connection:
        refuse_damage(connection, path, seconds=-1)
        with pytest.raises(OutboxError, match="is damaged"):
            refuse_damage(connection, path)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Return a path at which there is no file."""
    return tmp_path / "new.db"


def test_salvage_copies_every_readable_entry_to_a_new_outbox(path: Path, new: Path) -> None:
    part_of_a_body = path.read_bytes().index(b"3" * (PAGE - 4)) - 4
    _write(path, part_of_a_body, bytes(PAGE))
    _write(path, 0, b"another file " * 500)
    done = run("salvage", str(path), str(new))
    recovered, missing, following = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (0, "")
    assert recovered == "recovered  6 pending, 30 delivered, 3 dead"
    assert missing.startswith("missing    1 that")
    assert str(new) in following
    with closing(SqliteOutbox(new)) as outbox:
        assert states(outbox) == STATES - Counter(pending=1)


@pytest.mark.parametrize("command", ["salvage", "recover"])
def test_salvage_and_its_alias_recover_read_a_log_without_its_file(
    logged: Path, new: Path, command: str
) -> None:
    logged.unlink()

    assert run(command, str(logged), str(new)).returncode == 0
    with closing(SqliteOutbox(new)) as outbox:
        assert states(outbox) == STATES


@pytest.mark.parametrize("lanes_lost", [False, True])
def test_salvage_keeps_the_order_of_lanes(tmp_path: Path, new: Path, *, lanes_lost: bool) -> None:
    """Those whose lanes are lost are sent nevertheless, by the age of their events."""
    path = tmp_path / "relay.db"
    lanes = {f"{number:03}": {number % 7, number % 5 + 10} for number in range(500)}
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add(
            [
                call(name, *own, received_at=NOON - int(name) * MINUTE, body=bytes(300))
                for name, own in lanes.items()
            ]
        )
        outbox.ack(claim(outbox, 5))
    if lanes_lost:
        for (page,) in run_sql(path, "SELECT pageno FROM dbstat WHERE name = 'lanes'"):
            _write(path, (page - 1) * PAGE, bytes(PAGE))
    _write(path, 0, b"another file " * 500)
    done = run("salvage", str(path), str(new))
    with closing(SqliteOutbox(new)) as outbox:
        order = [name for claimed in drain(outbox) for name in claimed]

    assert done.stdout.startswith("recovered  495 pending, 5 delivered, 0 dead\n")
    assert len(order) == 495
    for lane in () if lanes_lost else {lane for own in lanes.values() for lane in own}:
        in_lane = [name for name in order if lane in lanes[name]]

        assert in_lane == sorted(in_lane)


def _refused(damaged: Path, new: Path) -> str:
    before = {file: file.read_bytes() for file in new.parent.glob("*.db*")}
    done = run("salvage", str(damaged), str(new))

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert {file: file.read_bytes() for file in new.parent.glob("*.db*")} == before
    return done.stderr


def test_salvage_creates_no_file_if_nothing_can_be_read(path: Path, new: Path) -> None:
    path.write_bytes(b"another file" * 9_000)

    assert "nothing can be read" in _refused(path, new)
    assert "does not exist" in _refused(path.with_name("missing.db"), new)


def test_salvage_overwrites_no_file(path: Path, new: Path) -> None:
    SqliteOutbox(new).close()

    assert f"{new} exists" in _refused(path, new)
    assert f"{path} exists" in _refused(path, path)


def test_salvage_refuses_an_outbox_in_use(path: Path, new: Path) -> None:
    with closing(SqliteOutbox(path)) as outbox:
        outbox.lock_role(Role.RECEIVER)

        assert "stop it first" in _refused(path, new)


def _webhooks(count: int) -> Iterator[bytes]:
    for number in range(count):
        webhook = {"type": "sent", "message_id": f"mail-{number}", "user": {"id": 42}}
        yield json.dumps(webhook).encode()


@pytest.mark.parametrize("killed", [False, True])
def test_pending_entries_of_a_damaged_outbox_are_forwarded_from_the_new_one(
    tmp_path: Path, new: Path, *, killed: bool
) -> None:
    """The entries are in the log if relay was killed, otherwise in the file."""
    path = tmp_path / "relay.db"
    with RelayProcess(path, "http://127.0.0.1:1") as relay:
        ids = {relay.post(body).content["message_id"] for body in _webhooks(30)}
        if not killed:
            relay.terminate()
            relay.wait(20)
    _write(_log(path) if killed else path, 0, b"another file " * 300)
    environ = {"SEGMENT_WRITE_KEY": WRITE_KEY, "RELAY_VERO_SECRET": SECRET}
    refused = run("serve", RELAY_OUTBOX_URL=f"sqlite:///{path}", **environ)
    salvaged = run("salvage", str(path), str(new))
    with SegmentServer() as server, RelayProcess(new, server.url) as relay:
        assert within(20, lambda: len(server.accepted) == len(ids))
        assert {message["messageId"] for message in server.accepted} == ids
        resent = [relay.post(body).content["status"] for body in _webhooks(30)]

    assert refused.returncode == 1
    assert refused.stderr.startswith(f"Error: outbox: {path} is damaged (")
    assert salvaged.returncode == 0
    assert resent == ["duplicate"] * 30
    assert len(stored(new)) == 30

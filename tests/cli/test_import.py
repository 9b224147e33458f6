import gzip
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.errors import OutboxError
from relay.operations.importing import BATCH_LINES, MAX_LINE_BYTES, BadLine, Importer, lines
from relay.outbox.entries import Arrival, total
from relay.outbox.sqlite.store import SqliteOutbox
from tests.cli.desk import Desk, kill_once, webhook
from tests.harness.processes import SqliteStore
from tests.harness.routes import route

MANY = 8_000
UNIDENTIFIED = b'{"type": "opened", "user": {"id": "user-unidentified"}}'


def imported(outbox: SqliteOutbox, *given: bytes) -> tuple[Counter[str], list[BadLine]]:
    """What became of the lines, as a new command sees it."""
    steps = [*Importer(outbox, route()).run(given)]
    outcomes = sum((step.outcomes for step in steps), Counter[str]())
    return outcomes, [line for step in steps for line in step.bad]


@pytest.fixture
def outbox(sqlite_store: SqliteStore) -> Iterable[SqliteOutbox]:
    """An empty one that nobody forwards from."""
    with closing(SqliteOutbox(sqlite_store.path)) as outbox:
        yield outbox


def test_lines_go_the_way_of_webhooks(desk: Desk) -> None:
    (posted,) = desk.delivered(webhook("imported"))
    file = desk.file(webhook("imported", number) for number in range(3))
    said = desk.run("import", str(file))
    desk.settle()
    later = desk.relay.post(webhook("imported", 2)).content
    ids = [message["messageId"] for message in desk.arrivals("imported")]

    assert said == "2 accepted, 1 duplicate\n"
    assert len({*ids}) == len(ids) == 3
    assert ids[0] == posted
    assert later == {"status": "duplicate", "message_id": ids[2]}


def test_it_reads_what_is_compressed_and_what_it_is_piped(sqlite_desk: Desk) -> None:
    file = sqlite_desk.file([], suffix=".jsonl.gz")
    file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + webhook("packed") + b"\r\n\r\n"))
    piped = sqlite_desk.file([webhook("packed", 1)])
    with piped.open("rb") as stdin, sqlite_desk.start("import", str(file), "-", stdin=stdin) as it:
        said, errors = it.communicate(timeout=20)
    sqlite_desk.settle()

    assert (said, errors) == (b"2 accepted\n", b"")
    assert len(sqlite_desk.arrivals("packed")) == 2


def test_a_file_that_is_cut_off_is_told_when_all_of_it_is_stored(sqlite_desk: Desk) -> None:
    file = sqlite_desk.file([], suffix=".gz")
    content = gzip.compress(b"\n".join(webhook("cut", number) for number in range(200)))
    file.write_bytes(content[: len(content) // 2])
    said = sqlite_desk.run("import", str(file), code=1)
    kept = len(sqlite_desk.states("cut"))

    assert 0 < kept < 200
    assert said.startswith(f"{kept} accepted\nError: {file} cannot be read to its end; what could")


def test_bad_lines_are_told_by_their_numbers_and_kept(sqlite_desk: Desk) -> None:
    bad = [webhook("bad", kind="snoozed"), b"", b"{", b"x" * 3 * MAX_LINE_BYTES]
    file = sqlite_desk.file([webhook("bad"), *bad, webhook("bad", 1)])
    table = sqlite_desk.run("import", str(file))
    *told, outcomes = sqlite_desk.told("import", str(file), "--json")
    kept = [entry.body for entry in sqlite_desk.store.stored() if entry.body in bad]

    assert table.splitlines() == [
        f"{file}, line 2: unknown_type: a type relay does not know: snoozed",
        f"{file}, line 4: unreadable: not JSON: Input data was truncated",
        f"{file}, line 5: longer than {MAX_LINE_BYTES} bytes (not kept)",
        "2 accepted, 2 dead, 1 refused",
    ]
    assert [(line["line"], line["kept"]) for line in told] == [(2, True), (4, True), (5, False)]
    assert outcomes == {"duplicate": 2, "dead": 2, "refused": 1}
    assert kept == [bad[0], bad[2]]


@pytest.mark.slow
def test_an_import_killed_in_the_middle_and_begun_again_leaves_nothing_out(desk: Desk) -> None:
    file = desk.file(
        UNIDENTIFIED if number % 8 == 0 else webhook("broken-off", number) for number in range(MANY)
    )
    count = "SELECT count(*) FROM entries"
    before = desk.store.run_sql(count)[0][0]
    kill_once(desk.start("import", str(file)), lambda: desk.store.run_sql(count)[0][0] > before)
    kept = desk.store.run_sql(count)[0][0] - before
    said = desk.run("import", str(file))
    again = desk.run("import", str(file))

    assert 0 < kept < MANY
    assert said == f"{MANY - kept:,} accepted, {kept:,} duplicate\n"
    assert again == f"{MANY:,} duplicate\n"
    desk.settle()


def test_a_limit_ends_it_and_the_same_command_goes_on(sqlite_desk: Desk) -> None:
    store = SqliteStore(sqlite_desk.store.logs / "limited.db")
    file = sqlite_desk.file(webhook("limited", number) for number in range(3 * BATCH_LINES))
    command = ("import", str(file))
    said = sqlite_desk.run(
        *command, code=1, RELAY_OUTBOX_URL=store.url, RELAY_MAX_BACKLOG=str(BATCH_LINES)
    )
    kept = len(store.stored())
    rest = sqlite_desk.run(*command, RELAY_OUTBOX_URL=store.url)

    assert said == (
        f"{kept:,} accepted\nError: stopped: more than {BATCH_LINES} entries wait"
        " (RELAY_MAX_BACKLOG). Run the same command again to continue\n"
    )
    assert kept == 2 * BATCH_LINES
    assert rest == f"{BATCH_LINES:,} accepted, {kept:,} duplicate\n"


def test_lines_that_nothing_tells_apart_are_each_an_event_of_their_own(
    outbox: SqliteOutbox,
) -> None:
    timeless = webhook("apart", opened_at=None)
    given = [UNIDENTIFIED, webhook("apart"), UNIDENTIFIED + b"  ", timeless, timeless]

    assert imported(outbox, *given)[0] == {"accepted": 5}
    assert imported(outbox, *given)[0] == {"duplicate": 5}
    assert imported(outbox, *given, UNIDENTIFIED)[0] == {"duplicate": 5, "accepted": 1}


def test_what_is_none_of_the_seven_is_ignored(outbox: SqliteOutbox) -> None:
    assert imported(outbox, webhook("other", kind="converted")) == ({"ignored": 1}, [])
    assert total(outbox.counts()).pending == 0


def test_the_step_that_cannot_be_stored_is_told_and_those_before_are_kept(
    sqlite_store: SqliteStore,
) -> None:
    class Filling(SqliteOutbox):
        """A real outbox whose disk is full after the first step."""

        def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
            """See `Outbox.add`."""
            if total(self.counts()).pending:
                raise OutboxError("database or disk is full")
            return super().add(arrivals)

    with closing(Filling(sqlite_store.path)) as outbox:
        given = [webhook("filling", number) for number in range(BATCH_LINES + 1)]
        with pytest.raises(OutboxError, match="full"):
            imported(outbox, *given)

        assert total(outbox.counts()).pending == BATCH_LINES


def test_a_line_as_long_as_a_webhook_may_be_is_taken_and_a_longer_one_costs_no_memory(
    tmp_path: Path,
) -> None:
    longest = json.dumps({"x": "x" * (MAX_LINE_BYTES - 9)}).encode()
    file = tmp_path / "lines"
    file.write_bytes(longest + b"\r\n" + b"y" * 10 * MAX_LINE_BYTES + b"\n" + longest)
    with file.open("rb") as opened:
        first, long, last = [*lines(opened)]

    assert (first.strip(), last) == (longest, longest)
    assert len(longest) == MAX_LINE_BYTES
    assert MAX_LINE_BYTES < len(long) < MAX_LINE_BYTES + 9


def test_imported_events_are_received_now(outbox: SqliteOutbox) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    imported(outbox, UNIDENTIFIED)
    (entry,) = outbox.claim("segment", 1, lease=before.utcoffset() or datetime.now(UTC) - before)

    assert entry.received_at >= before

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
from tests.harness.routes import route
from tests.harness.stores import SqliteStore

MANY = 4_000
UNIDENTIFIED = b'{"type": "opened", "user": {"id": "user-unidentified"}}'


def imported(outbox: SqliteOutbox, *bodies: bytes) -> tuple[Counter[str], list[BadLine]]:
    """Import the lines as a new command does; return the outcomes and the bad lines."""
    steps = [*Importer(outbox, route()).run(bodies)]
    outcomes = sum((step.outcomes for step in steps), Counter[str]())
    return outcomes, [line for step in steps for line in step.bad]


@pytest.fixture
def outbox(sqlite_store: SqliteStore) -> Iterable[SqliteOutbox]:
    """Return an empty outbox without a forwarder."""
    with closing(SqliteOutbox(sqlite_store.path)) as outbox:
        yield outbox


def test_imported_lines_are_accepted_and_delivered_like_webhooks(desk: Desk) -> None:
    (posted,) = desk.delivered(webhook("imported"))
    file = desk.file(webhook("imported", number) for number in range(3))
    output = desk.run("import", str(file))
    desk.settle()
    later = desk.relay.post(webhook("imported", 2)).content
    ids = [message["messageId"] for message in desk.arrivals("imported")]

    assert output == "2 accepted, 1 duplicate\n"
    assert len({*ids}) == len(ids) == 3
    assert ids[0] == posted
    assert later == {"status": "duplicate", "message_id": ids[2]}


def test_import_reads_gzip_files_and_standard_input(sqlite_desk: Desk) -> None:
    file = sqlite_desk.file([], suffix=".jsonl.gz")
    file.write_bytes(gzip.compress(b"\xef\xbb\xbf" + webhook("packed") + b"\r\n\r\n"))
    piped = sqlite_desk.file([webhook("packed", 1)])
    with (
        piped.open("rb") as stdin,
        sqlite_desk.start("import", str(file), "-", stdin=stdin) as importing,
    ):
        output, errors = importing.communicate(timeout=20)
    sqlite_desk.settle()

    assert (output, errors) == (b"2 accepted\n", b"")
    assert len(sqlite_desk.arrivals("packed")) == 2


def test_a_truncated_file_is_stored_as_far_as_readable_and_reported(sqlite_desk: Desk) -> None:
    file = sqlite_desk.file([], suffix=".gz")
    content = gzip.compress(b"\n".join(webhook("cut", number) for number in range(200)))
    file.write_bytes(content[: len(content) // 2])
    output = sqlite_desk.run("import", str(file), code=1)
    kept = len(sqlite_desk.states("cut"))

    assert 0 < kept < 200
    assert output.startswith(
        f"{kept} accepted\nError: {file} cannot be read to its end; what could"
    )


def test_bad_lines_are_reported_by_number_and_kept_as_dead_letters(sqlite_desk: Desk) -> None:
    bad = [webhook("bad", kind="snoozed"), b"", b"{", b"x" * 3 * MAX_LINE_BYTES]
    file = sqlite_desk.file([webhook("bad"), *bad, webhook("bad", 1)])
    table = sqlite_desk.run("import", str(file))
    *bad_lines, outcomes = sqlite_desk.run_json("import", str(file), "--json")
    kept = [entry.body for entry in sqlite_desk.store.stored() if entry.body in bad]

    assert table.splitlines() == [
        f"{file}, line 2: unknown_type: a type relay does not know: snoozed",
        f"{file}, line 4: unreadable: not JSON: Input data was truncated",
        f"{file}, line 5: longer than {MAX_LINE_BYTES} bytes (not kept)",
        "2 accepted, 2 dead, 1 refused",
    ]
    assert [(line["line"], line["kept"]) for line in bad_lines] == [
        (2, True),
        (4, True),
        (5, False),
    ]
    assert outcomes == {"duplicate": 2, "dead": 2, "refused": 1}
    assert kept == [bad[0], bad[2]]


@pytest.mark.slow
def test_a_killed_import_finishes_when_it_is_run_again(desk: Desk) -> None:
    file = desk.file(
        UNIDENTIFIED if number % 8 == 0 else webhook("broken-off", number) for number in range(MANY)
    )
    count = "SELECT count(*) FROM entries"
    before = desk.store.run_sql(count)[0][0]
    kill_once(desk.fork("import", str(file)), lambda: desk.store.run_sql(count)[0][0] > before)
    kept = desk.store.run_sql(count)[0][0] - before
    output = desk.run("import", str(file))
    second_time = desk.run("import", str(file))

    assert 0 < kept < MANY
    assert output == f"{MANY - kept:,} accepted, {kept:,} duplicate\n"
    assert second_time == f"{MANY:,} duplicate\n"
    desk.settle()


def test_import_stops_at_the_backlog_limit_and_continues_when_run_again(sqlite_desk: Desk) -> None:
    store = SqliteStore(sqlite_desk.store.logs / "limited.db")
    file = sqlite_desk.file(webhook("limited", number) for number in range(3 * BATCH_LINES))
    command = ("import", str(file))
    output = sqlite_desk.run(
        *command, code=1, RELAY_OUTBOX_URL=store.url, RELAY_MAX_BACKLOG=str(BATCH_LINES)
    )
    kept = len(store.stored())
    rest = sqlite_desk.run(*command, RELAY_OUTBOX_URL=store.url)

    assert output == (
        f"{kept:,} accepted\nError: stopped: more than {BATCH_LINES} entries wait"
        " (RELAY_MAX_BACKLOG). Run the same command again to continue\n"
    )
    assert kept == 2 * BATCH_LINES
    assert rest == f"{BATCH_LINES:,} accepted, {kept:,} duplicate\n"


def test_equal_lines_without_a_dedupe_key_are_separate_events(
    outbox: SqliteOutbox,
) -> None:
    timeless = webhook("apart", opened_at=None)
    bodies = [UNIDENTIFIED, webhook("apart"), UNIDENTIFIED + b"  ", timeless, timeless]

    assert imported(outbox, *bodies)[0] == {"accepted": 5}
    assert imported(outbox, *bodies)[0] == {"duplicate": 5}
    assert imported(outbox, *bodies, UNIDENTIFIED)[0] == {"duplicate": 5, "accepted": 1}


def test_a_line_outside_the_seven_collections_is_ignored(outbox: SqliteOutbox) -> None:
    assert imported(outbox, webhook("other", kind="converted")) == ({"ignored": 1}, [])
    assert total(outbox.counts()).pending == 0


def test_a_batch_that_cannot_be_stored_raises_and_earlier_ones_stay(
    sqlite_store: SqliteStore,
) -> None:
    class Filling(SqliteOutbox):
        """A real outbox whose disk is full after the first batch."""

        def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
            """See `Outbox.add`."""
            if total(self.counts()).pending:
                raise OutboxError("database or disk is full")
            return super().add(arrivals)

    with closing(Filling(sqlite_store.path)) as outbox:
        bodies = [webhook("filling", number) for number in range(BATCH_LINES + 1)]
        with pytest.raises(OutboxError, match="full"):
            imported(outbox, *bodies)

        assert total(outbox.counts()).pending == BATCH_LINES


def test_a_line_of_maximum_length_is_read_and_a_longer_one_is_cut(
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


def test_imported_events_are_received_at_the_time_of_the_import(outbox: SqliteOutbox) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    imported(outbox, UNIDENTIFIED)
    (entry,) = outbox.claim("segment", 1, lease=before.utcoffset() or datetime.now(UTC) - before)

    assert entry.received_at >= before

"""Somebody else has the SQLite file open: a BI tool, a dump, a shell."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw
import pytest

from tests.cli.desk import webhook
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import pending
from tests.metrics.page import Page

_LONG_LOG = 128 * 2**20
_WAIT_SECONDS = 60


@contextmanager
def stranger(path: Path, *statements: str) -> Iterator[apsw.Connection]:
    """A connection that has run the statements, until it is closed."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(_WAIT_SECONDS * 1000)
        for statement in statements:
            connection.execute(statement).fetchall()
        yield connection


def grow(relay: RelayProcess, size: int) -> list[int]:
    """Post until the log is as long; what was answered."""
    log = relay.outbox.with_name("relay.db-wal")
    statuses: list[int] = []
    while log.stat().st_size < size and statuses[-1:] != [503]:
        body = webhook("large", len(statuses), padding="x" * 900_000)
        statuses.append(relay.post(body).status)
    return statuses


def logged_bytes(relay: RelayProcess) -> int:
    return relay.outbox.with_name("relay.db-wal").stat().st_size


def gauge(relay: RelayProcess, name: str) -> float:
    value = Page.of(relay.port).value(name)
    assert value is not None
    return value


def test_a_long_reader_keeps_no_webhook_from_being_stored(tmp_path: Path) -> None:
    """Its log cannot be emptied, so it grows; that is told, and heals when the reader is done."""
    with SegmentServer() as segment, RelayProcess(tmp_path / "relay.db", segment.url) as relay:
        relay.post(webhook("first"))
        with stranger(relay.outbox, "BEGIN", "SELECT count(*) FROM entries"):
            statuses = grow(relay, _LONG_LOG + 2**20)
            statuses += [relay.post(webhook("small", number)).status for number in range(30)]

            assert {*statuses} == {200}
            assert within(_WAIT_SECONDS, lambda: "warnings" in relay.ask("GET", "/readyz").content)
            health = relay.ask("GET", "/readyz")
            assert health.status == 200
            assert health.content["status"] == "ready"
            assert "a reader of the SQLite file keeps its log" in health.content["warnings"][0]
            assert gauge(relay, "relay_outbox_log_held") == 1
            assert gauge(relay, "relay_outbox_log_bytes") > _LONG_LOG
        assert within(_WAIT_SECONDS, lambda: logged_bytes(relay) < _LONG_LOG / 2)
        assert within(_WAIT_SECONDS, lambda: pending(relay.store) == 0)
        ready = {"status": "ready"}
        assert within(_WAIT_SECONDS, lambda: relay.ask("GET", "/readyz").content == ready)
        assert within(_WAIT_SECONDS, lambda: gauge(relay, "relay_outbox_log_held") == 0)


@pytest.mark.parametrize(
    "statements",
    [
        ["BEGIN IMMEDIATE"],
        ["BEGIN IMMEDIATE", "UPDATE status SET beat = beat"],
        ["BEGIN EXCLUSIVE"],
    ],
    ids="; ".join,
)
def test_webhooks_are_answered_in_time_while_another_program_holds_the_write_lock(
    tmp_path: Path, statements: list[str]
) -> None:
    with SegmentServer() as segment, RelayProcess(tmp_path / "relay.db", segment.url) as relay:
        relay.post(webhook("before"))
        assert within(_WAIT_SECONDS, lambda: pending(relay.store) == 0)
        with stranger(relay.outbox, *statements):
            refused = [relay.post(webhook("during", number)) for number in range(3)]
            unready = relay.ask("GET", "/readyz")
        after = [relay.post(webhook("during", number)).status for number in range(3)]

        assert [reply.status for reply in refused] == [503] * 3
        assert all("retry-after" in reply.headers for reply in refused)
        assert unready.status == 503
        assert after == [200] * 3
        assert within(_WAIT_SECONDS, lambda: len(segment.accepted) >= 4)
        assert within(_WAIT_SECONDS, lambda: relay.ask("GET", "/readyz").status == 200)


@pytest.mark.parametrize(
    "statement", ["VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)", "REINDEX"]
)
def test_what_another_program_did_to_the_file_has_no_effect_afterwards(
    tmp_path: Path, statement: str
) -> None:
    with SegmentServer() as segment, RelayProcess(tmp_path / "relay.db", segment.url) as relay:
        for number in range(20):
            relay.post(webhook("before", number))
        with stranger(relay.outbox, statement):
            pass
        replies = [relay.post(webhook("after", number)).status for number in range(20)]

        assert replies == [200] * 20
        assert within(_WAIT_SECONDS, lambda: len(segment.accepted) == 40)

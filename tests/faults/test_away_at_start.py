import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from relay.errors import OutboxError, OutboxUnusableError
from relay.outbox.entries import total
from relay.outbox.opening import LONGEST_PAUSE_SECONDS, AwaitedOutbox, open_when_there
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import ForwarderProcess, RelayProcess, closed_port, within
from tests.harness.stores import PostgresStore
from tests.harness.webhooks import opened


class StartingRelay(RelayProcess):
    """Is awaited until it answers, ready or not."""

    def _ready(self) -> bool:
        with suppress(OSError):
            return self.ask("GET", "/healthz").status == 200
        return False


class StartingForwarder(ForwarderProcess):
    """Is awaited until it says that it waits."""

    def _ready(self) -> bool:
        return any(line["event"] == "outbox.awaited" for line in self.log())


@contextmanager
def away(server: PostgresServer) -> Iterator[Callable[[], None]]:
    """The server has stopped, until the function that is yielded is called."""
    server.stop("fast")
    started = threading.Event()

    def start() -> None:
        if not started.is_set():
            started.set()
            server.start()

    try:
        yield start
    finally:
        start()


def test_database_away_at_start_is_awaited_behind_503(
    postgres: PostgresServer, postgres_store: PostgresStore
) -> None:
    with (
        away(postgres) as start_database,
        SegmentServer() as segment,
        StartingRelay(postgres_store, segment.url, port=closed_port()) as relay,
    ):
        refused = relay.post(opened())
        readiness = relay.ask("GET", "/readyz")
        health = relay.ask("GET", "/healthz")
        start_database()
        accepted = within(30, lambda: relay.post(opened()).status == 200)
        delivered = within(30, lambda: bool(segment.accepted))
        ready = within(30, lambda: relay.ask("GET", "/readyz").status == 200)

    assert refused.status == 503
    assert int(refused.headers["retry-after"]) > 0
    assert readiness.status == 503
    assert "not open yet" in readiness.content["reasons"][0]
    assert health.status == 200
    assert accepted
    assert delivered
    assert ready


def test_relay_that_awaits_its_database_ends_at_a_signal(
    postgres: PostgresServer, postgres_store: PostgresStore
) -> None:
    with (
        away(postgres),
        SegmentServer() as segment,
        StartingRelay(postgres_store, segment.url, port=closed_port()) as relay,
    ):
        relay.terminate()
        exit_code = relay.wait(20)

    assert exit_code == 0, relay.log()[-5:]


def test_forwarder_of_its_own_awaits_its_database(
    postgres: PostgresServer, postgres_store: PostgresStore
) -> None:
    with SegmentServer() as segment:
        with RelayProcess(postgres_store, segment.url, options=["--no-forward"]) as receiver:
            receiver.post(opened())
        with (
            away(postgres) as start_database,
            StartingForwarder(postgres_store, segment.url),
        ):
            start_database()
            delivered = within(30, lambda: len(segment.accepted) == 1)

    assert delivered


def test_outbox_is_tried_with_growing_pauses_until_it_opens(tmp_path: Path) -> None:
    pauses: list[float] = []

    def open_at_last() -> Outbox:
        if len(pauses) < 8:
            raise OutboxError("away")
        return SqliteOutbox(tmp_path / "relay.db")

    open_when_there(open_at_last, pauses.append).close()

    assert pauses == sorted(pauses)
    assert max(pauses) == LONGEST_PAUSE_SECONDS


def test_outbox_that_waiting_does_not_cure_is_tried_once() -> None:
    pauses: list[float] = []

    def refuse() -> Outbox:
        raise OutboxUnusableError("wrong password")

    with pytest.raises(OutboxUnusableError):
        open_when_there(refuse, pauses.append)

    assert not pauses


def test_awaited_outbox_says_why_it_is_not_open() -> None:
    tried = threading.Event()

    def refuse() -> Outbox:
        tried.set()
        raise OutboxError("nobody listens there")

    outbox = AwaitedOutbox(refuse, opened=lambda _: None, unusable=lambda _: None)
    outbox.start()
    tried.wait(10)

    def error_of(use: Callable[[], object]) -> str:
        with pytest.raises(OutboxError) as error:
            use()
        return str(error.value)

    try:
        assert within(10, lambda: "nobody listens there" in error_of(lambda: outbox.get().counts()))
        assert "nobody listens there" in error_of(lambda: outbox.entries.operations(5))
    finally:
        outbox.close()


def test_use_during_the_first_try_waits_for_it(tmp_path: Path) -> None:
    may_open = threading.Event()

    def open_slowly() -> Outbox:
        may_open.wait(10)
        return SqliteOutbox(tmp_path / "relay.db")

    outbox = AwaitedOutbox(open_slowly, opened=lambda _: None, unusable=lambda _: None)
    outbox.start()
    threading.Timer(0.2, may_open.set).start()
    try:
        assert total(outbox.counts()).pending == 0
    finally:
        outbox.close()

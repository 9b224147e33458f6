"""Connections that stay open while no answer comes back."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from threading import Thread

import psycopg
import pytest

from relay.errors import OutboxError, OutboxUnusableError
from relay.outbox.entries import Query
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import FAULT, MINUTE, arrival
from tests.harness.gateway import Gateway
from tests.harness.postgres import PostgresServer, database_of, query
from tests.harness.processes import within
from tests.outbox.test_postgres import OPERATIONS, fails, fill_pool, works

pytestmark = pytest.mark.slow

SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND pid <> pg_backend_pid()"


@pytest.fixture
def gateway(postgres: PostgresServer) -> Iterator[Gateway]:
    """A gateway to the server, which can fall silent."""
    with Gateway(postgres.port) as gateway:
        yield gateway


@pytest.fixture
def outbox(url: str, gateway: Gateway) -> Iterator[Outbox]:
    """An outbox behind the gateway, with all the connections it may have."""
    with closing(PostgresOutbox(gateway.url(url))) as outbox:
        fill_pool(outbox)
        yield outbox


def seconds_of(operate: Callable[[], object]) -> float:
    """Return how many seconds the operation takes, whether it fails or not."""
    started_at = time.monotonic()
    with suppress(OutboxError):
        operate()
    return time.monotonic() - started_at


def test_silent_connections_are_replaced(outbox: Outbox, gateway: Gateway) -> None:
    gateway.silence()
    with ThreadPoolExecutor(len(OPERATIONS)) as threads:
        seconds = seconds_of(lambda: list(threads.map(partial(fails, outbox), OPERATIONS)))
    recovered = within(5, lambda: works(outbox))

    assert seconds < 12
    assert recovered


def test_an_add_succeeds_although_its_connection_fell_silent(
    outbox: Outbox, gateway: Gateway
) -> None:
    gateway.silence()

    assert outbox.add([arrival("a"), arrival("a"), arrival("b")]) == [True, False, True]
    assert outbox.add([arrival("a")]) == [False]


def test_it_works_again_soon_after_the_network_does(outbox: Outbox, gateway: Gateway) -> None:
    slowest = 0.0
    with gateway.mute():
        for operation in OPERATIONS:
            started_at = time.monotonic()
            assert fails(outbox, operation)
            slowest = max(slowest, time.monotonic() - started_at)
    recovered = within(10, lambda: works(outbox))

    assert slowest < 15
    assert recovered


def test_an_operators_step_has_more_time(
    outbox: Outbox, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.outbox.postgres.entries.LONG_SECONDS", 6)
    gateway.silence()
    seconds = seconds_of(lambda: outbox.entries.find(Query(), 10))

    assert 6 < seconds < 20
    assert works(outbox)


def hears(outbox: Outbox) -> bool:
    """Return whether the outbox reports a change; False if it has no connection now."""
    with suppress(OutboxError):
        return outbox.changed("segment")
    return False


def test_the_listener_notices_that_its_connection_fell_silent(
    url: str, outbox: Outbox, gateway: Gateway
) -> None:
    """The entry is a dead letter: nothing is due, so looking at the table would find nothing."""
    with closing(PostgresOutbox(url)) as adding:
        assert within(10, lambda: not hears(outbox))
        gateway.silence()
        assert within(40, lambda: hears(outbox)), "it listens again"
        assert within(10, lambda: not hears(outbox))
        adding.add([arrival("a", fault=FAULT)])

        assert within(10, lambda: hears(outbox))


def test_closing_does_not_wait_for_the_server(url: str, gateway: Gateway) -> None:
    outbox = PostgresOutbox(gateway.url(url))
    fill_pool(outbox)
    outbox.changed("segment")
    ended: list[float] = []

    def look() -> None:
        with suppress(OutboxError):
            outbox.entries.count(Query())
        ended.append(time.monotonic())

    with gateway.mute():
        looking = Thread(target=look)
        looking.start()
        time.sleep(0.5)  # by now it waits for the server; if not, it fails at once
        closed_at = time.monotonic()
        outbox.close()
        looking.join()

    assert ended[0] - closed_at < 5, "of the minute that it would have waited"


@contextmanager
def deaf_server() -> Iterator[int]:
    """Yield the port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("options", ["", "&sslmode=require", "&connect_timeout=0"])
def test_a_server_that_never_answers_counts_as_away(options: str) -> None:
    with deaf_server() as port:
        started_at = time.monotonic()
        with pytest.raises(OutboxError) as raised:
            PostgresOutbox(
                f"postgresql://relay@127.0.0.1:{port}/relay?application_name=test{options}"
            )

    assert not isinstance(raised.value, OutboxUnusableError)
    assert time.monotonic() - started_at < 15


def test_sessions_do_not_pile_up_at_a_locked_table(url: str, outbox: Outbox) -> None:
    counts: list[int] = []
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE relay.entries")
        for _ in range(3):
            assert fails(outbox, "add")
            counts += [int(count) for (count,) in query(url, SESSIONS.format(database_of(url)))]
        other.rollback()

    assert max(counts) <= 8, "those of the pool, and the one with the lock"
    assert works(outbox)


def test_an_add_that_no_standby_has_fails_and_sessions_do_not_pile_up(
    postgres: PostgresServer, url: str, outbox: Outbox
) -> None:
    counts: list[int] = []
    with postgres.configured("synchronous_standby_names", "nobody"):
        for _ in range(3):
            assert fails(outbox, "add"), "as a new event, and as a copy of one that is there"
            counts += [int(count) for (count,) in query(url, SESSIONS.format(database_of(url)))]

    assert max(counts) <= 8
    assert within(10, lambda: works(outbox))
    assert outbox.claim("segment", 1, lease=MINUTE) == [], "the only entry has been claimed"

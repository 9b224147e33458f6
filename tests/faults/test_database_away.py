import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import UTC, datetime
from random import Random

import pytest
from psycopg import sql

from relay.events import DeadReason, Unusable
from relay.outbox import open_outbox
from relay.outbox.entries import Arrival
from tests.faults.test_away_at_start import StartingRelay
from tests.harness.fakes import SegmentServer
from tests.harness.gateway import Gateway
from tests.harness.oracle import Ledger, well
from tests.harness.postgres import USER, PostgresServer, database_of, query
from tests.harness.processes import PATH, ForwarderProcess, RelayProcess, ask, closed_port, within
from tests.harness.stores import PostgresStore, pending

_BACK_SECONDS = 5
"""How soon webhooks must be taken again."""
_LARGEST_SEGMENT = 17 * 2**20  # the server's own log of writes has segments of 16 MiB
_FILLERS = 10_000

Trouble = Callable[[PostgresServer, str], AbstractContextManager[None]]


def hang_up(server: PostgresServer, url: str) -> None:
    """End all sessions on the database."""
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}"
    server.administer(sql.SQL(ended).format(sql.Literal(database_of(url))))


@contextmanager
def without_connections(server: PostgresServer, url: str) -> Iterator[None]:
    """All that relay's role may have are taken."""
    limit = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}")
    role = sql.Identifier(USER)
    server.administer(limit.format(role, sql.Literal(0)))
    hang_up(server, url)
    try:
        yield
    finally:
        server.administer(limit.format(role, sql.Literal(-1)))


@contextmanager
def without_room(server: PostgresServer, url: str) -> Iterator[None]:
    """The table can grow no more; what is there can still be changed."""
    rng = Random(0)  # noqa: S311 (no secret hangs on it)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    fault = Unusable(DeadReason.UNREADABLE, "filler")
    with closing(open_outbox(url, create=True)) as outbox:
        for first in range(0, _FILLERS, 1_000):
            names = [f"filler-{number}" for number in range(first, first + 1_000)]
            outbox.add(
                [Arrival("filler", "segment", i, noon, rng.randbytes(1_800), fault) for i in names]
            )
    with server.sized(_LARGEST_SEGMENT):
        yield
    query(url, "DELETE FROM relay.entries WHERE source = 'filler'")


@contextmanager
def suspended(server: PostgresServer, _url: str) -> Iterator[None]:
    """It neither answers nor breaks connections."""
    with server.suspended():
        yield


@contextmanager
def read_only(server: PostgresServer, _url: str) -> Iterator[None]:
    """As a server that has been demoted."""
    with server.configured("default_transaction_read_only", "on"):
        yield


def rises(count: Callable[[], int], seconds: float) -> bool:
    """Whether it does in time."""
    before = count()
    return within(seconds, lambda: count() > before)


TROUBLES: list[Trouble] = [without_connections, without_room, suspended, read_only]


@contextmanager
def load(relay: RelayProcess, ledger: Ledger) -> Iterator[list[float]]:
    """Webhooks one after the other on four connections meanwhile; how long each answer took."""
    over = threading.Event()
    took: list[float] = []

    def send() -> None:
        with ExitStack() as stack:
            connection = relay.connection("127.0.0.1", relay.port, timeout=30)
            stack.callback(connection.close)
            while not over.wait(0.01):
                webhook = ledger.next()
                asked_at = time.monotonic()
                reply = ask(connection, "POST", PATH, webhook.body)
                took.append(time.monotonic() - asked_at)
                if reply.status == 503:
                    assert reply.headers["retry-after"]
                    ledger.refused(webhook)
                else:
                    ledger.answered(webhook, reply)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    try:
        yield took
    finally:
        over.set()
        for sender in senders:
            sender.join()


def says_why(relay: RelayProcess) -> bool:
    """Whether relay is not ready, and says that it is for the outbox's sake."""
    reply = relay.ask("GET", "/readyz")
    reasons = reply.content.get("reasons", [])
    return reply.status == 503 and any("outbox" in r or "not stored" in r for r in reasons)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("problem", TROUBLES)
@pytest.mark.slow
def test_while_the_database_is_away_webhooks_are_refused_and_none_is_lost(
    problem: Trouble,
    postgres: PostgresServer,
    postgres_store: PostgresStore,
    times: Callable[[int, int], int],
) -> None:
    ledger = Ledger(Random(0), forgetful=True)  # noqa: S311 (no secret hangs on it)
    with SegmentServer() as server, RelayProcess(postgres_store, server.url) as relay:
        server.judge = well
        with load(relay, ledger) as took:
            for _ in range(times(1, 10)):
                ledger.await_answers(100)
                with problem(postgres, postgres_store.url):
                    refusing = rises(lambda: ledger.refusals, 20)
                    unready = within(20, lambda: says_why(relay))
                back = rises(lambda: ledger.answers, _BACK_SECONDS)

                assert refusing
                assert unready
                assert back
        drained = within(90, lambda: not pending(postgres_store))
        relay.terminate()
        exit_code = relay.wait(20)
    broken = ledger.broken_promises(postgres_store, server)

    assert max(took) < 4, "a sender with a limit of 4 s would have given up"
    assert drained
    assert not broken, "\n".join(broken[:10])
    assert exit_code == 0


@pytest.mark.timeout(120)
def test_relay_ends_in_time_while_the_database_hangs(
    postgres: PostgresServer, postgres_store: PostgresStore
) -> None:
    ledger = Ledger(Random(0))  # noqa: S311 (no secret hangs on it)
    with SegmentServer() as server, RelayProcess(postgres_store, server.url) as relay:
        with load(relay, ledger):
            ledger.await_answers(100)
        with postgres.suspended():
            relay.terminate()
            exit_code = relay.wait(20)

    assert exit_code == 0


@pytest.fixture
def gateway(postgres: PostgresServer) -> Iterator[Gateway]:
    """The way to the server."""
    with Gateway(postgres.port) as gateway:
        yield gateway


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_connections_that_fall_silent_are_replaced_and_nothing_is_lost(
    gateway: Gateway, postgres_store: PostgresStore, times: Callable[[int, int], int]
) -> None:
    ledger = Ledger(Random(0), forgetful=True)  # noqa: S311 (no secret hangs on it)
    through = PostgresStore(gateway.url(postgres_store.url), postgres_store.logs)
    with SegmentServer() as server, RelayProcess(through, server.url) as relay:
        server.judge = well
        with load(relay, ledger) as took:
            for _ in range(times(1, 10)):
                ledger.await_answers(100)
                gateway.silence()

                assert rises(lambda: ledger.refusals, 20)
                assert rises(lambda: ledger.answers, 10)
        drained = within(90, lambda: not pending(postgres_store))
        relay.terminate()
        exit_code = relay.wait(20)
    broken = ledger.broken_promises(postgres_store, server)

    assert max(took) < 4, "a sender with a limit of 4 s would have given up"
    assert drained
    assert not broken, "\n".join(broken[:10])
    assert exit_code == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [RelayProcess, ForwarderProcess])
@pytest.mark.slow
def test_relay_ends_in_time_while_nothing_comes_through(
    gateway: Gateway, postgres_store: PostgresStore, kind: type[RelayProcess]
) -> None:
    through = PostgresStore(gateway.url(postgres_store.url), postgres_store.logs)
    open_outbox(postgres_store.url, create=True).close()
    with SegmentServer() as server, kind(through, server.url) as relay, gateway.mute():
        time.sleep(1)  # some of its connections hang by now, each in its own state
        relay.terminate()
        exit_code = relay.wait(20)

    assert exit_code == 0


@pytest.mark.timeout(120)
def test_relay_ends_in_time_while_the_database_is_silent_from_the_beginning(
    gateway: Gateway, postgres_store: PostgresStore
) -> None:
    through = PostgresStore(gateway.url(postgres_store.url), postgres_store.logs)
    with (
        gateway.mute(),
        SegmentServer() as server,
        StartingRelay(through, server.url, port=closed_port()) as relay,
    ):
        assert within(10, lambda: gateway.taken > 0)
        relay.terminate()
        exit_code = relay.wait(20)

    assert exit_code == 0

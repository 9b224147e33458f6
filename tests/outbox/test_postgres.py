import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import psycopg
import pytest
from msgspec import structs

from relay.errors import OutboxError, OutboxUnusableError
from relay.events import DeadReason, Unusable
from relay.outbox.entries import Keys, Role, total
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.by_destination import ByDestinationContract
from tests.contracts.changes import ChangesContract, RunSql
from tests.contracts.counters import CountersContract
from tests.contracts.entries import EntryStoreContract
from tests.contracts.lanes import LanesContract, RunNamedSql
from tests.contracts.outbox import (
    FAULT,
    MINUTE,
    OpenStore,
    OutboxContract,
    acquire,
    arrival,
    states,
)
from tests.contracts.suspects import SuspectsContract
from tests.harness.entries import (
    as_requeue,
    by_name,
    erase,
    everything,
    filled,
    requeue,
    without_ids,
)
from tests.harness.fakes import Clock
from tests.harness.gateway import Gateway
from tests.harness.postgres import PASSWORD, PostgresServer, StopMode, database_of, query
from tests.harness.processes import within

# Each needs the server, and all but the last write to it.
OPERATIONS: dict[str, Callable[[Outbox], object]] = {
    "add": lambda outbox: outbox.add([arrival("another")]),
    "claim": lambda outbox: outbox.claim("segment", 1, lease=MINUTE),
    "throttle": lambda outbox: outbox.throttle("segment", acquire),
    "check": lambda outbox: outbox.check(),
    "counts": lambda outbox: total(outbox.counts()),
}


@pytest.fixture
def outbox(url: str) -> Iterator[Outbox]:
    """An empty outbox."""
    with closing(PostgresOutbox(url)) as outbox:
        yield outbox


class TestPostgresOutbox(
    OutboxContract,
    EntryStoreContract,
    ChangesContract,
    SuspectsContract,
    CountersContract,
    ByDestinationContract,
    LanesContract,
):
    lives = (8, 15)  # each is a database
    claimers = 2

    @pytest.fixture
    def urls(self, postgres: PostgresServer) -> Iterator[dict[str, str]]:
        """One database a name."""
        urls: dict[str, str] = {}
        yield urls
        for url in urls.values():
            postgres.drop_database(url)

    @pytest.fixture
    def open_store(
        self, postgres: PostgresServer, migrated: str, urls: dict[str, str]
    ) -> OpenStore:
        def open_store(name: str, clock: Clock) -> PostgresOutbox:
            if name not in urls:
                urls[name] = postgres.create_database(migrated)
            return PostgresOutbox(urls[name], clock=clock.now)

        return open_store

    @pytest.fixture
    def run_sql(self, urls: dict[str, str]) -> RunSql:
        return lambda statement: query(urls["relay"], statement, search_path="relay")

    @pytest.fixture
    def run_named_sql(self, urls: dict[str, str]) -> RunNamedSql:
        return lambda name, statement: query(urls[name], statement, search_path="relay")


def fails(outbox: Outbox, operation: str) -> bool:
    """Return whether the operation fails with an OutboxError."""
    try:
        OPERATIONS[operation](outbox)
    except OutboxError:
        return True
    return False


def works(outbox: Outbox) -> bool:
    """Return whether all operations work."""
    return not any(fails(outbox, operation) for operation in OPERATIONS)


def fill_pool(outbox: Outbox) -> None:
    """Have the outbox open as many connections as it may, and leave them idle."""
    start = Barrier(6)

    def work(_: int) -> None:
        start.wait()
        for _ in range(20):
            outbox.claim("segment", 1, lease=MINUTE)
            outbox.throttle("segment", acquire)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))


def test_an_add_outlives_a_crash_whatever_the_servers_default_is(
    postgres: PostgresServer, url: str
) -> None:
    query(url, f"ALTER DATABASE {database_of(url)} SET synchronous_commit = off")
    outbox = PostgresOutbox(url)
    outbox.add([arrival("a"), arrival("b", fault=FAULT)])
    postgres.restart("immediate")
    outbox.close()
    left = PostgresOutbox(url)

    assert left.add([arrival("a"), arrival("b"), arrival("c")]) == [False, False, True]
    assert states(left) == Counter(pending=2, dead=1)
    left.close()


def test_an_operators_change_outlives_a_crash_whatever_the_servers_default_is(
    postgres: PostgresServer, url: str
) -> None:
    query(url, f"ALTER DATABASE {database_of(url)} SET synchronous_commit = off")
    with closing(PostgresOutbox(url)) as outbox:
        outbox.add([arrival(name, fault=FAULT) for name in ("erased", "replayed")])
        erased, replayed = by_name(outbox.entries).values()
        operations = [outbox.entries.begin(kind, "it") for kind in ("replay", "erase")]
        outbox.entries.restore([structs.replace(erased, message_id="restored")])
        # Each is flushed by itself: what comes later would flush it, too.
        changes: list[Callable[[], object]] = [
            lambda: outbox.entries.requeue([as_requeue(replayed)], operations[0]),
            lambda: outbox.entries.erase([erased.id], operations[1]),
        ]
        found = [states_after_crash(postgres, url)]
        for change in changes:
            assert within(10, lambda: not fails(outbox, "counts"))
            change()
            found.append(states_after_crash(postgres, url))

    assert found == [
        {"replayed": "dead", "erased": "dead", "restored": "dead"},
        {"replayed": "pending", "erased": "dead", "restored": "dead"},
        {"replayed": "pending", "restored": "dead"},
    ]


def states_after_crash(postgres: PostgresServer, url: str) -> dict[str, str]:
    """Crash the server, and return the states of the entries that were on disk."""
    postgres.restart("immediate")
    return dict(query(url, "SELECT message_id, state FROM relay.entries"))


def test_keys_are_deleted_with_their_entries(url: str, outbox: Outbox) -> None:
    keys = Keys(1, 2, 3)
    outbox.add([structs.replace(arrival(name), keys=keys) for name in "abc"])
    entries = by_name(outbox.entries)
    outbox.ack(
        [entry for entry in outbox.claim("segment", 9, lease=MINUTE) if entry.message_id == "a"]
    )
    forgotten = outbox.purge(datetime.now(UTC) + MINUTE, 9)
    erase(outbox.entries, entries["b"])
    requeue(outbox.entries, *entries.values())

    assert forgotten == 1
    assert query(url, "SELECT entry FROM relay.keys") == [(entries["c"].id,)]


@pytest.mark.parametrize("source", ["sqlite", "postgres"])
def test_entries_are_the_same_when_the_other_store_has_restored_them(
    url: str, tmp_path: Path, source: str
) -> None:
    clock = Clock()
    with (
        closing(SqliteOutbox(tmp_path / "relay.db", clock=clock.now)) as sqlite,
        closing(PostgresOutbox(url, clock=clock.now)) as postgres,
    ):
        stores: list[Outbox] = [sqlite, postgres] if source == "sqlite" else [postgres, sqlite]
        model = filled(stores[0], clock)
        restored = stores[1].entries.restore(everything(stores[0].entries))

        assert restored == len(model)
        assert without_ids(everything(stores[1].entries)) == without_ids(model)


def test_any_number_of_processes_may_have_each_role(url: str) -> None:
    with closing(PostgresOutbox(url)) as one, closing(PostgresOutbox(url)) as other:
        for outbox in (one, other):
            for role in Role:
                outbox.lock_role(role)
            outbox.add([arrival("a"), arrival("b")])
        held = [outbox.claim("segment", 1, lease=MINUTE)[0].message_id for outbox in (one, other)]

        assert sorted(held) == ["a", "b"]
        assert one.free_bytes() is None


def test_a_server_that_does_not_sync_is_refused(postgres: PostgresServer, url: str) -> None:
    with postgres.configured("fsync", "off"), pytest.raises(OutboxUnusableError, match="fsync=off"):
        PostgresOutbox(url)


def test_processes_that_start_together_migrate_once(url: str) -> None:
    start = Barrier(8)

    def begin(_: int) -> None:
        start.wait()
        PostgresOutbox(url).close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(begin, range(8)))

    assert query(url, "SELECT version FROM relay.migrations ORDER BY 1") == [
        (1,),
        (2,),
        (3,),
        (4,),
    ]


_OPENS = "import sys; from relay.outbox import open_outbox; open_outbox(sys.argv[1], create=True)"
_STUCK = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


def test_a_migration_killed_half_way_is_resumed(url: str) -> None:
    query(url, "CREATE SCHEMA relay")
    with psycopg.connect(url) as other:
        other.execute("CREATE TABLE relay.status ()")  # not committed: the migration waits for it
        with subprocess.Popen([sys.executable, "-c", _OPENS, url]) as migrating:  # noqa: S603 (its own Python)
            stuck = within(30, lambda: query(url, _STUCK) == [(1,)])
            migrating.send_signal(signal.SIGKILL)
        other.rollback()
    outbox = PostgresOutbox(url)

    assert stuck
    assert works(outbox)
    outbox.close()


def test_a_schema_of_a_newer_relay_is_refused(url: str) -> None:
    PostgresOutbox(url).close()
    query(url, "INSERT INTO relay.migrations VALUES (1000)")

    with pytest.raises(OutboxUnusableError, match="newer relay"):
        PostgresOutbox(url)


def test_a_nul_in_a_detail_is_replaced(url: str, outbox: Outbox) -> None:
    fault = Unusable(DeadReason.REJECTED, "before\0after")
    outbox.add([arrival("a", fault=fault), arrival("b")])
    outbox.dead_letter(outbox.claim("segment", 1, lease=MINUTE)[0], fault)
    details = query(url, "SELECT detail FROM relay.entries")

    assert details == [("before\ufffdafter",)] * 2


def test_a_notification_tells_a_forwarder_of_new_entries(url: str, outbox: Outbox) -> None:
    """The entry is a dead letter: nothing is due, so looking at the table would find nothing."""
    adding = PostgresOutbox(url)
    outbox.changed("segment")
    before = outbox.changed("segment")
    adding.add([arrival("a", fault=FAULT)])

    assert not before
    assert within(10, lambda: outbox.changed("segment"))
    adding.close()


def test_a_command_waits_for_a_server_that_starts_later(postgres: PostgresServer, url: str) -> None:
    postgres.stop("fast")
    environ = {"SEGMENT_WRITE_KEY": "wk", "RELAY_OUTBOX_URL": url, "RELAY_LOG_FORMAT": "json"}
    with subprocess.Popen(
        [sys.executable, "-m", "relay", "migrate"], env=environ, stderr=subprocess.PIPE
    ) as migrating:
        assert migrating.stderr is not None
        awaited = b"outbox.awaited" in migrating.stderr.readline()
        postgres.start()
        migrating.stderr.read()
        code = migrating.wait(20)

    assert awaited
    assert code == 0


def test_a_server_that_is_away_is_tried_once_and_may_come_back(
    postgres: PostgresServer, url: str
) -> None:
    postgres.stop("fast")
    try:
        with pytest.raises(OutboxError) as raised:
            PostgresOutbox(url)
    finally:
        postgres.start()

    assert not isinstance(raised.value, OutboxUnusableError)


@pytest.mark.parametrize(
    "change",
    [
        ("relay:", "nobody:"),
        (PASSWORD, "wrong"),
        (f":{PASSWORD}", ""),
        ("/test_", "/absent_"),
        ("?", "?sslmode=require&"),
        ("?", "?sslmode=no-verify&"),
        (PASSWORD, f"{PASSWORD}%zz"),
    ],
)
def test_an_error_that_waiting_does_not_cure_is_final(url: str, change: tuple[str, str]) -> None:
    with pytest.raises(OutboxUnusableError):
        PostgresOutbox(f"{url}?application_name=test".replace(*change))


def test_parameters_of_other_libraries_are_left_out_and_a_warning_names_them(url: str) -> None:
    with closing(PostgresOutbox(f"{url}?pgbouncer=true&sslmode=prefer&schema=x&pool=9")) as outbox:
        warnings = outbox.warnings()

        assert works(outbox)
    assert [re.findall(r"\w+=", warning) for warning in warnings] == [
        ["pgbouncer="],
        ["pool="],
        ["schema="],
    ]


@pytest.mark.parametrize(
    "mistyped", ["sslmod", "ssl_mode", "SSLMODE", "SslMode", "pasword", "connect_time_out"]
)
def test_a_mistyped_parameter_of_the_url_is_refused(url: str, mistyped: str) -> None:
    with pytest.raises(OutboxUnusableError, match=mistyped) as raised:
        PostgresOutbox(f"{url}?{mistyped}=verify-full")

    assert "verify-full" not in str(raised.value)


def own_address() -> str | None:
    """Return an address of this machine that is not loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return None if address.startswith("127.") else address


def test_an_unencrypted_connection_to_another_machine_gives_a_warning(
    postgres: PostgresServer, url: str
) -> None:
    address = own_address()
    if address is None:
        pytest.skip("needs an address that is not loopback")
    with (
        Gateway(postgres.port, address) as gateway,
        closing(PostgresOutbox(gateway.url(url))) as remote,
        closing(PostgresOutbox(url)) as local,
    ):
        assert [re.findall("not encrypted", warning) for warning in remote.warnings()] == [
            ["not encrypted"]
        ]
        assert local.warnings() == []


def test_the_name_of_a_host_or_a_database_is_not_taken_for_an_error(
    postgres: PostgresServer, url: str
) -> None:
    hosts = "127.0.0.1,127.0.0.1"
    ports = f"{postgres.port},1"
    address = f"127.0.0.1:{postgres.port}"
    wrong = url.replace(PASSWORD, "wrong")
    away = wrong.replace(address, "") + f"?host={hosts}&port={ports}"
    named = url.replace(address, "127.0.0.1:1").replace("test_", "certificate_")

    for tried in (away, named):
        with pytest.raises(OutboxError) as raised:
            PostgresOutbox(tried)
        assert not isinstance(raised.value, OutboxUnusableError), tried


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_an_add_after_a_restart_of_the_server_succeeds(
    postgres: PostgresServer, outbox: Outbox, mode: StopMode
) -> None:
    fill_pool(outbox)
    postgres.restart(mode)

    assert outbox.add([arrival("a"), arrival("a"), arrival("b")]) == [True, False, True]


def test_it_works_again_soon_after_the_server_is_back(
    postgres: PostgresServer, outbox: Outbox
) -> None:
    fill_pool(outbox)
    postgres.stop("fast")
    stopped_at = time.monotonic()
    failed: list[bool] = []
    slowest = 0.0
    with ThreadPoolExecutor(len(OPERATIONS)) as threads:
        while time.monotonic() < stopped_at + 8:
            started_at = time.monotonic()
            failed += threads.map(lambda operation: fails(outbox, operation), OPERATIONS)
            slowest = max(slowest, time.monotonic() - started_at)
    postgres.start()
    recovered = within(5, lambda: works(outbox))

    assert all(failed)
    assert slowest < 5
    assert recovered
    assert all(works(outbox) for _ in range(20))


@contextmanager
def read_only(postgres: PostgresServer, url: str, sessions: str) -> Iterator[None]:
    """Make the database read-only, as a standby is, to sessions opened before or meanwhile."""
    setting, name = "default_transaction_read_only", database_of(url)
    if sessions == "old":
        with postgres.configured(setting, "on"):
            yield
        return
    postgres.administer(f"ALTER DATABASE {name} SET {setting} = on")
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = "
    postgres.administer(f"{end} '{name}'")
    yield
    postgres.administer(f"ALTER DATABASE {name} RESET {setting}")


@pytest.mark.parametrize("sessions", ["old", "new"])
def test_in_a_read_only_database_each_write_fails_until_it_is_writable(
    postgres: PostgresServer, url: str, outbox: Outbox, sessions: str
) -> None:
    fill_pool(outbox)
    with read_only(postgres, url, sessions):
        failed = [
            fails(outbox, operation) for operation in ("add", "claim", "throttle", "check") * 3
        ]
    recovered = within(5, lambda: works(outbox))

    assert all(failed)
    assert recovered
    assert outbox.add([arrival("another"), arrival("a")]) == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        ("relay:", "nobody:"),
        ("/test_", "/absent_"),
        (PASSWORD, f"{PASSWORD}%zz"),
        (PASSWORD, f"12:{PASSWORD}"),
        ("?", f"?pasword={PASSWORD}&"),
    ],
)
def test_no_error_contains_the_password(url: str, change: tuple[str, str]) -> None:
    with pytest.raises(OutboxError) as raised:
        PostgresOutbox(f"{url}?application_name=test".replace(*change))

    assert PASSWORD not in str(raised.value)


def test_the_encoding_of_the_server_does_not_matter(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    url = postgres.create_database()
    with closing(PostgresOutbox(url)) as outbox:
        outbox.add([arrival("☃", fault=Unusable(DeadReason.REJECTED, "☃ said Segment"))])

        assert outbox.add([arrival("☃")]) == [False]
    postgres.drop_database(url)

"""Statements find their rows by an index, however many entries there are."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from relay.operations.search import reasons
from relay.outbox.counters import SLOT
from relay.outbox.entries import CRASHES_BEFORE_ISOLATION, Query, State
from relay.outbox.postgres.queries import BLOCK_BITS
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import RARE_COLLECTIONS, Outbox
from tests.contracts.lanes import call
from tests.contracts.outbox import MINUTE, acquire, arrival
from tests.harness.entries import erase, requeue
from tests.harness.postgres import PostgresServer, database_of, query

DEAD = Query(states=(State.DEAD,))

_FILL = """
    INSERT INTO relay.entries
        (source, destination, message_id, state, received_at, pending_since, due_at, attempts,
            claim, delivered_at, reason, body)
    SELECT
        'vero', 'segment', 'vero-' || md5(n::text), state, received_at,
        CASE state WHEN 'pending' THEN received_at END,
        CASE state WHEN 'pending' THEN received_at END, 1, 1,
        CASE state WHEN 'delivered' THEN received_at END,
        CASE state WHEN 'dead' THEN 'rejected' END, convert_to(repeat(md5(n::text), 3), 'UTF8')
    FROM generate_series(1, 250_000) AS n,
        LATERAL (SELECT
            CASE WHEN n % 50 = 0 THEN 'pending' WHEN n % 50 = 1 THEN 'dead' ELSE 'delivered' END,
            now() - n * interval '1 second'
        ) AS fate (state, received_at)
"""


_FILL_KEYS = """
    INSERT INTO relay.keys (entry, user_key, address_key, email_key)
    SELECT id, id % 5_000, id % 5_000, id FROM relay.entries WHERE id % 5 > 0
"""


@pytest.fixture(scope="module")
def many(postgres: PostgresServer, migrated: str) -> Iterator[str]:
    """A database with 250,000 entries, whose plans are in the server's log."""
    url = postgres.create_database(migrated)
    query(url, _FILL)
    query(url, _FILL_KEYS)
    query(url, "ANALYZE relay.entries, relay.keys")
    log_plans(postgres, url)
    yield url
    postgres.drop_database(url)


def log_plans(postgres: PostgresServer, url: str) -> None:
    """Have the server log the plan of each statement on the database."""
    name = database_of(url)
    postgres.administer(f"ALTER DATABASE {name} SET session_preload_libraries = 'auto_explain'")
    postgres.administer(f"ALTER DATABASE {name} SET auto_explain.log_min_duration = 0")
    postgres.administer(f"ALTER DATABASE {name} SET auto_explain.log_analyze = on")


@pytest.mark.parametrize(
    ("index", "operate"),
    [
        ("entries_pending", lambda outbox: outbox.claim("segment", 100, lease=MINUTE)),
        ("entries_pending", lambda outbox: [outbox.changed("segment"), outbox.changed("segment")]),
        ("entries_pkey", lambda outbox: outbox.ack(outbox.claim("segment", 100, lease=MINUTE))),
        ("entries_message_id_key", lambda outbox: outbox.add([arrival("a"), arrival("a")])),
        ("entries_delivered", lambda outbox: outbox.purge(datetime.now(UTC), 500)),
        ("entries_pending", lambda outbox: outbox.pending_exceed(1_000)),
        ("entries_suspect", lambda outbox: outbox.has_suspects("segment")),
        ("entries_suspect", lambda outbox: outbox.claim_suspect("segment", lease=MINUTE)),
        ("entries_pkey", lambda outbox: outbox.entries.find(Query(), 50)),
        ("entries_pkey", lambda outbox: outbox.entries.find(Query(), 50, start=125_000)),
        ("keys_pkey", lambda o: o.entries.find(Query(), 1, start=125_000, newest_first=False)),
        ("history_entry", lambda outbox: outbox.entries.find(Query(), 50, with_history=True)),
        ("entries_dead", lambda outbox: outbox.entries.find(DEAD, 50)),
        ("entries_reason", lambda outbox: outbox.entries.find(Query(reason="rejected"), 50)),
        ("entries_reason", reasons),
        ("entries_rare", lambda outbox: outbox.entries.find(Query(collection="Email Bounced"), 50)),
        ("entries_pending", lambda outbox: outbox.counts()),
        ("entries_message_id_key", lambda outbox: outbox.entries.find(Query(message_id="a"), 50)),
        ("keys_user", lambda outbox: outbox.entries.find(Query(key=("user", 7)), 50)),
        ("keys_address", lambda outbox: outbox.entries.count(Query(key=("address", 7)))),
        ("keys_email", lambda outbox: outbox.entries.find(Query(key=("email", 7)), 500)),
        ("entries_pkey", lambda outbox: requeue(outbox.entries, *outbox.entries.find(DEAD, 500))),
        ("entries_pkey", lambda outbox: erase(outbox.entries, *outbox.entries.find(DEAD, 500))),
    ],
)
def test_an_index_finds_entries_among_many(
    postgres: PostgresServer, many: str, index: str, operate: Callable[[Outbox], object]
) -> None:
    plans = plans_of(postgres, many, operate)

    assert index in plans
    assert not re.search("Seq Scan on (entries|keys|history)|Merge Left Join", plans)


def plans_of(postgres: PostgresServer, url: str, operate: Callable[[Outbox], object]) -> str:
    """Return the plans by which the server carried out the operation."""
    outbox = PostgresOutbox(url)
    length = len(postgres.log.read_bytes())
    operate(outbox)
    outbox.close()
    return postgres.log.read_bytes()[length:].decode()


# Most are pending, and those before them in the table are not: it must not be read from its
# beginning. One destination has few of them.
_FILL_BACKLOG = """
    INSERT INTO relay.entries
        (source, destination, message_id, state, received_at, pending_since, due_at, claim,
            delivered_at, body)
    SELECT
        'vero', CASE WHEN n % 4_000 = 3_999 THEN 'vero' ELSE 'segment' END, n::text,
        CASE WHEN n < 40_000 THEN 'delivered' ELSE 'pending' END, at,
        CASE WHEN n >= 40_000 THEN at END, CASE WHEN n >= 40_000 THEN at END, 1,
        CASE WHEN n < 40_000 THEN at END, convert_to(repeat(md5(n::text), 3), 'UTF8')
    FROM generate_series(1, 200_000) AS n,
        LATERAL (SELECT now() - (200_000 - n) * interval '1 second') AS received (at)
"""


@pytest.fixture(scope="module", params=["analyzed", "new"])
def backlog(
    request: pytest.FixtureRequest, postgres: PostgresServer, migrated: str
) -> Iterator[str]:
    """A database in which most entries are pending, known to the planner or not yet."""
    url = postgres.create_database(migrated)
    query(url, "ALTER TABLE relay.entries SET (autovacuum_enabled = off)")
    query(url, _FILL_BACKLOG)
    if request.param == "analyzed":
        query(url, "ANALYZE relay.entries")
    log_plans(postgres, url)
    yield url
    postgres.drop_database(url)


@pytest.mark.parametrize("destination", ["segment", "vero", "nobody"])
@pytest.mark.parametrize(
    ("index", "operate"),
    [
        ("entries_pending", lambda o, name: o.claim(name, 100, lease=MINUTE)),
        ("entries_pending", lambda o, name: [o.changed(name), o.changed(name)]),
        ("entries_suspect", lambda o, name: o.has_suspects(name)),
        ("entries_suspect", lambda o, name: o.claim_suspect(name, lease=MINUTE)),
        ("entries_suspect", lambda o, _: o.count_crash(7)),
        ("entries_pending", lambda o, _: o.counts()),
        ("entries_pending", lambda o, _: o.pending_exceed(1_000)),
        ("throttles", lambda o, name: o.throttle(name, acquire)),
    ],
)
def test_a_destination_is_served_by_an_index_however_many_are_pending(
    postgres: PostgresServer,
    backlog: str,
    destination: str,
    index: str,
    operate: Callable[[Outbox, str], object],
) -> None:
    plans = plans_of(postgres, backlog, lambda outbox: operate(outbox, destination))
    read = [int(rows) for rows in re.findall(r"Scan .* on entries .*actual .*?rows=(\d+)", plans)]

    assert index in plans
    assert "Seq Scan on entries" not in plans
    assert max(read, default=0) <= 1_001


# Before all others, 100,000 entries wait in one lane. Others are postponed, or due again.
_FILL_LANE = """
    INSERT INTO relay.entries
        (source, destination, message_id, state, received_at, pending_since, due_at, claim, body,
            blocked, retry_at)
    SELECT
        'segment', 'vero', n::text, 'pending', at, at, at, 1, convert_to(repeat(md5(n::text), 3),
        'UTF8'), (n BETWEEN 2 AND 100_000)::integer, CASE
            WHEN n <= 101_000 THEN '-infinity'
            WHEN n <= 102_000 THEN now() + interval '10 minutes'
            ELSE now() - interval '1 minute'
        END
    FROM generate_series(1, 102_050) AS n,
        LATERAL (SELECT now() - (200_000 - n) * interval '1 second') AS received (at)
"""

_FILL_LANES = """
    INSERT INTO relay.lanes (lane, entry)
    SELECT CASE WHEN id <= 100_000 THEN 0 ELSE id END, id FROM relay.entries ORDER BY entries.id
"""


@pytest.fixture(scope="module", params=["analyzed", "new"])
def lane(request: pytest.FixtureRequest, postgres: PostgresServer, migrated: str) -> Iterator[str]:
    """A database in which most entries wait in one lane, known to the planner or not yet."""
    url = postgres.create_database(migrated)
    for table in ("entries", "lanes"):
        query(url, f"ALTER TABLE relay.{table} SET (autovacuum_enabled = off)")
    query(url, _FILL_LANE)
    query(url, _FILL_LANES)
    if request.param == "analyzed":
        query(url, "ANALYZE relay.entries, relay.lanes")
    log_plans(postgres, url)
    postgres.administer(
        f"ALTER DATABASE {database_of(url)} SET auto_explain.log_nested_statements = on"
    )
    yield url
    postgres.drop_database(url)


@pytest.mark.parametrize(
    ("index", "operate"),
    [
        ("entries_ordered", lambda o: o.claim("vero", 100, lease=MINUTE, ordered=True)),
        ("entries_ordered", lambda o: [o.changed("vero", ordered=True) for _ in range(2)]),
        ("entries_suspect", lambda o: o.has_suspects("vero")),
        ("entries_suspect", lambda o: o.claim_suspect("vero", lease=MINUTE)),
        ("lanes_pkey", lambda o: o.ack(o.claim("vero", 1, lease=MINUTE, ordered=True))),
        ("lanes_pkey", lambda o: o.add([call("new", 0), call("newer", 0, 1)])),
        ("lanes_pkey", lambda o: o.entries.blocked_by(90_000)),
        ("lanes_entry", lambda o: o.entries.find(Query(destination="vero"), 50)),
        (
            "lanes_pkey",
            lambda o: erase(o.entries, *o.entries.find(Query(ids=(9, 50_000, 90_000)), 3)),
        ),
    ],
)
def test_no_work_grows_with_the_entries_that_wait_in_a_lane(
    postgres: PostgresServer, lane: str, index: str, operate: Callable[[Outbox], object]
) -> None:
    plans = plans_of(postgres, lane, operate)
    read = re.findall(r"Scan .* on (?:entries|lanes).*actual .*?rows=(\d+)", plans)
    passed = re.findall(r"Rows Removed by Filter: (\d+)", plans)  # what earlier tests have leased

    assert index in plans
    assert not re.search("Seq Scan on (entries|lanes)", plans)
    assert max(map(int, read)) <= 101
    assert max(map(int, passed), default=0) <= 300


def test_the_schema_has_the_constants_of_the_statements(url: str) -> None:
    """The migrations are frozen with the numbers and names of their time."""
    PostgresOutbox(url).close()
    index = "SELECT pg_get_indexdef('relay.{}'::regclass)"
    ((suspect,), (rare,), (keys,)) = [
        query(url, index.format(name))[0]
        for name in ("entries_suspect", "entries_rare", "keys_user")
    ]
    ((function,),) = query(url, "SELECT prosrc FROM pg_proc WHERE proname = 'count_changes'")

    assert f"crashes >= {CRASHES_BEFORE_ISOLATION})" in suspect
    assert re.findall("'(.*?)'", rare) == list(RARE_COLLECTIONS)
    assert f"(entry >> {BLOCK_BITS})" in keys
    assert f"date_bin('{SLOT // timedelta(minutes=1)} minutes'" in function

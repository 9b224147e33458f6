"""Nothing that somebody else has put into the database runs with relay's rights."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql

from relay.errors import OutboxUnusableError
from relay.outbox.entries import Query
from relay.outbox.postgres.migrations import MIGRATIONS
from relay.outbox.postgres.sessions import settings
from relay.outbox.postgres.shape import SHAPES, shape
from relay.outbox.postgres.store import PostgresOutbox
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import FAULT, MINUTE, arrival
from tests.harness.entries import by_name, erase, everything, filled, requeue
from tests.harness.fakes import Clock
from tests.harness.postgres import PASSWORD, USER, PostgresServer, database_of, query
from tests.outbox.test_postgres import works

MALLORY = "mallory"

# For each function and operator of PostgreSQL's that a statement may call by its name alone, one
# with the same arguments, which notes its caller in the server's log.
_TRAPS = """
    DO $do$ DECLARE
        own record;
        number integer := 0;
        body text;
    BEGIN
        FOR own IN
            SELECT
                proname AS name, pg_get_function_identity_arguments(oid) AS arguments,
                pg_get_function_result(oid) AS result, false AS is_operator
            FROM pg_proc
            WHERE pronamespace = 'pg_catalog'::regnamespace AND proname IN (
                'now', 'unnest', 'generate_series', 'replace', 'octet_length', 'set_config',
                'current_setting', 'pg_notify', 'clock_timestamp', 'random', 'date_bin',
                'to_regclass', 'to_regnamespace', 'pg_backend_pid', 'array_agg', 'sum', 'count',
                'max', 'min', 'pg_advisory_xact_lock', 'pg_has_role', 'aclexplode', 'concat_ws'
            )
            UNION ALL
            SELECT
                oprname, concat(oprleft::regtype, ', ', oprright::regtype),
                oprresult::regtype::text, true
            FROM pg_operator
            WHERE oprkind = 'b' AND oprname IN (
                '=', '<>', '<', '>', '<=', '>=', '+', '-', '||', '>>'
            )
            UNION ALL  -- and those that PostgreSQL has for other types only
            SELECT operator, concat(one, ', ', other), 'boolean', true
            FROM unnest(ARRAY['=', '<>', '<', '>', '<=', '>=', '+', '-', '||', '>>']) AS operator,
                unnest(ARRAY['bigint', 'integer', 'smallint', 'numeric', 'text', 'bytea']) AS one,
                unnest(ARRAY['bigint', 'integer', 'smallint', 'numeric', 'text', 'bytea']) AS other
            UNION ALL VALUES
                ('generate_series', 'integer, bigint', 'SETOF bigint', false),
                ('array_agg', 'record', 'record[]', false),
                ('coalesce', 'bigint, bigint, bigint', 'bigint', false)
        LOOP BEGIN
            number := number + 1;
            body := format(
                'BEGIN RAISE LOG USING MESSAGE = concat(''trapped '', current_user, '' in '', %L); %s; END',
                own.name, CASE WHEN own.result LIKE 'SETOF%' THEN 'RETURN' ELSE 'RETURN NULL' END
            );
            EXECUTE format(
                'CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql SET search_path = pg_catalog AS %L',
                CASE WHEN own.is_operator THEN concat('operator_', number) ELSE own.name END,
                own.arguments, own.result, body
            );
            IF own.is_operator THEN
                EXECUTE format(
                    'CREATE OPERATOR public.%s (FUNCTION = public.%I, LEFTARG = %s, RIGHTARG = %s)',
                    own.name, concat('operator_', number),
                    split_part(own.arguments, ', ', 1), split_part(own.arguments, ', ', 2)
                );
            END IF;
        EXCEPTION WHEN OTHERS THEN NULL;  -- some cannot be written in PL/pgSQL
        END; END LOOP;
    END $do$
"""  # noqa: E501 (the quoted code is one line)


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database that a stranger, too, may connect to."""
    role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
    postgres.administer(role.format(sql.Identifier(MALLORY), sql.Literal(PASSWORD)))
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)
    postgres.administer(f"DROP ROLE {MALLORY}")


def as_stranger(url: str, statement: str) -> None:
    query(url.replace(f"//{USER}:", f"//{MALLORY}:"), statement)


def as_administrator(url: str, statement: str) -> None:
    query(url.replace(f"//{USER}:", "//postgres:"), statement, search_path="pg_catalog")


def trapped(postgres: PostgresServer) -> int:
    """Return how often a function of the stranger's ran as relay."""
    return postgres.log.read_text().count(f"trapped {USER} in")


def use_all(outbox: Outbox, clock: Clock) -> None:
    """Use each operation of an outbox."""
    filled(outbox, clock)
    assert works(outbox)
    entries = by_name(outbox.entries)
    dead = [entry for entry in entries.values() if entry.reason]
    requeue(outbox.entries, dead[0])
    erase(outbox.entries, dead[1])
    outbox.entries.restore([dead[1]])
    outbox.entries.find(Query(key=("user", 3)), 9, with_history=True)
    outbox.entries.count(Query(keyless=True))
    outbox.entries.operations(9)
    everything(outbox.entries)
    outbox.changed("segment")
    outbox.claim_suspect("segment", lease=MINUTE)
    outbox.counters()
    outbox.aggregate_counters(datetime.now(UTC))
    outbox.purge(datetime.now(UTC), 9)
    outbox.pending_exceed(3)
    outbox.destination_status("segment")


@pytest.mark.parametrize("path", ['"$user", public', "public, pg_catalog", "public"])
def test_what_a_stranger_makes_in_public_does_not_run_as_relay(
    postgres: PostgresServer, url: str, path: str
) -> None:
    as_administrator(url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    as_stranger(url, _TRAPS)
    query(url, f"ALTER DATABASE {database_of(url)} SET search_path = {path}")
    clock = Clock()
    before = trapped(postgres)
    with closing(PostgresOutbox(url, clock=clock.now)) as outbox:
        use_all(outbox, clock)
    with closing(PostgresOutbox(url)) as outbox:
        assert works(outbox)
    after = trapped(postgres)
    query(url, "SELECT generate_series(0, 1::bigint)", search_path="pg_catalog,public")

    assert after == before
    assert trapped(postgres) > after, "the traps work"


def test_what_a_stranger_makes_in_public_does_not_run_when_entries_are_changed_by_hand(
    postgres: PostgresServer, url: str
) -> None:
    with closing(PostgresOutbox(url)) as outbox:
        outbox.add([arrival("a"), arrival("b", fault=FAULT)])
    as_administrator(url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    as_stranger(url, _TRAPS)
    before = trapped(postgres)
    for statement in ("UPDATE relay.entries SET state = 'pending'", "DELETE FROM relay.entries"):
        query(url, statement, search_path="pg_catalog,public")
    after = trapped(postgres)

    assert after == before


def test_a_schema_that_a_stranger_has_made_is_refused_and_not_read(
    postgres: PostgresServer, url: str
) -> None:
    as_administrator(url, f"GRANT CREATE ON DATABASE {database_of(url)} TO {MALLORY}")
    as_administrator(url, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    as_stranger(url, _TRAPS)
    as_stranger(
        url,
        "CREATE SCHEMA relay; GRANT ALL ON SCHEMA relay TO PUBLIC;"
        "CREATE VIEW relay.migrations AS"
        " SELECT public.generate_series(0, 1::bigint)::integer AS version;"
        "GRANT ALL ON relay.migrations TO PUBLIC",
    )
    before = trapped(postgres)
    with pytest.raises(OutboxUnusableError, match='schema relay belongs to the role "mallory"'):
        PostgresOutbox(url)

    assert trapped(postgres) == before


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (f"ALTER TABLE relay.history OWNER TO {MALLORY}", "history.* belongs to"),
        (f"ALTER FUNCTION relay.count_gone() OWNER TO {MALLORY}", "count_gone belongs to"),
        (f"ALTER SCHEMA relay OWNER TO {MALLORY}", "the schema relay belongs to"),
        (f"GRANT CREATE ON SCHEMA relay TO {MALLORY}", "right CREATE on the schema"),
        ("GRANT CREATE ON SCHEMA relay TO PUBLIC", '"PUBLIC" has the right CREATE'),
        (f"GRANT TRIGGER ON relay.entries TO {MALLORY}", "right TRIGGER on relay.entries"),
        (f"GRANT REFERENCES ON relay.keys TO {MALLORY}", "right REFERENCES on relay.keys"),
        (
            f"GRANT REFERENCES (id) ON relay.entries TO {MALLORY}",
            r"right REFERENCES on relay.entries \(id\)",
        ),
        (
            (
                "CREATE SCHEMA mallory CREATE TABLE notes (id bigint REFERENCES relay.keys);"
                f"ALTER TABLE mallory.notes OWNER TO {MALLORY}"
            ),
            "relay.keys is referred to by mallory.notes, which belongs to",
        ),
    ],
)
def test_a_schema_in_which_a_stranger_has_a_hand_is_refused(
    url: str, change: str, error: str
) -> None:
    PostgresOutbox(url).close()
    as_administrator(url, change)

    with pytest.raises(OutboxUnusableError, match=error):
        PostgresOutbox(url)


@pytest.mark.parametrize(
    "change",
    [
        f"GRANT USAGE ON SCHEMA relay TO {MALLORY}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA relay TO {MALLORY}",
        f"ALTER SCHEMA relay OWNER TO {MALLORY}; GRANT {MALLORY} TO {USER}",
        "ALTER SCHEMA relay OWNER TO postgres; GRANT ALL ON SCHEMA relay TO relay",
        "CREATE INDEX added ON relay.entries (received_at)",
        "ALTER TABLE relay.entries SET (autovacuum_vacuum_threshold = 10)",
        "ALTER TABLE relay.entries ENABLE ROW LEVEL SECURITY",
        "CREATE TABLE public.notes (id bigint REFERENCES relay.entries ON DELETE CASCADE)",
    ],
)
def test_changes_that_an_administrator_may_want_are_accepted(url: str, change: str) -> None:
    PostgresOutbox(url).close()
    as_administrator(url, change)
    with closing(PostgresOutbox(url)) as outbox:
        assert works(outbox)


def test_a_superuser_does_not_count_as_a_member_of_every_role(url: str) -> None:
    PostgresOutbox(url).close()
    as_administrator(url, f"ALTER TABLE relay.history OWNER TO {MALLORY}")

    with pytest.raises(OutboxUnusableError, match="belongs to"):
        PostgresOutbox(url.replace(f"//{USER}:", "//postgres:"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("DROP INDEX relay.entries_rare", "index entries_rare on entries is missing"),
        ("DROP TRIGGER count_gone ON relay.entries", "trigger count_gone on entries is missing"),
        ("ALTER TABLE relay.entries DISABLE TRIGGER count_gone", "count_gone on entries differs"),
        ("ALTER TABLE relay.entries ADD more text NOT NULL DEFAULT ''", "table entries differs"),
        ("ALTER TABLE relay.keys SET UNLOGGED", "table keys differs"),
        ("ALTER TABLE relay.entries DROP CONSTRAINT entries_state_check", "table entries differs"),
        ("ALTER FUNCTION relay.count_gone() RESET search_path", "function count_gone differs"),
        ("ALTER FUNCTION relay.count_gone() SECURITY DEFINER", "function count_gone differs"),
        ("CREATE UNIQUE INDEX one ON relay.entries (body)", "index one on entries is not relay's"),
        (
            "CREATE TRIGGER t AFTER INSERT ON relay.entries EXECUTE FUNCTION relay.count_gone()",
            "trigger t on entries is not relay's",
        ),
        (
            "CREATE RULE r AS ON INSERT TO relay.keys DO INSTEAD NOTHING",
            "rule r on keys is not relay's",
        ),
    ],
)
def test_a_schema_that_differs_from_what_its_migrations_make_is_refused(
    url: str, change: str, error: str
) -> None:
    PostgresOutbox(url).close()
    as_administrator(url, change)

    with pytest.raises(OutboxUnusableError, match=error):
        PostgresOutbox(url)


def test_the_expected_shape_is_what_the_migrations_make(url: str) -> None:
    """Those of older versions are compared when a released outbox is opened."""
    PostgresOutbox(url).close()
    with psycopg.connect(url) as connection:
        connection.execute(settings(flushed=True, seconds=60))

        assert shape(connection) == SHAPES[-1]
    assert len(SHAPES) == len(MIGRATIONS)


def test_a_newer_schema_is_recognized_by_a_role_that_may_not_create_one(url: str) -> None:
    PostgresOutbox(url).close()
    query(url, "INSERT INTO relay.migrations VALUES (1000)")
    as_administrator(url, f"ALTER DATABASE {database_of(url)} OWNER TO postgres")

    with pytest.raises(OutboxUnusableError, match="newer relay"):
        PostgresOutbox(url)


def test_a_role_that_owns_the_schema_alone_can_migrate_it(url: str) -> None:
    as_administrator(url, f"ALTER DATABASE {database_of(url)} OWNER TO postgres")
    with pytest.raises(OutboxUnusableError, match="permission denied for database"):
        PostgresOutbox(url)
    as_administrator(url, f"CREATE SCHEMA relay AUTHORIZATION {USER}")
    with closing(PostgresOutbox(url)) as outbox:
        assert works(outbox)

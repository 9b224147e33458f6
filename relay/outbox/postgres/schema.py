"""The tables of a PostgreSQL outbox, and how they are made."""

from typing import Any, Final, LiteralString

import psycopg

from relay.errors import OutboxMissingError, OutboxUnusableError
from relay.outbox.postgres.connection import is_exposed, is_hopeless
from relay.outbox.postgres.ownership import refuse_strangers
from relay.outbox.postgres.sessions import Session, line, settings
from relay.outbox.postgres.shape import differences

# One script a version, each run in a transaction; a schema at version n has had the first n.
MIGRATIONS: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE relay.entries (
        id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        provider     text NOT NULL,
        message_id   text NOT NULL UNIQUE,
        state        text NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
        collection   text,               -- of what could be read when it came
        received_at  timestamptz NOT NULL,
        pending_since timestamptz,       -- this and due_at of pending entries only: their order
        due_at       timestamptz,        -- claimed: the end of the lease
        attempts     integer NOT NULL DEFAULT 0,
        deaths       integer NOT NULL DEFAULT 0,  -- claims in a row, this one too, not given back
        claim        bigint NOT NULL,    -- who claimed it last; at first, the group it came in
        delivered_at timestamptz,
        reason       text,               -- this and detail of dead entries only
        detail       text,
        body         bytea NOT NULL      -- text would refuse NUL
    );
    CREATE INDEX entries_pending ON relay.entries (pending_since) WHERE state = 'pending';
    CREATE INDEX entries_suspect ON relay.entries (id)
        WHERE state = 'pending' AND deaths >= 2;
    CREATE INDEX entries_dead ON relay.entries (id) WHERE state = 'dead';
    CREATE INDEX entries_reason ON relay.entries (reason, id) WHERE state = 'dead';
    CREATE INDEX entries_delivered ON relay.entries (delivered_at) WHERE state = 'delivered';
    -- The other three are common enough to be found by looking at one entry after the other.
    CREATE INDEX entries_rare ON relay.entries (collection, id) WHERE collection IN (
        'Email Link Clicked', 'Email Unsubscribed', 'Email Bounced', 'Email Marked as Spam'
    );
    -- What entries can be found by; apart, because an update of an entry updates all its indexes.
    CREATE TABLE relay.keys (
        entry       bigint PRIMARY KEY,
        user_key    bigint,
        address_key bigint,
        email_key   bigint
    );
    -- By blocks of 4,096 entries, each block in a place of its own: one index over all of them
    -- would put each new entry on a page of its own.
    CREATE INDEX keys_user ON relay.keys ((entry >> 12), user_key) WHERE user_key IS NOT NULL;
    CREATE INDEX keys_address ON relay.keys ((entry >> 12), address_key)
        WHERE address_key IS NOT NULL;
    CREATE INDEX keys_email ON relay.keys ((entry >> 12), email_key) WHERE email_key IS NOT NULL;
    CREATE TABLE relay.history (
        id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        entry bigint NOT NULL REFERENCES relay.entries ON DELETE CASCADE,
        at    timestamptz NOT NULL,
        what  text NOT NULL,
        said  text NOT NULL
    );
    CREATE INDEX history_entry ON relay.history (entry);
    -- Each backend counts in a lane of its own, so that none waits for another's transaction.
    CREATE TABLE relay.tallies (
        lane       integer NOT NULL,
        slot       timestamptz NOT NULL,  -- the beginning of five minutes; epoch: all earlier ones
        provider   text NOT NULL,
        collection text NOT NULL,         -- this and reason may be empty
        change     text NOT NULL,
        reason     text NOT NULL,
        entries    bigint NOT NULL,
        latest     timestamptz NOT NULL,
        PRIMARY KEY (lane, slot, provider, collection, change, reason)
    ) WITH (fillfactor = 50);
    CREATE TYPE relay.changed AS (
        change text, at timestamptz, provider text, collection text, reason text
    );
    CREATE FUNCTION relay.tally(changes relay.changed[]) RETURNS void LANGUAGE sql AS $$
        INSERT INTO relay.tallies
        SELECT
            pg_backend_pid(), date_bin('5 minutes', at, 'epoch') AS slot, provider,
            coalesce(collection, ''), change, coalesce(reason, ''), count(*), max(at)
        FROM unnest(changes) GROUP BY slot, provider, collection, change, reason
        ON CONFLICT (lane, slot, provider, collection, change, reason) DO UPDATE
        SET entries = tallies.entries + excluded.entries,
            latest = greatest(tallies.latest, excluded.latest)
    $$;
    CREATE FUNCTION relay.tally_added() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM relay.tally(array_agg((change, at, provider, collection, reason)::relay.changed))
        FROM (
            SELECT 'received' AS change, received_at AS at, provider, collection, NULL AS reason
            FROM added
            UNION ALL
            SELECT 'delivered', delivered_at, provider, collection, NULL
            FROM added WHERE state = 'delivered'
            UNION ALL
            SELECT 'died', received_at, provider, collection, reason
            FROM added WHERE state = 'dead'
        ) AS changes;
        RETURN NULL;
    END $$;
    CREATE FUNCTION relay.tally_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NOT EXISTS (SELECT FROM after WHERE state <> 'pending')
            AND NOT EXISTS (SELECT FROM before WHERE state <> 'pending')
        THEN
            RETURN NULL;  -- claimed or released, as most are
        END IF;
        PERFORM relay.tally(array_agg((change, at, provider, collection, reason)::relay.changed))
        FROM (
            SELECT
                CASE after.state WHEN 'delivered' THEN 'delivered' WHEN 'dead' THEN 'died'
                    ELSE 'revived' END AS change,
                coalesce(after.delivered_at, now()) AS at,
                after.provider, after.collection, after.reason
            FROM after JOIN before USING (id) WHERE after.state <> before.state
            UNION ALL
            SELECT 'left_' || before.state, now(), before.provider, before.collection, before.reason
            FROM after JOIN before USING (id) WHERE after.state = 'pending'
                AND before.state <> 'pending'
        ) AS changes;
        RETURN NULL;
    END $$;
    CREATE FUNCTION relay.tally_gone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM relay.tally(array_agg(
            ('left_' || state, now(), provider, collection, reason)::relay.changed
        )) FROM gone;
        RETURN NULL;
    END $$;
    CREATE TRIGGER added AFTER INSERT ON relay.entries
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_added();
    CREATE TRIGGER changed AFTER UPDATE ON relay.entries
        REFERENCING OLD TABLE AS before NEW TABLE AS after
        FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_changed();
    CREATE TRIGGER gone AFTER DELETE ON relay.entries
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_gone();
    CREATE TABLE relay.operations (
        id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind        text NOT NULL,
        what        text NOT NULL,
        started_at  timestamptz NOT NULL,
        finished_at timestamptz,
        entries     bigint NOT NULL DEFAULT 0
    );
    -- Each entry is updated twice within seconds: wait for a number of dead rows, not a share.
    ALTER TABLE relay.entries SET (
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000,
        autovacuum_vacuum_cost_delay = 1
    );
    -- One row each; room for its versions on one page.
    CREATE TABLE relay.status (beat bigint NOT NULL) WITH (fillfactor = 10);
    INSERT INTO relay.status VALUES (0);
    CREATE TABLE relay.pace (pace bytea NOT NULL) WITH (fillfactor = 10);
    INSERT INTO relay.pace VALUES ('{}');
    """,
    # Whoever changes the tables by hand has a search path of their own.
    """
    ALTER FUNCTION relay.tally(relay.changed[]) SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_added() SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_changed() SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_gone() SET search_path = pg_catalog, pg_temp;
    """,
)
COUNT: Final = "SELECT change, sum(entries)::bigint FROM relay.tallies GROUP BY change"

_MIGRATION_LOCK: Final = 0x52_4C_41_59  # "RLAY", among the database's advisory locks
_MIGRATION_SECONDS: Final = 3600.0  # which may rewrite a large table, or wait for who does


def prepare(parameters: dict[str, Any], *, create: bool) -> bool:
    """Bring the schema up to date.

    Args:
        parameters: how to connect.
        create: make it if there is none.

    Returns:
        Whether what goes to the server can be read on the way.

    Raises:
        psycopg.Error: the server is not there now.
        OutboxMissingError: there is no schema, and it is not to be made.
        OutboxUnusableError: it does not let us in, is not durable, or its schema is not relay's.
    """
    try:
        with Session.connect(**parameters) as session:
            _refuse_unsynced(session)
            _migrate(session, create=create)
            return is_exposed(session)
    except psycopg.ProgrammingError as error:  # what is missing, or not permitted
        raise OutboxUnusableError(f"PostgreSQL: {line(error)}") from error
    except psycopg.OperationalError as error:
        if is_hopeless(error):
            raise OutboxUnusableError(f"PostgreSQL: {line(error)}") from error
        raise


def _refuse_unsynced(session: Session) -> None:
    row: Any = session.execute("SHOW fsync").fetchone()
    if row[0] != "on":
        raise OutboxUnusableError("PostgreSQL runs with fsync=off: what it commits may be lost")


def _migrate(session: Session, *, create: bool) -> None:
    with session.transaction():
        session.execute(settings(flushed=True, seconds=session.seconds))
        version = _version(session)
        if version == len(MIGRATIONS):
            _refuse_differences(session, version)
            return
    if not version and not create:
        raise OutboxMissingError("the database has no schema relay")
    with session.transaction():
        session.seconds = _MIGRATION_SECONDS
        session.execute(settings(flushed=True, seconds=session.seconds))
        # Until the transaction ends: processes that start together do it one after the other.
        session.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        session.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        version = _version(session)
        if version:
            _refuse_differences(session, version)
        else:
            _begin(session)
        for number, migration in enumerate(MIGRATIONS[version:], version + 1):
            session.execute(migration)
            session.execute("INSERT INTO relay.migrations VALUES (%s)", (number,))


def _version(session: Session) -> int:
    """The version of the schema, which is relay's own; 0 if there is none."""
    refuse_strangers(session)  # first: what they have put there may be more than a table
    row: Any = session.execute("SELECT to_regclass('relay.migrations') IS NULL").fetchone()
    if row[0]:
        return 0
    row = session.execute("SELECT coalesce(max(version), 0) FROM relay.migrations").fetchone()
    version: int = row[0]
    if version > len(MIGRATIONS):
        raise OutboxUnusableError("the schema relay was written by a newer relay")
    return version


def _begin(session: Session) -> None:
    # Not IF NOT EXISTS, which asks for the right to make one even if there is one.
    row: Any = session.execute("SELECT to_regnamespace('relay') IS NULL").fetchone()
    if row[0]:
        session.execute("CREATE SCHEMA relay")
    session.execute(
        "CREATE TABLE IF NOT EXISTS relay.migrations (version integer PRIMARY KEY,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )


def _refuse_differences(session: Session, version: int) -> None:
    if differing := differences(session, version):
        raise OutboxUnusableError(
            f"the schema relay does not have the tables of version {version}, which it claims to"
            f" have ({', '.join(differing)}); another build of relay has made it, or someone has"
            " changed it. It is left as it is: have the relay that wrote it forward what waits, and"
            " start this one on a new database"
        )


def as_text(value: str) -> str:
    """The text as PostgreSQL can hold it."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")

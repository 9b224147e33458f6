"""The tables of a PostgreSQL outbox, version by version.

A script that has been released is never changed: the next one does what is to be different (see
tests/outbox/released.py).
"""

from typing import Final, LiteralString

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
    # Somebody who changes the tables by hand has another search path.
    """
    ALTER FUNCTION relay.tally(relay.changed[]) SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_added() SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_changed() SET search_path = pg_catalog, pg_temp;
    ALTER FUNCTION relay.tally_gone() SET search_path = pg_catalog, pg_temp;
    """,
    # An entry knows its destination, and the columns bear the words of the code.
    #
    # The first statement takes ACCESS EXCLUSIVE locks. They keep everyone out of these tables until
    # the migration commits, readers too: what others counted meanwhile would be lost. It waits for
    # open transactions to end. Then the locks last as long as the server needs to read the entries
    # twice, once for each index: about 4 s for a million of 1 kB. All else changes the catalogue or
    # a few rows. An earlier relay stores nothing meanwhile, nor afterwards: it answers 503.
    """
    LOCK TABLE relay.entries, relay.history, relay.tallies, relay.pace IN ACCESS EXCLUSIVE MODE;

    DROP TRIGGER added ON relay.entries;
    DROP TRIGGER changed ON relay.entries;
    DROP TRIGGER gone ON relay.entries;
    DROP FUNCTION relay.tally_added();
    DROP FUNCTION relay.tally_changed();
    DROP FUNCTION relay.tally_gone();
    DROP FUNCTION relay.tally(relay.changed[]);
    DROP TYPE relay.changed;

    ALTER TABLE relay.entries RENAME COLUMN provider TO source;
    ALTER TABLE relay.entries RENAME COLUMN deaths TO crashes;
    ALTER TABLE relay.history RENAME COLUMN said TO detail;

    -- A replay that was interrupted is continued by its text, which has today's word from now on.
    UPDATE relay.operations SET what = substr(replace(' ' || what, ' provider=', ' source='), 2)
    WHERE ' ' || what LIKE '% provider=%';

    -- A constant default is kept in the catalogue, and no row is written.
    ALTER TABLE relay.entries ADD COLUMN destination text NOT NULL DEFAULT 'segment';
    ALTER TABLE relay.entries ALTER COLUMN destination DROP DEFAULT;

    DROP INDEX relay.entries_pending;
    DROP INDEX relay.entries_suspect;
    CREATE INDEX entries_pending ON relay.entries (destination, pending_since)
        WHERE state = 'pending';
    CREATE INDEX entries_suspect ON relay.entries (destination, id)
        WHERE state = 'pending' AND crashes >= 2;

    -- Each backend counts in a lane of its own, so that none waits for another's transaction.
    CREATE TABLE relay.counters (
        lane        integer NOT NULL,
        slot        timestamptz NOT NULL,  -- the beginning of five minutes; epoch: all before
        source      text NOT NULL,
        destination text NOT NULL,
        collection  text NOT NULL,         -- this and reason may be empty
        change      text NOT NULL,
        reason      text NOT NULL,
        entries     bigint NOT NULL,
        latest      timestamptz NOT NULL,
        PRIMARY KEY (lane, slot, source, destination, collection, change, reason)
    ) WITH (fillfactor = 50);
    INSERT INTO relay.counters
    SELECT
        lane, slot, provider, 'segment', collection,
        CASE change WHEN 'died' THEN 'dead_lettered' WHEN 'revived' THEN 'requeued' ELSE change END,
        reason, entries, latest
    FROM relay.tallies;
    DROP TABLE relay.tallies;

    CREATE TYPE relay.change AS (
        change text, at timestamptz, source text, destination text, collection text, reason text
    );
    CREATE FUNCTION relay.count_changes(changes relay.change[]) RETURNS void LANGUAGE sql
    SET search_path = pg_catalog, pg_temp AS $$
        INSERT INTO relay.counters
        SELECT
            pg_backend_pid(), date_bin('5 minutes', at, 'epoch') AS slot, source, destination,
            coalesce(collection, ''), change, coalesce(reason, ''), count(*), max(at)
        FROM unnest(changes) GROUP BY slot, source, destination, collection, change, reason
        ON CONFLICT (lane, slot, source, destination, collection, change, reason) DO UPDATE
        SET entries = counters.entries + excluded.entries,
            latest = greatest(counters.latest, excluded.latest)
    $$;
    CREATE FUNCTION relay.count_added() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$ BEGIN
        PERFORM relay.count_changes(array_agg(
            (change, at, source, destination, collection, reason)::relay.change
        ))
        FROM (
            SELECT
                'received' AS change, received_at AS at, source, destination, collection,
                NULL AS reason
            FROM added
            UNION ALL
            SELECT 'delivered', delivered_at, source, destination, collection, NULL
            FROM added WHERE state = 'delivered'
            UNION ALL
            SELECT 'dead_lettered', received_at, source, destination, collection, reason
            FROM added WHERE state = 'dead'
        ) AS changes;
        RETURN NULL;
    END $$;
    CREATE FUNCTION relay.count_changed() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$ BEGIN
        IF NOT EXISTS (SELECT FROM after WHERE state <> 'pending')
            AND NOT EXISTS (SELECT FROM before WHERE state <> 'pending')
        THEN
            RETURN NULL;  -- claimed or released, as most are
        END IF;
        PERFORM relay.count_changes(array_agg(
            (change, at, source, destination, collection, reason)::relay.change
        ))
        FROM (
            SELECT
                CASE after.state WHEN 'delivered' THEN 'delivered' WHEN 'dead' THEN 'dead_lettered'
                    ELSE 'requeued' END AS change,
                coalesce(after.delivered_at, now()) AS at,
                after.source, after.destination, after.collection, after.reason
            FROM after JOIN before USING (id) WHERE after.state <> before.state
            UNION ALL
            SELECT
                'left_' || before.state, now(), before.source, before.destination,
                before.collection, before.reason
            FROM after JOIN before USING (id) WHERE after.state = 'pending'
                AND before.state <> 'pending'
        ) AS changes;
        RETURN NULL;
    END $$;
    CREATE FUNCTION relay.count_gone() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$ BEGIN
        PERFORM relay.count_changes(array_agg(
            ('left_' || state, now(), source, destination, collection, reason)::relay.change
        )) FROM gone;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count_added AFTER INSERT ON relay.entries
        REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION relay.count_added();
    CREATE TRIGGER count_changed AFTER UPDATE ON relay.entries
        REFERENCING OLD TABLE AS before NEW TABLE AS after
        FOR EACH STATEMENT EXECUTE FUNCTION relay.count_changed();
    CREATE TRIGGER count_gone AFTER DELETE ON relay.entries
        REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION relay.count_gone();

    -- A row for each destination, made when it is first sent to; room for its versions on a page.
    CREATE TABLE relay.throttles (
        destination text PRIMARY KEY,
        state       bytea NOT NULL
    ) WITH (fillfactor = 10);
    -- What it held as `era` nothing needs: it told apart the turns of processes that have ended.
    INSERT INTO relay.throttles SELECT 'segment', pace FROM relay.pace WHERE pace <> '{}';
    DROP TABLE relay.pace;
    """,
    # The order of entries that are sent in lanes. Entries without a lane pay nothing for it.
    #
    # An entry heads all its lanes if no other entry has an earlier row in one of them. Triggers
    # keep `lanes` and `blocked` right. A trigger's queries see all that was committed before it
    # took the lock of the lanes. So no entry stays blocked by one that another transaction settles.
    #
    # No row is written again: constant defaults are kept in the catalogue. To make the index, the
    # server reads the entries once, and keeps everyone out of them meanwhile.
    """
    LOCK TABLE relay.entries IN ACCESS EXCLUSIVE MODE;

    ALTER TABLE relay.entries
        -- This and the next two of pending entries only. 1: behind another entry in a lane; 0: the
        -- head of all its lanes; NULL: it has none.
        ADD COLUMN blocked integer,
        ADD COLUMN retry_at timestamptz NOT NULL DEFAULT '-infinity',  -- not claimed before
        ADD COLUMN failing_since timestamptz,
        ADD COLUMN step integer NOT NULL DEFAULT 0;  -- how many of its messages have been sent
    CREATE INDEX entries_ordered ON relay.entries (destination, retry_at, pending_since)
        WHERE state = 'pending' AND blocked = 0;
    CREATE TABLE relay.lanes (
        seq   bigint GENERATED ALWAYS AS IDENTITY,  -- the order
        lane  bigint NOT NULL,
        entry bigint NOT NULL,                      -- a pending one
        PRIMARY KEY (lane, seq)
    );
    CREATE INDEX lanes_entry ON relay.lanes (entry);
    -- As the entries'; and a scan for the head of a lane passes the dead rows of those before it.
    ALTER TABLE relay.lanes SET (
        autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 1
    );

    -- Whoever changes lanes takes the lock first, before any row, so that none waits for another
    -- that waits for it. The number is "RLLN", among the database's advisory locks. All
    -- callers have a safe search path; to set it here, too, would double the cost of a trigger.
    CREATE FUNCTION relay.lock_lanes() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        IF current_setting('transaction_isolation') <> 'read committed' THEN
            RAISE EXCEPTION 'relay needs the isolation level "read committed"';
        END IF;
        PERFORM pg_advisory_xact_lock(x'524c4c4e'::bigint);
    END $$;

    -- However few rows the tables had when a plan was made, there may be many by now.
    CREATE FUNCTION relay.join_lanes() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$ BEGIN
        PERFORM relay.lock_lanes();
        UPDATE relay.entries SET blocked = greatest(entries.blocked, place.blocked)
        FROM (
            SELECT joined.entry, max(EXISTS (
                SELECT FROM relay.lanes AS ahead
                WHERE ahead.lane = joined.lane AND ahead.seq < joined.seq
                    AND ahead.entry <> joined.entry
                ORDER BY ahead.seq DESC LIMIT 1
            )::integer) AS blocked
            FROM joined GROUP BY joined.entry
        ) AS place
        WHERE id = place.entry
            AND entries.blocked IS DISTINCT FROM greatest(entries.blocked, place.blocked);
        RETURN NULL;
    END $$;
    CREATE FUNCTION relay.forget_order() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$ BEGIN
        NEW.blocked = NULL;
        NEW.retry_at = '-infinity';
        NEW.failing_since = NULL;
        RETURN NEW;
    END $$;
    CREATE FUNCTION relay.leave_lanes() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
    DECLARE
        heads bigint[];
    BEGIN
        PERFORM relay.lock_lanes();
        -- The SELECT still sees what the DELETE deletes.
        WITH gone AS (DELETE FROM relay.lanes WHERE entry = OLD.id RETURNING lane)
        SELECT array_agg(head) INTO heads FROM (
            SELECT (
                SELECT entry FROM relay.lanes WHERE lanes.lane = gone.lane AND entry <> OLD.id
                ORDER BY seq LIMIT 1
            ) FROM gone
        ) AS next (head)
        WHERE head IS NOT NULL AND NOT EXISTS (
            SELECT FROM relay.lanes AS own
            WHERE own.entry = head AND own.entry <> (
                SELECT entry FROM relay.lanes WHERE lanes.lane = own.lane AND entry <> OLD.id
                ORDER BY seq LIMIT 1
            )
        );
        IF heads IS NOT NULL THEN
            UPDATE relay.entries SET blocked = 0 WHERE id = ANY (heads) AND blocked = 1;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER join_lanes AFTER INSERT ON relay.lanes
        REFERENCING NEW TABLE AS joined FOR EACH STATEMENT EXECUTE FUNCTION relay.join_lanes();
    CREATE TRIGGER forget_order BEFORE UPDATE OF state ON relay.entries FOR EACH ROW
        WHEN (OLD.blocked IS NOT NULL AND NEW.state <> 'pending')
        EXECUTE FUNCTION relay.forget_order();
    CREATE TRIGGER leave_lanes AFTER UPDATE OF state ON relay.entries FOR EACH ROW
        WHEN (OLD.blocked IS NOT NULL AND NEW.state <> 'pending')
        EXECUTE FUNCTION relay.leave_lanes();
    CREATE TRIGGER leave_lanes_erased AFTER DELETE ON relay.entries FOR EACH ROW
        WHEN (OLD.blocked IS NOT NULL)
        EXECUTE FUNCTION relay.leave_lanes();
    """,
)

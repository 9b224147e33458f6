SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA relay;
CREATE TYPE relay.changed AS (
	change text,
	at timestamp with time zone,
	provider text,
	collection text,
	reason text
);
CREATE FUNCTION relay.tally(changes relay.changed[]) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
        INSERT INTO relay.tallies
        SELECT
            pg_backend_pid(), date_bin('5 minutes', at, 'epoch') AS slot, provider,
            coalesce(collection, ''), change, coalesce(reason, ''), count(*), max(at)
        FROM unnest(changes) GROUP BY slot, provider, collection, change, reason
        ON CONFLICT (lane, slot, provider, collection, change, reason) DO UPDATE
        SET entries = tallies.entries + excluded.entries,
            latest = greatest(tallies.latest, excluded.latest)
    $$;
CREATE FUNCTION relay.tally_added() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ BEGIN
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
CREATE FUNCTION relay.tally_changed() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ BEGIN
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
CREATE FUNCTION relay.tally_gone() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$ BEGIN
        PERFORM relay.tally(array_agg(
            ('left_' || state, now(), provider, collection, reason)::relay.changed
        )) FROM gone;
        RETURN NULL;
    END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE relay.entries (
    id bigint NOT NULL,
    provider text NOT NULL,
    message_id text NOT NULL,
    state text NOT NULL,
    collection text,
    received_at timestamp with time zone NOT NULL,
    pending_since timestamp with time zone,
    due_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    deaths integer DEFAULT 0 NOT NULL,
    claim bigint NOT NULL,
    delivered_at timestamp with time zone,
    reason text,
    detail text,
    body bytea NOT NULL,
    CONSTRAINT entries_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'delivered'::text, 'dead'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='20000', autovacuum_analyze_scale_factor='0', autovacuum_analyze_threshold='50000', autovacuum_vacuum_cost_delay='1');
ALTER TABLE relay.entries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME relay.entries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE relay.history (
    id bigint NOT NULL,
    entry bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    what text NOT NULL,
    said text NOT NULL
);
ALTER TABLE relay.history ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME relay.history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE relay.keys (
    entry bigint NOT NULL,
    user_key bigint,
    address_key bigint,
    email_key bigint
);
CREATE TABLE relay.migrations (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
CREATE TABLE relay.operations (
    id bigint NOT NULL,
    kind text NOT NULL,
    what text NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    entries bigint DEFAULT 0 NOT NULL
);
ALTER TABLE relay.operations ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME relay.operations_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE relay.pace (
    pace bytea NOT NULL
)
WITH (fillfactor='10');
CREATE TABLE relay.status (
    beat bigint NOT NULL
)
WITH (fillfactor='10');
CREATE TABLE relay.tallies (
    lane integer NOT NULL,
    slot timestamp with time zone NOT NULL,
    provider text NOT NULL,
    collection text NOT NULL,
    change text NOT NULL,
    reason text NOT NULL,
    entries bigint NOT NULL,
    latest timestamp with time zone NOT NULL
)
WITH (fillfactor='50');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (1, 'vero', 'vero-6955b900da5d4c187eadbec44e02051d', 'delivered', 'Email Opened', '2026-11-28 17:46:56.64931+05:30', NULL, NULL, 1, 0, 3338598717598776341, '2026-11-28 17:46:57.415482+05:30', NULL, NULL, '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630302c20226d6573736167655f6964223a20226d61696c2d616e6e2d30222c202275736572223a207b226964223a2022757365722d616e6e222c2022656d61696c223a202263616e6172792d616e6e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (2, 'vero', 'vero-6955b900e6f9589f714c400b44c67394', 'delivered', 'Email Sent', '2026-11-28 17:46:56.659937+05:30', NULL, NULL, 1, 0, 3338598717598776341, '2026-11-28 17:46:57.415482+05:30', NULL, NULL, '\x7b2274797065223a202273656e74222c202273656e745f6174223a20313736373232353630302c20226d6573736167655f6964223a20226d61696c2d62656e2d30222c202275736572223a207b226964223a2022757365722d62656e222c2022656d61696c223a202263616e6172792d62656e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (3, 'vero', 'vero-6955b9005d1623ee05d4e8e5f5bee880', 'delivered', 'Email Bounced', '2026-11-28 17:46:56.669959+05:30', NULL, NULL, 1, 0, 3338598717598776341, '2026-11-28 17:46:57.415482+05:30', NULL, NULL, '\x7b2274797065223a2022626f756e636564222c2022626f756e6365645f6174223a20313736373232353630302c20226d6573736167655f6964223a20226d61696c2d62656e2d30222c202275736572223a207b226964223a2022757365722d62656e222c2022656d61696c223a202263616e6172792d62656e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (4, 'vero', 'vero-6955b901b0aac2d216b1958a0d616146', 'dead', 'Email Opened', '2026-11-28 17:46:56.675219+05:30', NULL, NULL, 1, 0, 3338598717598776341, NULL, 'rejected', '400 Bad Request: {"success":true}', '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630312c20226d6573736167655f6964223a20226d61696c2d616e6e2d31222c202275736572223a207b226964223a2022757365722d616e6e222c2022656d61696c223a202263616e6172792d616e6e406578616d706c652e636f6d227d2c202263616d706169676e223a207b226e616d65223a202272656675736564227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (7, 'vero', 'vero-00000000bbf371d3e51f69611bd187ae', 'dead', NULL, '2026-11-28 17:46:57.482896+05:30', NULL, NULL, 0, 0, 3175738813173436031, NULL, 'unknown_type', 'a type relay does not know: snoozed', '\x7b2274797065223a2022736e6f6f7a6564222c2022736e6f6f7a65645f6174223a20313736373232353630322c20226d6573736167655f6964223a20226d61696c2d616e6e2d32222c202275736572223a207b226964223a2022757365722d616e6e222c2022656d61696c223a202263616e6172792d616e6e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (8, 'vero', 'vero-0000000002792c876de4a7b162644440', 'dead', NULL, '2026-11-28 17:46:57.487786+05:30', NULL, NULL, 0, 0, 4020030265910435908, NULL, 'unreadable', 'not JSON: JSON is malformed: invalid character (byte 4)', '\x6e6f204a534f4e');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (5, 'vero', 'vero-6955b9017108390d6d41880d8f703a00', 'delivered', 'Email Opened', '2026-11-28 17:46:56.679847+05:30', NULL, NULL, 2, 0, 2377903344342139439, '2026-11-28 17:46:58.788017+05:30', NULL, NULL, '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630312c20226d6573736167655f6964223a20226d61696c2d6361792d31222c202275736572223a207b226964223a2022757365722d636179222c2022656d61696c223a202263616e6172792d636179406578616d706c652e636f6d227d2c202263616d706169676e223a207b226e616d65223a20227265706c61796564227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (9, 'vero', 'vero-6955b900523acfb6e48a345a3b55125b', 'pending', 'Email Opened', '2026-11-28 17:46:59.697918+05:30', '2026-11-28 17:46:59.697918+05:30', '2026-11-28 17:46:59.953845+05:30', 1, 0, 3791530938211733736, NULL, NULL, NULL, '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630302c20226d6573736167655f6964223a20226d61696c2d64616e2d30222c202275736572223a207b226964223a2022757365722d64616e222c2022656d61696c223a202263616e6172792d64616e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (10, 'vero', 'vero-6955b901406656bec773b7eb5e17e3e6', 'pending', 'Email Opened', '2026-11-28 17:46:59.701771+05:30', '2026-11-28 17:46:59.701771+05:30', '2026-11-28 17:46:59.953845+05:30', 1, 0, 3791530938211733736, NULL, NULL, NULL, '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630312c20226d6573736167655f6964223a20226d61696c2d64616e2d31222c202275736572223a207b226964223a2022757365722d64616e222c2022656d61696c223a202263616e6172792d64616e406578616d706c652e636f6d227d7d');
INSERT INTO relay.entries OVERRIDING SYSTEM VALUE VALUES (11, 'vero', 'vero-6955b902983c3665223fb4c5ec49fc1d', 'pending', 'Email Opened', '2026-11-28 17:46:59.705094+05:30', '2026-11-28 17:46:59.705094+05:30', '2026-11-28 17:46:59.953845+05:30', 1, 0, 3791530938211733736, NULL, NULL, NULL, '\x7b2274797065223a20226f70656e6564222c20226f70656e65645f6174223a20313736373232353630322c20226d6573736167655f6964223a20226d61696c2d64616e2d32222c202275736572223a207b226964223a2022757365722d64616e222c2022656d61696c223a202263616e6172792d64616e406578616d706c652e636f6d227d7d');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (1, 4, '2026-11-28 17:46:57.434136+05:30', 'dead', 'rejected');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (2, 5, '2026-11-28 17:46:57.45222+05:30', 'dead', 'rejected');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (3, 5, '2026-11-28 17:46:58.555228+05:30', 'replayed', '');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (4, 9, '2026-11-28 17:46:59.953845+05:30', 'posted', '503 Service Unavailable');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (5, 10, '2026-11-28 17:46:59.953845+05:30', 'posted', '503 Service Unavailable');
INSERT INTO relay.history OVERRIDING SYSTEM VALUE VALUES (6, 11, '2026-11-28 17:46:59.953845+05:30', 'posted', '503 Service Unavailable');
INSERT INTO relay.keys VALUES (1, 2579427107, 326112825, 58463756);
INSERT INTO relay.keys VALUES (2, 2653953950, 651216070, 3442717406);
INSERT INTO relay.keys VALUES (3, 2653953950, 651216070, 3442717406);
INSERT INTO relay.keys VALUES (4, 2579427107, 326112825, 309994888);
INSERT INTO relay.keys VALUES (5, 1672050397, 1686142953, 264123063);
INSERT INTO relay.keys VALUES (9, 1917700055, 1536559932, 3673167378);
INSERT INTO relay.keys VALUES (10, 1917700055, 1536559932, 3031690067);
INSERT INTO relay.keys VALUES (11, 1917700055, 1536559932, 1424569744);
INSERT INTO relay.migrations VALUES (1, '2026-11-28 17:46:56.572753+05:30');
INSERT INTO relay.migrations VALUES (2, '2026-11-28 17:46:56.572753+05:30');
INSERT INTO relay.operations OVERRIDING SYSTEM VALUE VALUES (1, 'replay', 'state=dead user_id=#b61d58f3', '2026-11-28 17:46:58.544733+05:30', '2026-11-28 17:46:58.564012+05:30', 1);
INSERT INTO relay.operations OVERRIDING SYSTEM VALUE VALUES (2, 'erase', 'user_id=#d4c190bd', '2026-11-28 17:46:59.524821+05:30', '2026-11-28 17:46:59.532915+05:30', 1);
INSERT INTO relay.pace VALUES ('\x7b2274616b656e5f6174223a5b313739353836383231372e3338343031322c313739353836383231372e3431303735322c313739353836383231372e3432363731372c313739353836383231372e3433313135322c313739353836383231372e3434303334392c313739353836383231372e3434383030312c313739353836383231372e34353532382c313739353836383231382e373833332c313739353836383231392e3934343737375d2c226e6578745f6174223a313739353836383232302e373039303835352c22657261223a312c226661696c75726573223a312c2270726f62655f756e74696c223a302e302c22686f6c64223a6e756c6c2c22616e73776572223a22353033205365727669636520556e617661696c61626c65222c22616e7377657265645f6174223a313739353836383231392e3935323930347d');
INSERT INTO relay.status VALUES (1);
INSERT INTO relay.tallies VALUES (6521, '2026-11-28 17:45:00+05:30', 'vero', 'Email Sent', 'received', '', 1, '2026-11-28 17:46:56.659937+05:30');
INSERT INTO relay.tallies VALUES (6520, '2026-11-28 17:45:00+05:30', 'vero', 'Email Bounced', 'received', '', 1, '2026-11-28 17:46:56.669959+05:30');
INSERT INTO relay.tallies VALUES (6560, '2026-11-28 17:45:00+05:30', 'vero', 'Email Sent', 'delivered', '', 1, '2026-11-28 17:46:57.415482+05:30');
INSERT INTO relay.tallies VALUES (6560, '2026-11-28 17:45:00+05:30', 'vero', 'Email Bounced', 'delivered', '', 1, '2026-11-28 17:46:57.415482+05:30');
INSERT INTO relay.tallies VALUES (6553, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'died', 'rejected', 1, '2026-11-28 17:46:57.434136+05:30');
INSERT INTO relay.tallies VALUES (6560, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'died', 'rejected', 1, '2026-11-28 17:46:57.45222+05:30');
INSERT INTO relay.tallies VALUES (6520, '2026-11-28 17:45:00+05:30', 'vero', '', 'died', 'unknown_type', 1, '2026-11-28 17:46:57.482896+05:30');
INSERT INTO relay.tallies VALUES (6520, '2026-11-28 17:45:00+05:30', 'vero', '', 'received', '', 1, '2026-11-28 17:46:57.482896+05:30');
INSERT INTO relay.tallies VALUES (6521, '2026-11-28 17:45:00+05:30', 'vero', '', 'received', '', 1, '2026-11-28 17:46:57.487786+05:30');
INSERT INTO relay.tallies VALUES (6521, '2026-11-28 17:45:00+05:30', 'vero', '', 'died', 'unreadable', 1, '2026-11-28 17:46:57.487786+05:30');
INSERT INTO relay.tallies VALUES (6575, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'revived', '', 1, '2026-11-28 17:46:58.555228+05:30');
INSERT INTO relay.tallies VALUES (6575, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'left_dead', 'rejected', 1, '2026-11-28 17:46:58.555228+05:30');
INSERT INTO relay.tallies VALUES (6560, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'delivered', '', 3, '2026-11-28 17:46:58.788017+05:30');
INSERT INTO relay.tallies VALUES (6584, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'left_delivered', '', 1, '2026-11-28 17:46:59.526425+05:30');
INSERT INTO relay.tallies VALUES (6521, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'received', '', 3, '2026-11-28 17:46:59.701771+05:30');
INSERT INTO relay.tallies VALUES (6520, '2026-11-28 17:45:00+05:30', 'vero', 'Email Opened', 'received', '', 4, '2026-11-28 17:46:59.705094+05:30');
SELECT pg_catalog.setval('relay.entries_id_seq', 11, true);
SELECT pg_catalog.setval('relay.history_id_seq', 6, true);
SELECT pg_catalog.setval('relay.operations_id_seq', 2, true);
ALTER TABLE ONLY relay.entries
    ADD CONSTRAINT entries_message_id_key UNIQUE (message_id);
ALTER TABLE ONLY relay.entries
    ADD CONSTRAINT entries_pkey PRIMARY KEY (id);
ALTER TABLE ONLY relay.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (id);
ALTER TABLE ONLY relay.keys
    ADD CONSTRAINT keys_pkey PRIMARY KEY (entry);
ALTER TABLE ONLY relay.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);
ALTER TABLE ONLY relay.operations
    ADD CONSTRAINT operations_pkey PRIMARY KEY (id);
ALTER TABLE ONLY relay.tallies
    ADD CONSTRAINT tallies_pkey PRIMARY KEY (lane, slot, provider, collection, change, reason);
CREATE INDEX entries_dead ON relay.entries USING btree (id) WHERE (state = 'dead'::text);
CREATE INDEX entries_delivered ON relay.entries USING btree (delivered_at) WHERE (state = 'delivered'::text);
CREATE INDEX entries_pending ON relay.entries USING btree (pending_since) WHERE (state = 'pending'::text);
CREATE INDEX entries_rare ON relay.entries USING btree (collection, id) WHERE (collection = ANY (ARRAY['Email Link Clicked'::text, 'Email Unsubscribed'::text, 'Email Bounced'::text, 'Email Marked as Spam'::text]));
CREATE INDEX entries_reason ON relay.entries USING btree (reason, id) WHERE (state = 'dead'::text);
CREATE INDEX entries_suspect ON relay.entries USING btree (id) WHERE ((state = 'pending'::text) AND (deaths >= 2));
CREATE INDEX history_entry ON relay.history USING btree (entry);
CREATE INDEX keys_address ON relay.keys USING btree (((entry >> 12)), address_key) WHERE (address_key IS NOT NULL);
CREATE INDEX keys_email ON relay.keys USING btree (((entry >> 12)), email_key) WHERE (email_key IS NOT NULL);
CREATE INDEX keys_user ON relay.keys USING btree (((entry >> 12)), user_key) WHERE (user_key IS NOT NULL);
CREATE TRIGGER added AFTER INSERT ON relay.entries REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_added();
CREATE TRIGGER changed AFTER UPDATE ON relay.entries REFERENCING OLD TABLE AS before NEW TABLE AS after FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_changed();
CREATE TRIGGER gone AFTER DELETE ON relay.entries REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION relay.tally_gone();
ALTER TABLE ONLY relay.history
    ADD CONSTRAINT history_entry_fkey FOREIGN KEY (entry) REFERENCES relay.entries(id) ON DELETE CASCADE;

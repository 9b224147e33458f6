PRAGMA application_id = 1380729177;
PRAGMA user_version = 1;
CREATE TABLE entries (
        id           INTEGER PRIMARY KEY,
        provider     TEXT NOT NULL,
        message_id   TEXT NOT NULL UNIQUE,
        state        TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
        collection   TEXT,              -- of what could be read when it came
        received_at  INTEGER NOT NULL,  -- this and the other times in epoch milliseconds
        pending_since INTEGER,          -- of pending entries only: their order
        attempts     INTEGER NOT NULL DEFAULT 0,
        deaths       INTEGER NOT NULL DEFAULT 0,  -- of processes that held it, in a row
        delivered_at INTEGER,
        reason       TEXT,              -- this and detail of dead entries only
        detail       TEXT,
        user_key     INTEGER,           -- this and the next two: what it can be found by
        address_key  INTEGER,
        email_key    INTEGER,
        body         BLOB NOT NULL
    ) STRICT;
CREATE TABLE history (
        entry INTEGER NOT NULL,
        at    INTEGER NOT NULL,
        what  TEXT NOT NULL,
        said  TEXT NOT NULL
    ) STRICT;
CREATE TABLE tallies (
        slot       INTEGER NOT NULL,  -- of five minutes each since 1970; 0: all earlier ones
        provider   TEXT NOT NULL,
        collection TEXT NOT NULL,     -- this and reason may be empty
        change     TEXT NOT NULL,
        reason     TEXT NOT NULL,
        entries    INTEGER NOT NULL,
        latest     INTEGER NOT NULL,
        PRIMARY KEY (slot, provider, collection, change, reason)
    ) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
        id          INTEGER PRIMARY KEY,
        kind        TEXT NOT NULL,
        what        TEXT NOT NULL,
        started_at  INTEGER NOT NULL,
        finished_at INTEGER,
        entries     INTEGER NOT NULL DEFAULT 0
    ) STRICT;
CREATE TABLE status (
        beat   INTEGER NOT NULL,  -- counts checks of whether a write reaches the disk
        pace   TEXT NOT NULL,     -- what the forwarder last told of it
        claims TEXT NOT NULL      -- what was last in hand: [[id, attempts], ...]
    ) STRICT;
INSERT INTO entries VALUES (1, 'vero', 'vero-6955b900da5d4c187eadbec44e02051d', 'delivered', 'Email Opened', 1795855781687, NULL, 1, 0, 1795855782755, NULL, NULL, 2579427107, 326112825, 58463756, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630302C20226D6573736167655F6964223A20226D61696C2D616E6E2D30222C202275736572223A207B226964223A2022757365722D616E6E222C2022656D61696C223A202263616E6172792D616E6E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (2, 'vero', 'vero-6955b900e6f9589f714c400b44c67394', 'delivered', 'Email Sent', 1795855781707, NULL, 1, 0, 1795855782755, NULL, NULL, 2653953950, 651216070, 3442717406, X'7B2274797065223A202273656E74222C202273656E745F6174223A20313736373232353630302C20226D6573736167655F6964223A20226D61696C2D62656E2D30222C202275736572223A207B226964223A2022757365722D62656E222C2022656D61696C223A202263616E6172792D62656E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (3, 'vero', 'vero-6955b9005d1623ee05d4e8e5f5bee880', 'delivered', 'Email Bounced', 1795855781718, NULL, 1, 0, 1795855782755, NULL, NULL, 2653953950, 651216070, 3442717406, X'7B2274797065223A2022626F756E636564222C2022626F756E6365645F6174223A20313736373232353630302C20226D6573736167655F6964223A20226D61696C2D62656E2D30222C202275736572223A207B226964223A2022757365722D62656E222C2022656D61696C223A202263616E6172792D62656E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (4, 'vero', 'vero-6955b901b0aac2d216b1958a0d616146', 'dead', 'Email Opened', 1795855781730, NULL, 1, 0, NULL, 'rejected', '400 Bad Request: {"success":true}', 2579427107, 326112825, 309994888, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630312C20226D6573736167655F6964223A20226D61696C2D616E6E2D31222C202275736572223A207B226964223A2022757365722D616E6E222C2022656D61696C223A202263616E6172792D616E6E406578616D706C652E636F6D227D2C202263616D706169676E223A207B226E616D65223A202272656675736564227D7D');
INSERT INTO entries VALUES (5, 'vero', 'vero-6955b9017108390d6d41880d8f703a00', 'delivered', 'Email Opened', 1795855781742, NULL, 2, 0, 1795855784088, NULL, NULL, 1672050397, 1686142953, 264123063, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630312C20226D6573736167655F6964223A20226D61696C2D6361792D31222C202275736572223A207B226964223A2022757365722D636179222C2022656D61696C223A202263616E6172792D636179406578616D706C652E636F6D227D2C202263616D706169676E223A207B226E616D65223A20227265706C61796564227D7D');
INSERT INTO entries VALUES (7, 'vero', 'vero-00000000bbf371d3e51f69611bd187ae', 'dead', NULL, 1795855782789, NULL, 0, 0, NULL, 'unknown_type', 'a type relay does not know: snoozed', NULL, NULL, NULL, X'7B2274797065223A2022736E6F6F7A6564222C2022736E6F6F7A65645F6174223A20313736373232353630322C20226D6573736167655F6964223A20226D61696C2D616E6E2D32222C202275736572223A207B226964223A2022757365722D616E6E222C2022656D61696C223A202263616E6172792D616E6E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (8, 'vero', 'vero-0000000002792c876de4a7b162644440', 'dead', NULL, 1795855782793, NULL, 0, 0, NULL, 'unreadable', 'not JSON: JSON is malformed: invalid character (byte 4)', NULL, NULL, NULL, X'6E6F204A534F4E');
INSERT INTO entries VALUES (9, 'vero', 'vero-6955b900523acfb6e48a345a3b55125b', 'pending', 'Email Opened', 1795855785283, 1795855785283, 1, 0, NULL, NULL, NULL, 1917700055, 1536559932, 3673167378, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630302C20226D6573736167655F6964223A20226D61696C2D64616E2D30222C202275736572223A207B226964223A2022757365722D64616E222C2022656D61696C223A202263616E6172792D64616E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (10, 'vero', 'vero-6955b901406656bec773b7eb5e17e3e6', 'pending', 'Email Opened', 1795855785288, 1795855785288, 1, 0, NULL, NULL, NULL, 1917700055, 1536559932, 3031690067, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630312C20226D6573736167655F6964223A20226D61696C2D64616E2D31222C202275736572223A207B226964223A2022757365722D64616E222C2022656D61696C223A202263616E6172792D64616E406578616D706C652E636F6D227D7D');
INSERT INTO entries VALUES (11, 'vero', 'vero-6955b902983c3665223fb4c5ec49fc1d', 'pending', 'Email Opened', 1795855785290, 1795855785290, 1, 0, NULL, NULL, NULL, 1917700055, 1536559932, 1424569744, X'7B2274797065223A20226F70656E6564222C20226F70656E65645F6174223A20313736373232353630322C20226D6573736167655F6964223A20226D61696C2D64616E2D32222C202275736572223A207B226964223A2022757365722D64616E222C2022656D61696C223A202263616E6172792D64616E406578616D706C652E636F6D227D7D');
INSERT INTO history VALUES (4, 1795855782764, 'dead', 'rejected');
INSERT INTO history VALUES (5, 1795855782773, 'dead', 'rejected');
INSERT INTO history VALUES (5, 1795855783851, 'replayed', '');
INSERT INTO history VALUES (9, 1795855785448, 'posted', '503 Service Unavailable');
INSERT INTO history VALUES (10, 1795855785448, 'posted', '503 Service Unavailable');
INSERT INTO history VALUES (11, 1795855785448, 'posted', '503 Service Unavailable');
INSERT INTO tallies VALUES (5986185, 'vero', '', 'died', 'unknown_type', 1, 1795855782789);
INSERT INTO tallies VALUES (5986185, 'vero', '', 'died', 'unreadable', 1, 1795855782793);
INSERT INTO tallies VALUES (5986185, 'vero', '', 'received', 'unknown_type', 1, 1795855782789);
INSERT INTO tallies VALUES (5986185, 'vero', '', 'received', 'unreadable', 1, 1795855782793);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Bounced', 'delivered', '', 1, 1795855782755);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Bounced', 'received', '', 1, 1795855781718);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'delivered', '', 3, 1795855784088);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'died', 'rejected', 2, 1795855782773);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'left_dead', 'rejected', 1, 1795855783852);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'left_delivered', '', 1, 1795855785028);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'received', '', 7, 1795855785290);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Opened', 'revived', '', 1, 1795855783852);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Sent', 'delivered', '', 1, 1795855782755);
INSERT INTO tallies VALUES (5986185, 'vero', 'Email Sent', 'received', '', 1, 1795855781707);
INSERT INTO operations VALUES (1, 'replay', 'state=dead user_id=#b61d58f3', 1795855783848, 1795855783853, 1);
INSERT INTO operations VALUES (2, 'erase', 'user_id=#d4c190bd', 1795855785026, 1795855785036, 1);
INSERT INTO status VALUES (1, '{"taken_at":[],"next_at":521.5982348545208,"era":1,"failures":1,"probe_until":0.0,"hold":null,"answer":"503 Service Unavailable","answered_at":521.071263503}', '[[9,1],[10,1],[11,1]]');
CREATE INDEX entries_pending ON entries (pending_since) WHERE state = 'pending';
CREATE INDEX entries_suspect ON entries (id) WHERE state = 'pending' AND deaths >= 2;
CREATE INDEX entries_delivered ON entries (delivered_at) WHERE state = 'delivered';
CREATE INDEX entries_dead ON entries (id) WHERE state = 'dead';
CREATE INDEX entries_reason ON entries (reason) WHERE state = 'dead';
CREATE INDEX entries_user ON entries (id >> 9, user_key)
        WHERE user_key IS NOT NULL;
CREATE INDEX entries_address ON entries (id >> 9, address_key)
        WHERE address_key IS NOT NULL;
CREATE INDEX entries_email ON entries (id >> 9, email_key)
        WHERE email_key IS NOT NULL;
CREATE INDEX entries_rare ON entries (collection) WHERE collection IN ('Email Link Clicked', 'Email Unsubscribed', 'Email Bounced', 'Email Marked as Spam');
CREATE INDEX history_entry ON history (entry);
CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
        DELETE FROM history WHERE entry = old.id;
    END;
CREATE TRIGGER entry_received AFTER INSERT ON entries BEGIN
        
        INSERT INTO tallies VALUES (
            new.received_at / 300000, new.provider, coalesce(new.collection, ''), 'received',
            coalesce(new.reason, ''), 1, new.received_at
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_restored AFTER INSERT ON entries WHEN new.state = 'delivered' BEGIN
        
        INSERT INTO tallies VALUES (
            new.delivered_at / 300000, new.provider, coalesce(new.collection, ''), 'delivered',
            coalesce(new.reason, ''), 1, new.delivered_at
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_unusable AFTER INSERT ON entries WHEN new.state = 'dead' BEGIN
        
        INSERT INTO tallies VALUES (
            new.received_at / 300000, new.provider, coalesce(new.collection, ''), 'died',
            coalesce(new.reason, ''), 1, new.received_at
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_delivered AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'delivered' BEGIN
        
        INSERT INTO tallies VALUES (
            new.delivered_at / 300000, new.provider, coalesce(new.collection, ''), 'delivered',
            coalesce(new.reason, ''), 1, new.delivered_at
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_died AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'dead' BEGIN
        
        INSERT INTO tallies VALUES (
            CAST(unixepoch('subsec') * 1000 AS INTEGER) / 300000, new.provider, coalesce(new.collection, ''), 'died',
            coalesce(new.reason, ''), 1, CAST(unixepoch('subsec') * 1000 AS INTEGER)
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_revived AFTER UPDATE OF state ON entries
    WHEN old.state <> 'pending' AND new.state = 'pending' BEGIN
        
        INSERT INTO tallies VALUES (
            CAST(unixepoch('subsec') * 1000 AS INTEGER) / 300000, old.provider, coalesce(old.collection, ''), 'left_' || old.state,
            coalesce(old.reason, ''), 1, CAST(unixepoch('subsec') * 1000 AS INTEGER)
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
        
        INSERT INTO tallies VALUES (
            CAST(unixepoch('subsec') * 1000 AS INTEGER) / 300000, new.provider, coalesce(new.collection, ''), 'revived',
            coalesce(new.reason, ''), 1, CAST(unixepoch('subsec') * 1000 AS INTEGER)
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;
CREATE TRIGGER entry_forgotten AFTER DELETE ON entries BEGIN
        
        INSERT INTO tallies VALUES (
            CAST(unixepoch('subsec') * 1000 AS INTEGER) / 300000, old.provider, coalesce(old.collection, ''), 'left_' || old.state,
            coalesce(old.reason, ''), 1, CAST(unixepoch('subsec') * 1000 AS INTEGER)
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    
    END;

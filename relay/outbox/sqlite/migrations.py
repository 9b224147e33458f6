"""The tables of a SQLite outbox, version by version.

A script that has been released is never changed: the next one does what is to be different (see
tests/outbox/released.py).
"""

from datetime import timedelta
from typing import Final

from relay.outbox.counters import SLOT
from relay.outbox.entries import CRASHES_BEFORE_ISOLATION
from relay.outbox.protocol import RARE_COLLECTIONS

BLOCK_BITS: Final = 9
"""Keys are indexed by blocks of 512 entries, each block in a place of its own.

A commit writes each page that it touches. One index over all keys would put each new entry on a
page of its own. A block of 512 has three pages, and a search takes 2 µs a block.
"""

IS_RARE: Final = f"collection IN {RARE_COLLECTIONS}"
"""Only a query with these very words is answered by the index of rare collections."""

SLOT_MILLISECONDS: Final = SLOT // timedelta(milliseconds=1)

_NOW: Final = "CAST(unixepoch('subsec') * 1000 AS INTEGER)"


def _count_1(row: str, change: str, at: str = _NOW) -> str:
    """Return the statement of a trigger of version 1 that counts the change of a row."""
    change = f"'{change}' || {row}.state" if change.endswith("_") else f"'{change}'"
    return f"""
        INSERT INTO tallies VALUES (
            {at} / {SLOT_MILLISECONDS}, {row}.provider, coalesce({row}.collection, ''), {change},
            coalesce({row}.reason, ''), 1, {at}
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    """  # noqa: S608 (nothing but constants is put in)


def _count(row: str, change: str, at: str = _NOW) -> str:
    """Return the statement of a trigger that counts the change of a row.

    SQLite has triggers on single rows only. One takes 2 µs.

    Args:
        row: `new` or `old`.
        change: see `Change`; one that ends in an underscore is followed by the row's state.
        at: SQL for the time of the change, in epoch milliseconds.
    """
    change = f"'{change}' || {row}.state" if change.endswith("_") else f"'{change}'"
    return f"""
        INSERT INTO counters VALUES (
            {at} / {SLOT_MILLISECONDS}, {row}.source, {row}.destination,
            coalesce({row}.collection, ''), {change}, coalesce({row}.reason, ''), 1, {at}
        ) ON CONFLICT DO UPDATE
        SET entries = entries + 1, latest = max(latest, excluded.latest);
    """  # noqa: S608 (nothing but constants is put in)


_VERSION_1: Final = f"""
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
    CREATE INDEX entries_pending ON entries (pending_since) WHERE state = 'pending';
    CREATE INDEX entries_suspect ON entries (id) WHERE state = 'pending' AND deaths >= 2;
    CREATE INDEX entries_delivered ON entries (delivered_at) WHERE state = 'delivered';
    CREATE INDEX entries_dead ON entries (id) WHERE state = 'dead';
    CREATE INDEX entries_reason ON entries (reason) WHERE state = 'dead';
    CREATE INDEX entries_user ON entries (id >> {BLOCK_BITS}, user_key)
        WHERE user_key IS NOT NULL;
    CREATE INDEX entries_address ON entries (id >> {BLOCK_BITS}, address_key)
        WHERE address_key IS NOT NULL;
    CREATE INDEX entries_email ON entries (id >> {BLOCK_BITS}, email_key)
        WHERE email_key IS NOT NULL;
    CREATE INDEX entries_rare ON entries (collection) WHERE {IS_RARE};
    CREATE TABLE history (
        entry INTEGER NOT NULL,
        at    INTEGER NOT NULL,
        what  TEXT NOT NULL,
        said  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX history_entry ON history (entry);
    CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
        DELETE FROM history WHERE entry = old.id;
    END;
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
    CREATE TRIGGER entry_received AFTER INSERT ON entries BEGIN
        {_count_1("new", "received", at="new.received_at")}
    END;
    CREATE TRIGGER entry_restored AFTER INSERT ON entries WHEN new.state = 'delivered' BEGIN
        {_count_1("new", "delivered", at="new.delivered_at")}
    END;
    CREATE TRIGGER entry_unusable AFTER INSERT ON entries WHEN new.state = 'dead' BEGIN
        {_count_1("new", "died", at="new.received_at")}
    END;
    CREATE TRIGGER entry_delivered AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'delivered' BEGIN
        {_count_1("new", "delivered", at="new.delivered_at")}
    END;
    CREATE TRIGGER entry_died AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'dead' BEGIN
        {_count_1("new", "died")}
    END;
    CREATE TRIGGER entry_revived AFTER UPDATE OF state ON entries
    WHEN old.state <> 'pending' AND new.state = 'pending' BEGIN
        {_count_1("old", "left_")}
        {_count_1("new", "revived")}
    END;
    CREATE TRIGGER entry_forgotten AFTER DELETE ON entries BEGIN
        {_count_1("old", "left_")}
    END;
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
    INSERT INTO status VALUES (0, '{{}}', '[]');
    """  # noqa: S608 (nothing but constants is put in)

# The last column is the new one: put in its place, it would have every row written once more.
_VERSION_2: Final = f"""
    DROP TRIGGER entry_received;
    DROP TRIGGER entry_restored;
    DROP TRIGGER entry_unusable;
    DROP TRIGGER entry_delivered;
    DROP TRIGGER entry_died;
    DROP TRIGGER entry_revived;
    DROP TRIGGER entry_forgotten;
    DROP INDEX entries_pending;
    DROP INDEX entries_suspect;
    ALTER TABLE entries RENAME provider TO source;
    ALTER TABLE entries RENAME deaths TO crashes;
    ALTER TABLE entries ADD COLUMN destination TEXT NOT NULL DEFAULT 'segment';
    ALTER TABLE history RENAME said TO detail;
    ALTER TABLE status DROP COLUMN pace;
    -- A replay that was interrupted is continued by its text, which has today's word from now on.
    UPDATE operations SET what = substr(replace(' ' || what, ' provider=', ' source='), 2)
    WHERE ' ' || what LIKE '% provider=%';
    CREATE INDEX entries_pending ON entries (destination, pending_since) WHERE state = 'pending';
    CREATE INDEX entries_suspect ON entries (destination, id)
        WHERE state = 'pending' AND crashes >= {CRASHES_BEFORE_ISOLATION};
    CREATE TABLE throttles (
        destination TEXT PRIMARY KEY,
        state       TEXT NOT NULL  -- as the forwarder last noted it
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE counters (
        slot        INTEGER NOT NULL,  -- of five minutes each since 1970; 0: all earlier ones
        source      TEXT NOT NULL,
        destination TEXT NOT NULL,
        collection  TEXT NOT NULL,     -- this and reason may be empty
        change      TEXT NOT NULL,
        reason      TEXT NOT NULL,
        entries     INTEGER NOT NULL,
        latest      INTEGER NOT NULL,
        PRIMARY KEY (slot, source, destination, collection, change, reason)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO counters
    SELECT slot, provider, 'segment', collection,
        CASE change WHEN 'died' THEN 'dead_lettered' WHEN 'revived' THEN 'requeued' ELSE change END,
        reason, entries, latest
    FROM tallies;
    DROP TABLE tallies;
    CREATE TRIGGER entry_received AFTER INSERT ON entries BEGIN
        {_count("new", "received", at="new.received_at")}
    END;
    CREATE TRIGGER entry_restored AFTER INSERT ON entries WHEN new.state = 'delivered' BEGIN
        {_count("new", "delivered", at="new.delivered_at")}
    END;
    CREATE TRIGGER entry_unusable AFTER INSERT ON entries WHEN new.state = 'dead' BEGIN
        {_count("new", "dead_lettered", at="new.received_at")}
    END;
    CREATE TRIGGER entry_delivered AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'delivered' BEGIN
        {_count("new", "delivered", at="new.delivered_at")}
    END;
    CREATE TRIGGER entry_dead_lettered AFTER UPDATE OF state ON entries
    WHEN old.state = 'pending' AND new.state = 'dead' BEGIN
        {_count("new", "dead_lettered")}
    END;
    CREATE TRIGGER entry_requeued AFTER UPDATE OF state ON entries
    WHEN old.state <> 'pending' AND new.state = 'pending' BEGIN
        {_count("old", "left_")}
        {_count("new", "requeued")}
    END;
    CREATE TRIGGER entry_forgotten AFTER DELETE ON entries BEGIN
        {_count("old", "left_")}
    END;
"""  # noqa: S608 (nothing but constants is put in)

# An entry heads all its lanes if no other entry has an earlier row in one of them. Who changes a
# state or deletes an entry need not know of lanes: triggers keep `lanes` and `blocked` right.
#
# The new columns are the last ones, as above: no row is written again.
_VERSION_3: Final = """
    -- This and the next two of pending entries only. 1: behind another entry in a lane; 0: the head
    -- of all its lanes; NULL: it has none.
    ALTER TABLE entries ADD COLUMN blocked INTEGER;
    ALTER TABLE entries ADD COLUMN retry_at INTEGER NOT NULL DEFAULT 0;  -- not claimed before
    ALTER TABLE entries ADD COLUMN failing_since INTEGER;
    ALTER TABLE entries ADD COLUMN step INTEGER NOT NULL DEFAULT 0;  -- messages that are sent
    CREATE INDEX entries_ordered ON entries (destination, retry_at, pending_since)
        WHERE state = 'pending' AND blocked = 0;
    CREATE TABLE lanes (
        seq   INTEGER PRIMARY KEY,  -- the order: a new row has the highest
        lane  INTEGER NOT NULL,
        entry INTEGER NOT NULL      -- a pending one
    ) STRICT;
    CREATE INDEX lanes_lane ON lanes (lane);  -- and by seq within a lane
    CREATE INDEX lanes_entry ON lanes (entry);
    CREATE TRIGGER lane_joined AFTER INSERT ON lanes BEGIN
        UPDATE entries
        SET blocked = coalesce(blocked, 0) OR EXISTS (
            SELECT 1 FROM lanes
            WHERE lane = new.lane AND seq < new.seq AND entry <> new.entry
        )
        WHERE id = new.entry;
    END;
    CREATE TRIGGER lane_left AFTER DELETE ON lanes BEGIN
        UPDATE entries SET blocked = 0
        WHERE id = (SELECT entry FROM lanes WHERE lane = old.lane ORDER BY seq LIMIT 1)
            AND blocked = 1
            AND NOT EXISTS (
                SELECT 1 FROM lanes AS own CROSS JOIN lanes AS ahead
                WHERE own.entry = entries.id
                    AND ahead.lane = own.lane AND ahead.seq < own.seq AND ahead.entry <> own.entry
            );
    END;
    CREATE TRIGGER entry_left_lanes AFTER UPDATE OF state ON entries
    WHEN old.blocked IS NOT NULL AND new.state <> 'pending' BEGIN
        DELETE FROM lanes WHERE entry = old.id;
        UPDATE entries SET blocked = NULL, retry_at = 0, failing_since = NULL WHERE id = old.id;
    END;
    CREATE TRIGGER entry_gone_from_lanes AFTER DELETE ON entries
    WHEN old.blocked IS NOT NULL BEGIN
        DELETE FROM lanes WHERE entry = old.id;
    END;
"""

MIGRATIONS: Final = (_VERSION_1, _VERSION_2, _VERSION_3)
"""A script for each version. A file of version n has had the first n."""

"""The outbox in PostgreSQL, for any number of machines. Only its modules know psycopg.

Every operation is one statement, or a short transaction, and needs no state in its session: no
prepared statement, no setting, no lock. So it works behind PgBouncer in transaction mode.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

from msgspec import json, structs

from relay.errors import OutboxError
from relay.events import Unusable
from relay.outbox.counters import Change, CounterRow, in_states
from relay.outbox.entries import Arrival, Clock, Counts, Entry, Role, State, T
from relay.outbox.postgres.connection import connection_parameters
from relay.outbox.postgres.entries import PostgresEntryStore
from relay.outbox.postgres.notifications import NotifyListener
from relay.outbox.postgres.schema import COUNT, as_text, prepare
from relay.outbox.postgres.sessions import (
    LONG_SECONDS,
    SHORT_SECONDS,
    BrokenError,
    Sessions,
    translated,
)
from relay.throttle import DestinationStatus, Throttle

_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_BYTES_A_SECOND: Final = 2**20  # on a slow way to the server
_RING_SECONDS: Final = 0.1  # less than a forwarder lingers for company
_EXPOSED: Final = (
    "the way to PostgreSQL is not encrypted: whoever is on it reads events and the password; put"
    " sslmode=verify-full into the outbox's URL, or sslmode=require"
)


def open_url(
    url: str,
    *,
    allow_ephemeral: bool,  # noqa: ARG001 (as every store)
    create: bool,
) -> "PostgresOutbox":
    """Open `postgresql://…` or `postgres://…`, as libpq reads them."""
    return PostgresOutbox(url, create=create)


class PostgresOutbox:
    """See `relay.outbox.protocol.Outbox`.

    What `add` stores is flushed to disk before it returns, whatever the server's default is. What
    claims and settles is not waited for: lost in a crash, it is done again, under the same
    `messageId`.

    Args:
        url: of the database; the tables are in its schema `relay`.
        create: make the tables if there are none.
        clock: by default the server's, which is the same for every process.
    """

    def __init__(self, url: str, *, create: bool = True, clock: Clock | None = None) -> None:
        self._clock = clock
        self._rung_at = float("-inf")
        with translated():
            parameters, ignored = connection_parameters(url)
            exposed = prepare(parameters, create=create)
        self._sessions = Sessions(parameters)
        self._listener = NotifyListener(parameters)
        self._entries = PostgresEntryStore(self._sessions, self._now)
        self._warnings = [
            *(
                f"the outbox's URL has {name}= in it, which libpq does not know; it is ignored"
                for name in ignored
            ),
            *([_EXPOSED] if exposed else ()),
        ]

    def add(self, arrivals: Sequence[Arrival]) -> list[bool]:
        """See `Outbox.add`."""
        if not arrivals:
            return []
        # In one order everywhere, so that two groups with the same entries cannot lock each other
        # out.
        ordered = sorted(arrivals, key=lambda arrival: arrival.message_id)
        faults = [arrival.fault for arrival in ordered]
        group = {
            "now": self._now(),
            "claim": secrets.randbits(62),
            "sources": [arrival.source for arrival in ordered],
            "message_ids": [arrival.message_id for arrival in ordered],
            "received_at": [arrival.received_at for arrival in ordered],
            "reasons": [fault.reason.value if fault else None for fault in faults],
            "details": [as_text(fault.detail) if fault else None for fault in faults],
            "collections": [arrival.collection for arrival in ordered],
            "user_keys": [arrival.keys.user for arrival in ordered],
            "address_keys": [arrival.keys.address for arrival in ordered],
            "email_keys": [arrival.keys.email for arrival in ordered],
            "bodies": [arrival.body for arrival in ordered],
        }
        new: list[bool] = []
        added = {message_id for (message_id,) in self._insert(group)}
        for arrival in arrivals:
            new.append(arrival.message_id in added)
            added.discard(arrival.message_id)  # its copies in the same group are not new
        return new

    def _insert(self, group: dict[str, Any]) -> list[Any]:
        statement = _ADD
        if time.monotonic() - self._rung_at > _RING_SECONDS:
            # Not each time: committing a notification takes a lock of the whole database.
            statement, self._rung_at = _ADD_AND_RING, time.monotonic()
        seconds = SHORT_SECONDS + sum(map(len, group["bodies"])) // _BYTES_A_SECOND
        try:
            return self._run(statement, group, flushed=True, seconds=seconds)
        except OutboxError as error:
            if not isinstance(error.__cause__, BrokenError):
                raise
        # The connection broke, and the group may or may not be on disk: what is there and has its
        # number is new, and it is there once.
        added = self._run(_ADD, group, flushed=True, seconds=seconds)
        return added + self._run(_ADDED, group)

    def changed(self) -> bool:
        """See `Outbox.changed`."""
        return self._listener.notified() or (self._listener.due_to_look() and self._anything_due())

    def _anything_due(self) -> bool:
        return bool(self._run(_ANYTHING_DUE, {"now": self._now()}))

    def claim(self, limit: int, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim`."""
        return self._claim(_CLAIM, limit, lease)

    def claim_suspect(self, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim_suspect`."""
        # Flushed, unlike other claims: a crash of the server, too, is not to be forgotten.
        return self._claim(_CLAIM_SUSPECT, 1, lease, flushed=True)

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """See `Outbox.begin_post`. The claim is one by which the lineage finds it again."""
        claim = (lineage << _LINEAGE_BITS) + suspect.attempts % (1 << _LINEAGE_BITS)
        held = {"id": suspect.id, "held": suspect.claim, "claim": claim}
        self._run(_BEGIN_POST, held, flushed=True)
        return structs.replace(suspect, claim=claim)

    def count_crash(self, lineage: int) -> None:
        """See `Outbox.count_crash`."""
        first = lineage << _LINEAGE_BITS
        lineages = {"first": first, "end": first + (1 << _LINEAGE_BITS)}
        self._run(_COUNT_CRASH, lineages, flushed=True)

    def has_suspects(self) -> bool:
        """See `Outbox.has_suspects`."""
        return bool(self._run(_ANY_SUSPECT, {"now": self._now()}))

    def _claim(
        self, statement: LiteralString, limit: int, lease: timedelta, *, flushed: bool = False
    ) -> list[Entry]:
        claim = secrets.randbits(62)
        due = {
            "now": self._now(),
            "lease": lease,
            "limit": limit,
            "bytes": _MOST_BYTES,
            "claim": claim,
        }
        rows = self._run(statement, due, flushed=flushed)
        return [
            Entry(id_, source, message_id, at.astimezone(UTC), attempts, claim, body, crashes)
            for id_, source, message_id, at, attempts, crashes, body in rows
        ]

    def ack(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.ack`."""
        self._settle(entries, State.DELIVERED)

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.dead_letter`."""
        self._settle([entry], State.DEAD, fault, happened=("dead", fault.reason))

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """See `Outbox.release`."""
        happened = None if answer is None else ("posted", answer)
        self._settle(entries, State.PENDING, happened=happened)

    def _settle(
        self,
        entries: Sequence[Entry],
        state: State,
        fault: Unusable | None = None,
        *,
        happened: tuple[str, str] | None = None,
    ) -> None:
        settled = {
            "now": self._now(),
            "ids": [entry.id for entry in entries],
            "claims": [entry.claim for entry in entries],
            "state": state.value,
            "reason": fault.reason.value if fault else None,
            "detail": as_text(fault.detail) if fault else None,
        }
        if happened is None:
            self._run(_SETTLE, settled)
        else:
            what, said = happened
            self._run(_SETTLE_AND_TELL, settled | {"what": what, "said": said})

    def throttle(self, change: Callable[[Throttle, float], T]) -> T:
        """See `Outbox.throttle`."""
        with self._sessions.transaction() as session:
            row: Any = session.execute(_PACE, {"now": self._now()}, binary=True).fetchone()
            throttle = json.decode(row[0], type=Throttle)
            result = change(throttle, row[1])
            changed = json.encode(throttle)
            if changed != row[0]:
                session.execute("UPDATE relay.pace SET pace = %b", (changed,))
        return result

    def standing(self) -> DestinationStatus:
        """See `Outbox.standing`."""
        ((throttle, now),) = self._run(_LOOK_AT_PACE, {"now": self._now()})
        return json.decode(throttle, type=Throttle).standing(now, datetime.fromtimestamp(now, UTC))

    def counts(self) -> Counts:
        """See `Outbox.counts`."""
        counted = in_states({Change(change): n for change, n in self._run(COUNT, {})})
        ((since,),) = self._run(_LONGEST_PENDING, {})
        return Counts(
            pending=counted[State.PENDING],
            delivered=counted[State.DELIVERED],
            dead=counted[State.DEAD],
            waiting_since=since.astimezone(UTC) if since else None,
        )

    def counters(self) -> list[CounterRow]:
        """See `Outbox.counters`."""
        return [_counter_row(row) for row in self._run(_TALLIES, {})]

    def aggregate_counters(self, before: datetime) -> None:
        """See `Outbox.aggregate_counters`."""
        self._run(_FOLD, {"before": before}, seconds=LONG_SECONDS)

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        # Old entries are in no memory any more, and a slow disk must not keep them for ever.
        purged = self._run(_PURGE, {"before": before, "limit": limit}, seconds=LONG_SECONDS)
        return len(purged)

    def check(self) -> None:
        """See `Outbox.check`."""
        self._run("UPDATE relay.status SET beat = beat + 1", {}, flushed=True)

    def pending_exceed(self, limit: int) -> bool:
        """See `Outbox.pending_exceed`."""
        return bool(self._run(_PENDING_AFTER, {"limit": limit}, seconds=LONG_SECONDS))

    def free_bytes(self) -> int | None:
        """See `Outbox.free_bytes`. A server does not tell."""
        return None

    def lock_role(self, role: Role, *, patience: timedelta = timedelta(0)) -> None:
        """See `Outbox.lock_role`. There is room for any number."""

    def warnings(self) -> list[str]:
        """See `Outbox.warnings`."""
        return self._warnings

    def log_state(self) -> None:
        """See `Outbox.log_state`."""

    @property
    def entries(self) -> PostgresEntryStore:
        """See `Outbox.records`."""
        return self._entries

    def close(self) -> None:
        """See `Outbox.close`."""
        self._listener.close()
        self._sessions.close()

    def _now(self) -> datetime | None:
        return self._clock() if self._clock else None

    def _run(
        self,
        statement: LiteralString,
        values: dict[str, Any],
        *,
        flushed: bool = False,
        seconds: float = SHORT_SECONDS,
    ) -> list[Any]:
        return self._sessions.run(statement, values, flushed=flushed, seconds=seconds)


def _counter_row(row: Sequence[Any]) -> CounterRow:
    slot, source, collection, change, reason, entries, latest = row
    return CounterRow(
        since=slot.astimezone(UTC) if slot.timestamp() else None,
        source=source,
        collection=collection or None,
        change=Change(change),
        reason=reason or None,
        entries=entries,
        latest=latest.astimezone(UTC),
    )


# A lease that ends so far ahead comes of a clock that has been put back since.
_IS_DUE: Final = """(
    due_at <= coalesce(%(now)s::timestamptz, now())
    OR due_at > coalesce(%(now)s::timestamptz, now()) + interval '2 minutes'
)"""

_ADD: Final = """
    WITH arrival AS (
        SELECT * FROM unnest(
            %(providers)s::text[], %(message_ids)s::text[], %(received_at)s::timestamptz[],
            %(reasons)s::text[], %(details)s::text[], %(collections)s::text[],
            %(user_keys)s::bigint[], %(address_keys)s::bigint[], %(email_keys)s::bigint[],
            %(bodies)b::bytea[]
        ) AS arrival (
            provider, message_id, received_at, reason, detail, collection,
            user_key, address_key, email_key, body
        )
    ), added AS (
        INSERT INTO relay.entries (
            provider, message_id, state, collection, received_at, pending_since, due_at, claim,
            reason, detail, body
        )
        SELECT
            provider, message_id, CASE WHEN reason IS NULL THEN 'pending' ELSE 'dead' END,
            collection, received_at, CASE WHEN reason IS NULL THEN received_at END,
            CASE WHEN reason IS NULL THEN
                least(received_at, coalesce(%(now)s::timestamptz, now()))
            END,
            %(claim)s::bigint, reason, detail, body
        FROM arrival
        ON CONFLICT (message_id) DO NOTHING
        RETURNING id, message_id
    ), keyed AS (
        INSERT INTO relay.keys (entry, user_key, address_key, email_key)
        SELECT id, user_key, address_key, email_key FROM added JOIN arrival USING (message_id)
        WHERE coalesce(user_key, address_key, email_key) IS NOT NULL
        ON CONFLICT (entry) DO NOTHING  -- copies in one group
    ), confirmed AS (
        -- What is there already may still be on its way to the standby that must have it, as the
        -- transaction that brought it may have been cancelled in waiting. This one waits.
        UPDATE relay.status SET beat = beat + 1
        WHERE current_setting('synchronous_standby_names') <> '' AND NOT EXISTS (TABLE added)
    )
    SELECT message_id FROM added
"""

_ADD_AND_RING: Final = _ADD + ", (SELECT pg_notify('relay', '')) AS bell"

_ADDED: Final = """
    SELECT message_id FROM relay.entries
    WHERE message_id = ANY (%(message_ids)s) AND claim = %(claim)s
"""

_ANYTHING_DUE: Final = (
    "SELECT 1 FROM relay.entries WHERE state = 'pending' AND "  # noqa: S608 (this and those below: nothing but constants is put in)
    + _IS_DUE
    + " LIMIT 1"
)

_CLAIMED: Final = """
    UPDATE relay.entries AS entry
    SET due_at = coalesce(%(now)s::timestamptz, now()) + %(lease)s,
        attempts = attempts + 1, deaths = deaths + 1, claim = %(claim)s
    FROM summed WHERE entry.id = summed.id AND total - summed.size < %(bytes)s
    RETURNING entry.id, provider, message_id, received_at, attempts, deaths - 1, body
"""

_CLAIM: Final = (
    """
    WITH due AS MATERIALIZED (
        SELECT id, pending_since, octet_length(body) AS size FROM relay.entries
        WHERE state = 'pending' AND deaths < 2 AND
    """  # noqa: S608
    + _IS_DUE
    + """
        ORDER BY pending_since LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ), summed AS (
        SELECT id, size, sum(size) OVER (ORDER BY pending_since, id) AS total FROM due
    )
    """
    + _CLAIMED
)

# Not the same one each time: one that is innocent must not be in hand at every death.
_CLAIM_SUSPECT: Final = (
    """
    WITH due AS MATERIALIZED (
        SELECT id FROM relay.entries
        WHERE state = 'pending' AND deaths >= 2 AND
    """  # noqa: S608
    + _IS_DUE
    + """
        ORDER BY random() LIMIT %(limit)s
    ), summed AS MATERIALIZED (
        SELECT id, 0 AS size, 0 AS total FROM relay.entries
        WHERE id IN (SELECT id FROM due) AND state = 'pending' AND
    """
    + _IS_DUE
    + """
        FOR UPDATE SKIP LOCKED
    )
    """
    + _CLAIMED
)

_LINEAGE_BITS: Final = 20

_BEGIN_POST: Final = """
    UPDATE relay.entries SET deaths = deaths - 1, claim = %(claim)s
    WHERE id = %(id)s AND claim = %(held)s AND state = 'pending' RETURNING id
"""

# A claim of its own, so that it is counted once.
_COUNT_CRASH: Final = """
    UPDATE relay.entries SET deaths = deaths + 1, claim = -claim
    WHERE state = 'pending' AND deaths >= 2 AND claim >= %(first)s AND claim < %(end)s RETURNING id
"""

_ANY_SUSPECT: Final = (
    "SELECT 1 FROM relay.entries WHERE state = 'pending' AND deaths >= 2 AND "  # noqa: S608
    + _IS_DUE
    + " LIMIT 1"
)

_PENDING_AFTER: Final = """
    SELECT 1 FROM relay.entries WHERE state = 'pending' LIMIT 1 OFFSET %(limit)s
"""

_SETTLE: Final = """
    UPDATE relay.entries AS entry
    SET state = %(state)s, reason = %(reason)s, detail = %(detail)s, deaths = 0,
        pending_since = CASE WHEN %(state)s = 'pending' THEN pending_since END,
        due_at = CASE WHEN %(state)s = 'pending' THEN coalesce(%(now)s::timestamptz, now()) END,
        delivered_at =
            CASE WHEN %(state)s = 'delivered' THEN coalesce(%(now)s::timestamptz, now()) END
    FROM unnest(%(ids)s::bigint[], %(claims)s::bigint[]) AS held (id, claim)
    WHERE entry.id = held.id AND entry.claim = held.claim AND entry.state = 'pending'
"""

_SETTLE_AND_TELL: Final = (
    "WITH settled AS ("  # noqa: S608
    + _SETTLE
    + """
    RETURNING entry.id)
    INSERT INTO relay.history (entry, at, what, said)
    SELECT id, coalesce(%(now)s::timestamptz, now()), %(what)s, %(said)s FROM settled
    """
)

_NOW: Final = "extract(epoch FROM coalesce(%(now)s::timestamptz, clock_timestamp()))::float8"

_LOOK_AT_PACE: Final = "SELECT pace, " + _NOW + " FROM relay.pace"  # noqa: S608

_PACE: Final = (
    "SELECT pace, "  # noqa: S608
    + _NOW
    + """
    FROM relay.pace, (
        -- A process stopped while it has the pace must not stop the others, which wait 4 s for it.
        SELECT set_config('idle_in_transaction_session_timeout', '3s', true)
    ) AS settings
    FOR UPDATE OF pace
    """
)

_LONGEST_PENDING: Final = "SELECT min(pending_since) FROM relay.entries WHERE state = 'pending'"

_TALLIES: Final = """
    SELECT slot, provider, collection, change, reason, sum(entries)::bigint, max(latest)
    FROM relay.tallies GROUP BY slot, provider, collection, change, reason ORDER BY slot DESC
"""

# In one order, so that two at it at once do not lock each other out.
_FOLD: Final = """
    WITH past AS MATERIALIZED (
        SELECT ctid FROM relay.tallies
        WHERE slot <= %(before)s::timestamptz - interval '5 minutes'
            AND NOT (lane = 0 AND slot = 'epoch')
        FOR UPDATE SKIP LOCKED
    ), folded AS (
        DELETE FROM relay.tallies WHERE ctid IN (SELECT ctid FROM past) RETURNING *
    )
    INSERT INTO relay.tallies
    SELECT 0, 'epoch', provider, collection, change, reason, sum(entries)::bigint, max(latest)
    FROM folded GROUP BY provider, collection, change, reason
    ORDER BY provider, collection, change, reason
    ON CONFLICT (lane, slot, provider, collection, change, reason) DO UPDATE
    SET entries = tallies.entries + excluded.entries,
        latest = greatest(tallies.latest, excluded.latest)
"""

_PURGE: Final = """
    WITH gone AS (
        DELETE FROM relay.entries WHERE id IN (
            SELECT id FROM relay.entries WHERE state = 'delivered' AND delivered_at < %(before)s
            ORDER BY delivered_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ) RETURNING id
    ), unkeyed AS (
        DELETE FROM relay.keys USING gone WHERE entry = gone.id
    )
    SELECT id FROM gone
"""

"""Implements `relay.outbox.protocol.Outbox` in PostgreSQL, for any number of machines.

Every operation is one statement, or a short transaction, and needs no state in its session: no
prepared statement, no setting, no lock. So it works behind PgBouncer in transaction mode. No module
outside this folder knows psycopg.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString

from msgspec import structs
from psycopg import sql

from relay.errors import OutboxError
from relay.events import Unusable
from relay.outbox.counters import CounterRow
from relay.outbox.entries import Arrival, Clock, Counts, Entry, Role, State
from relay.outbox.postgres import counters, statements
from relay.outbox.postgres.connection import connection_parameters
from relay.outbox.postgres.entries import PostgresEntryStore
from relay.outbox.postgres.notifications import NotifyListener
from relay.outbox.postgres.rows import as_text, entry_from_row
from relay.outbox.postgres.schema import prepare
from relay.outbox.postgres.sessions import (
    LONG_SECONDS,
    SHORT_SECONDS,
    BrokenError,
    Sessions,
    translated,
)
from relay.outbox.postgres.throttles import change_throttle, read_status
from relay.outbox.protocol import T
from relay.throttle import DestinationStatus, Throttle

_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_BYTES_A_SECOND: Final = 2**20  # on a slow way to the server
_NOTIFY_SECONDS: Final = 0.1  # less than a forwarder lingers for company
_LINEAGE_BITS: Final = 20  # of a claim, below its lineage
_EXPOSED: Final = (
    "the connection to PostgreSQL is not encrypted: others on the network can read events and the"
    " password; put sslmode=verify-full into the outbox's URL, or sslmode=require"
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
    """An outbox in a PostgreSQL database: see `relay.outbox.protocol.Outbox`.

    What `add` stores is flushed to disk before it returns, whatever the server's default is. Claims
    and settlements are not. If a crash undoes a settlement, the entry is sent again under the same
    `messageId`.

    Args:
        url: URL of the database; the tables are in its schema `relay`.
        create: create the tables if there are none.
        clock: the time of day; by default the server's, which is the same for every process.
    """

    def __init__(self, url: str, *, create: bool = True, clock: Clock | None = None) -> None:
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self._freed: set[str] = set()  # the destinations at which lanes may have a new head
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
        first: dict[str, Arrival] = {}  # of several copies
        for arrival in arrivals:
            first.setdefault(arrival.message_id, arrival)
        # In one order everywhere, so that two groups with the same entries cannot deadlock. Those
        # in lanes come last, as they arrived: their groups wait for each other before they begin.
        ordered = sorted(
            first.values(),
            key=lambda arrival: (bool(arrival.lanes), "" if arrival.lanes else arrival.message_id),
        )
        faults = [arrival.fault for arrival in ordered]
        group = {
            "now": self._now(),
            "claim": secrets.randbits(62),
            "sources": [arrival.source for arrival in ordered],
            "destinations": [arrival.destination for arrival in ordered],
            "message_ids": [arrival.message_id for arrival in ordered],
            "received_at": [arrival.received_at for arrival in ordered],
            "reasons": [fault.reason.value if fault else None for fault in faults],
            "details": [as_text(fault.detail) if fault else None for fault in faults],
            "collections": [arrival.collection for arrival in ordered],
            "user_keys": [arrival.keys.user for arrival in ordered],
            "address_keys": [arrival.keys.address for arrival in ordered],
            "email_keys": [arrival.keys.email for arrival in ordered],
            "bodies": [arrival.body for arrival in ordered],
        } | _places(ordered)
        new: list[bool] = []
        added = {message_id for (message_id,) in self._insert(group)}
        for arrival in arrivals:
            new.append(arrival.message_id in added)
            added.discard(arrival.message_id)  # its copies in the same group are not new
        return new

    def _insert(self, group: dict[str, Any]) -> list[Any]:
        in_lanes = bool(group["lanes"])
        add = statements.ADD_IN_LANES if in_lanes else statements.ADD
        notify = self._is_time_to_notify(set(group["destinations"]))
        statement = add + statements.NOTIFY if notify else add
        seconds = SHORT_SECONDS + sum(map(len, group["bodies"])) // _BYTES_A_SECOND
        try:
            return self._run(statement, group, flushed=True, in_lanes=in_lanes, seconds=seconds)
        except OutboxError as error:
            if not isinstance(error.__cause__, BrokenError):
                raise
        # The connection broke, and the group may or may not be on disk. An entry with the group's
        # claim is new, whichever of the two tries has stored it.
        added = self._run(add, group, flushed=True, in_lanes=in_lanes, seconds=seconds)
        return added + self._run(statements.ADDED, group)

    def _is_time_to_notify(self, destinations: set[str]) -> bool:
        """Return whether to notify for these destinations: for any of them none was sent lately.

        Not every group notifies: committing a notification takes a lock of the whole database.
        """
        now = time.monotonic()
        if all(now <= self._quiet_until.get(each, 0) for each in destinations):
            return False
        self._quiet_until.update(dict.fromkeys(destinations, now + _NOTIFY_SECONDS))
        return True

    def changed(self, destination: str, *, ordered: bool = False) -> bool:
        """See `Outbox.changed`."""
        if destination in self._freed:
            self._freed.discard(destination)
            return True
        return self._listener.notified(destination) or (
            self._listener.due_to_look(destination) and self._any_due(destination, ordered=ordered)
        )

    def _any_due(self, destination: str, *, ordered: bool) -> bool:
        statement = statements.ANY_HEAD_DUE if ordered else statements.ANY_DUE
        return bool(self._run(statement, self._now_at(destination) | {"limit": 1}))

    def claim(
        self, destination: str, limit: int, *, lease: timedelta, ordered: bool = False
    ) -> list[Entry]:
        """See `Outbox.claim`."""
        statement = statements.CLAIM_ORDERED if ordered else statements.CLAIM
        return self._claim(statement, destination, limit, lease)

    def claim_suspect(self, destination: str, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim_suspect`."""
        # Flushed, unlike other claims: a crash of the server must not undo what counts crashes.
        return self._claim(statements.CLAIM_SUSPECT, destination, 1, lease, flushed=True)

    def begin_post(self, suspect: Entry, lineage: int) -> Entry:
        """See `Outbox.begin_post`. The new claim holds the lineage, for `count_crash`."""
        claim = (lineage << _LINEAGE_BITS) + suspect.attempts % (1 << _LINEAGE_BITS)
        held = {"id": suspect.id, "held": suspect.claim, "claim": claim}
        self._run(statements.BEGIN_POST, held, flushed=True)
        return structs.replace(suspect, claim=claim)

    def count_crash(self, lineage: int) -> None:
        """See `Outbox.count_crash`."""
        first = lineage << _LINEAGE_BITS
        lineages = {"first": first, "end": first + (1 << _LINEAGE_BITS)}
        self._run(statements.COUNT_CRASH, lineages, flushed=True)

    def has_suspects(self, destination: str) -> bool:
        """See `Outbox.has_suspects`."""
        return bool(self._run(statements.ANY_SUSPECT, self._now_at(destination)))

    def _claim(
        self,
        statement: sql.Composed,
        destination: str,
        limit: int,
        lease: timedelta,
        *,
        flushed: bool = False,
    ) -> list[Entry]:
        claim = {
            **self._now_at(destination),
            "lease": lease,
            "limit": limit,
            "bytes": _MOST_BYTES,
            "claim": secrets.randbits(62),
        }
        return [entry_from_row(row) for row in self._run(statement, claim, flushed=flushed)]

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        """See `Outbox.ack`."""
        event = None if note is None else ("posted", note)
        self._settle(entries, State.DELIVERED, event=event)

    def dead_letter(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.dead_letter`."""
        self._settle([entry], State.DEAD, fault, event=("dead", fault.reason))

    def release(self, entries: Sequence[Entry], answer: str | None = None) -> None:
        """See `Outbox.release`."""
        event = None if answer is None else ("posted", answer)
        self._settle(entries, State.PENDING, event=event)

    def _settle(
        self,
        entries: Sequence[Entry],
        state: State,
        fault: Unusable | None = None,
        *,
        event: tuple[str, str] | None = None,
    ) -> None:
        """Bring entries into the state; `event` is for their histories: what, and its detail."""
        settled = {
            "now": self._now(),
            "ids": [entry.id for entry in entries],
            "claims": [entry.claim for entry in entries],
            "state": state.value,
            "reason": fault.reason.value if fault else None,
            "detail": as_text(fault.detail) if fault else None,
        }
        ordered = {entry.destination for entry in entries if entry.ordered}
        in_lanes = bool(ordered) and state is not State.PENDING
        if event is None:
            self._run(statements.SETTLE, settled, in_lanes=in_lanes)
        else:
            what, detail = event
            history = {"what": what, "event_detail": detail}
            self._run(statements.SETTLE_WITH_HISTORY, settled | history, in_lanes=in_lanes)
        self._freed |= ordered

    def postpone(
        self, entry: Entry, *, retry_at: datetime, answer: str, failing_since: datetime
    ) -> None:
        """See `Outbox.postpone`."""
        postponed = {
            "now": self._now(),
            "id": entry.id,
            "claim": entry.claim,
            "retry_at": retry_at,
            "failing_since": failing_since,
            "answer": answer,
        }
        self._run(statements.POSTPONE, postponed)

    def advance(self, entry: Entry, step: int) -> None:
        """See `Outbox.advance`."""
        self._run(statements.ADVANCE, {"id": entry.id, "claim": entry.claim, "step": step})

    def throttle(self, destination: str, change: Callable[[Throttle, float], T]) -> T:
        """See `Outbox.throttle`."""
        return change_throttle(self._sessions, destination, self._now(), change)

    def destination_status(self, destination: str) -> DestinationStatus:
        """See `Outbox.destination_status`."""
        return read_status(self._sessions, destination, self._now())

    def counts(self) -> dict[str, Counts]:
        """See `Outbox.counts`."""
        return counters.counts(self._sessions)

    def counters(self) -> list[CounterRow]:
        """See `Outbox.counters`."""
        return counters.counters(self._sessions)

    def aggregate_counters(self, before: datetime) -> None:
        """See `Outbox.aggregate_counters`."""
        counters.aggregate(self._sessions, before)

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        # Old entries are in no cache: in the short time, a slow disk would never delete any.
        purged = self._run(
            statements.PURGE, {"before": before, "limit": limit}, seconds=LONG_SECONDS
        )
        return len(purged)

    def check(self) -> None:
        """See `Outbox.check`."""
        self._run("UPDATE relay.status SET beat = beat + 1", {}, flushed=True)

    def pending_exceed(self, limit: int) -> bool:
        """See `Outbox.pending_exceed`."""
        return bool(self._run(statements.PENDING_EXCEED, {"limit": limit}, seconds=LONG_SECONDS))

    def free_bytes(self) -> int | None:
        """See `Outbox.free_bytes`. A server does not say."""
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
        """See `Outbox.entries`."""
        return self._entries

    def close(self) -> None:
        """See `Outbox.close`."""
        self._listener.close()
        self._sessions.close()

    def _now(self) -> datetime | None:
        return self._clock() if self._clock else None

    def _now_at(self, destination: str) -> dict[str, Any]:
        return {"destination": destination, "now": self._now()}

    def _run(
        self,
        statement: LiteralString | sql.Composed,
        values: dict[str, Any],
        *,
        flushed: bool = False,
        in_lanes: bool = False,
        seconds: float = SHORT_SECONDS,
    ) -> list[Any]:
        return self._sessions.run(
            statement, values, flushed=flushed, in_lanes=in_lanes, seconds=seconds
        )


def _places(arrivals: Sequence[Arrival]) -> dict[str, list[Any]]:
    """Return the places in lanes of the arrivals, in their order: message ids, and lanes."""
    places = [
        (arrival.message_id, lane)
        for arrival in arrivals
        if not arrival.fault
        for lane in dict.fromkeys(arrival.lanes)
    ]
    return {"laned": [name for name, _ in places], "lanes": [lane for _, lane in places]}

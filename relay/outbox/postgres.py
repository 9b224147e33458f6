"""The outbox in PostgreSQL, for any number of machines. The only importer of psycopg.

Every operation is one statement, or a short transaction, and needs no state in its session: no
prepared statement, no setting, no lock. So it works behind PgBouncer in transaction mode, and where
a statement needs a setting of its own, it sets it for its own transaction.
"""

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg
import structlog
from msgspec import json
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from relay.errors import OutboxError
from relay.events import Unusable
from relay.outbox import Arrival, Clock, Counts, Entry, State, T
from relay.pacing import Pace

PATIENCE_SECONDS: Final = 20
"""How long a server that is not there yet is waited for at the start."""

# One script a version, each run in a transaction; a schema at version n has had the first n.
_MIGRATIONS: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE relay.entries (
        id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        provider     text NOT NULL,
        message_id   text NOT NULL UNIQUE,
        state        text NOT NULL CHECK (state IN ('pending', 'delivered', 'dead')),
        received_at  timestamptz NOT NULL,
        due_at       timestamptz,        -- of pending entries only; claimed: the end of the lease
        attempts     integer NOT NULL DEFAULT 0,
        claim        bigint NOT NULL,    -- who claimed it last; at first, the group it came in
        delivered_at timestamptz,
        reason       text,               -- this and detail of dead entries only
        detail       text,
        body         bytea NOT NULL      -- text would refuse NUL
    );
    CREATE INDEX entries_due ON relay.entries (due_at) WHERE state = 'pending';
    CREATE INDEX entries_dead ON relay.entries (reason, id) WHERE state = 'dead';
    CREATE INDEX entries_delivered ON relay.entries (delivered_at) WHERE state = 'delivered';
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
)
_MIGRATION_LOCK: Final = 0x52_4C_41_59  # "RLAY", among the database's advisory locks

_MOST_BYTES: Final = 4 * 2**20  # of bodies in a claim, which takes several times that in memory
_CONNECTIONS: Final = 6  # a claim, four posts to settle, and one for who asks
_CONNECT_SECONDS: Final = 3
_WAIT_SECONDS: Final = 1.5  # for a connection, while the server is away: senders wait meanwhile
_RING_SECONDS: Final = 0.1  # less than a forwarder lingers for company
_LOOK_SECONDS: Final = 0.15
# What waiting does not mend.
_HOPELESS: Final = re.compile(
    r"authentication failed|does not exist|pg_hba|certificate|support SSL"
)

_log = structlog.get_logger()


def open_url(url: str, *, allow_ephemeral: bool) -> "PostgresOutbox":  # noqa: ARG001 (as every store)
    """Open `postgresql://…` or `postgres://…`, as libpq reads them."""
    return PostgresOutbox(url)


class PostgresOutbox:
    """See `relay.outbox.Outbox`.

    What `add` stores is flushed to disk before it returns, whatever the server's default is. What
    claims and settles is not waited for: lost in a crash, it is done again, under the same
    `messageId`.

    Args:
        url: of the database; the tables are in its schema `relay`.
        clock: by default the server's, which is the same for every process.
    """

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._clock = clock
        self._rung_at = float("-inf")
        with _translated():
            parameters = _parameters(url)
            _prepare(parameters)
            self._pool = ConnectionPool(
                kwargs=parameters,
                configure=_ignore_notifications,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_WAIT_SECONDS,
                # An attempt that fails is given up, and whoever asks next begins another one:
                # otherwise the pool would wait for up to minutes while the server is back.
                reconnect_timeout=1,
                num_workers=1,
                open=True,
            )
        self._bell = _Bell(parameters)

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
            "providers": [arrival.provider for arrival in ordered],
            "message_ids": [arrival.message_id for arrival in ordered],
            "received_at": [arrival.received_at for arrival in ordered],
            "reasons": [fault.reason.value if fault else None for fault in faults],
            "details": [_text(fault.detail) if fault else None for fault in faults],
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
        try:
            return self._run(statement, group)
        except OutboxError as error:
            if not isinstance(error.__cause__, _BrokenError):
                raise
        # The connection broke, and the group may or may not be on disk: what is there and has its
        # number is new, and it is there once.
        with _translated():
            self._pool.drain()  # the others have most likely broken too
        return self._run(_ADD, group) + self._run(_ADDED, group)

    def changed(self) -> bool:
        """See `Outbox.changed`."""
        return self._bell.rung() or (self._bell.due_to_look() and self._anything_due())

    def _anything_due(self) -> bool:
        return bool(self._run(_ANYTHING_DUE, {"now": self._now()}))

    def claim(self, limit: int, *, lease: timedelta) -> list[Entry]:
        """See `Outbox.claim`."""
        claim = secrets.randbits(62)
        due = {
            "now": self._now(),
            "lease": lease,
            "limit": limit,
            "bytes": _MOST_BYTES,
            "claim": claim,
        }
        return [
            Entry(id_, provider, message_id, received_at.astimezone(UTC), attempts, claim, body)
            for id_, provider, message_id, received_at, attempts, body in self._run(_CLAIM, due)
        ]

    def deliver(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.deliver`."""
        self._settle(entries, State.DELIVERED)

    def bury(self, entry: Entry, fault: Unusable) -> None:
        """See `Outbox.bury`."""
        self._settle([entry], State.DEAD, fault)

    def release(self, entries: Sequence[Entry]) -> None:
        """See `Outbox.release`."""
        self._settle(entries, State.PENDING)

    def _settle(
        self, entries: Sequence[Entry], state: State, fault: Unusable | None = None
    ) -> None:
        settled = {
            "now": self._now(),
            "ids": [entry.id for entry in entries],
            "claims": [entry.claim for entry in entries],
            "state": state.value,
            "reason": fault.reason.value if fault else None,
            "detail": _text(fault.detail) if fault else None,
        }
        self._run(_SETTLE, settled)

    def pace(self, change: Callable[[Pace, float], T]) -> T:
        """See `Outbox.pace`."""
        with _translated(), self._connection() as connection, connection.transaction():
            row: Any = connection.execute(_PACE, {"now": self._now()}, binary=True).fetchone()
            pace = json.decode(row[0], type=Pace)
            result = change(pace, row[1])
            changed = json.encode(pace)
            if changed != row[0]:
                connection.execute("UPDATE relay.pace SET pace = %b", (changed,))
        return result

    def hold(self) -> str | None:
        """See `Outbox.hold`."""
        ((pace,),) = self._run("SELECT pace FROM relay.pace", {})
        return json.decode(pace, type=Pace).hold

    def counts(self) -> Counts:
        """See `Outbox.counts`."""
        counted = {state: (count, oldest) for state, count, oldest in self._run(_COUNT, {})}
        nothing = (0, None)
        pending, oldest = counted.get(State.PENDING, nothing)
        return Counts(
            pending=pending,
            delivered=counted.get(State.DELIVERED, nothing)[0],
            dead=counted.get(State.DEAD, nothing)[0],
            oldest_pending_at=oldest.astimezone(UTC) if oldest else None,
        )

    def purge(self, before: datetime, limit: int) -> int:
        """See `Outbox.purge`."""
        return len(self._run(_PURGE, {"before": before, "limit": limit}))

    def check(self) -> None:
        """See `Outbox.check`."""
        self._run("UPDATE relay.status SET beat = beat + 1", {})

    def close(self) -> None:
        """See `Outbox.close`."""
        self._bell.close()
        self._pool.close()

    def _now(self) -> datetime | None:
        return self._clock() if self._clock else None

    def _run(self, statement: LiteralString, parameters: dict[str, Any]) -> list[Any]:
        """Run one statement, which is a transaction by itself; the rows it returns."""
        with _translated(), self._connection() as connection:
            cursor = connection.execute(statement, parameters, binary=True)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection of the pool; one that has broken, or cannot write, does not go back."""
        with self._pool.connection() as connection:
            try:
                yield connection
            except errors.ReadOnlySqlTransaction:
                # A server that was demoted keeps its connections; a new one finds the new primary.
                connection.close()
                raise
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not connection.broken and not connection.closed:
                    raise
                connection.close()
                raise _BrokenError(*error.args) from error


class _BrokenError(psycopg.OperationalError):
    """The connection broke; whether the statement has been carried out is not known."""


class _Bell:
    """Hears from the server when any process has added something."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._connection: psycopg.Connection[Any] | None = None
        self._try_at = float("-inf")
        self._look_at = float("-inf")
        self._heard = False
        self._lock = threading.Lock()

    def rung(self) -> bool:
        """Whether it has, since this was last asked."""
        with self._lock:
            try:
                if self._connection is None:
                    return self._listen()
                rung = any(True for _ in self._connection.notifies(timeout=0))
            except psycopg.Error:
                self._hang_up()
                return False
        self._heard |= rung
        return rung

    def due_to_look(self) -> bool:
        """Whether to look for oneself now: while the bell is silent, which PgBouncer makes it."""
        if self._heard or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _LOOK_SECONDS
        return True

    def close(self) -> None:
        """Listen no longer."""
        with self._lock:
            self._hang_up()

    def _listen(self) -> bool:
        if time.monotonic() < self._try_at:
            return False
        self._try_at = time.monotonic() + 1
        self._connection = psycopg.connect(**self._parameters)
        self._connection.execute("LISTEN relay")
        return True  # something may have been added before

    def _hang_up(self) -> None:
        self._heard = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _ignore_notifications(connection: psycopg.Connection[Any]) -> None:
    # Behind PgBouncer the bell's LISTEN stays on sessions that others share.
    connection.add_notify_handler(lambda _: None)


def _parameters(url: str) -> dict[str, Any]:
    """How to connect: as the URL says, and without waiting for ever."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # its text may hold the URL, and with it the password
        raise OutboxError("PostgreSQL: its URL cannot be read") from None
    defaults = {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "application_name": "relay",
    }
    # The server's own encoding may know fewer characters than the events hold.
    fixed = {"autocommit": True, "prepare_threshold": None, "client_encoding": "utf8"}
    return defaults | given | fixed


def _prepare(parameters: dict[str, Any]) -> None:
    """Bring the schema up to date, once the server is there.

    Raises:
        OutboxError: it is not there in time, does not let us in, or is not durable.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with psycopg.connect(**parameters) as connection:
                _check_durability(connection)
                _migrate(connection)
                return
        except psycopg.OperationalError as error:
            if _HOPELESS.search(str(error)) or time.monotonic() > give_up_at:
                raise
            _log.warning("outbox.awaited", error=_line(error))
            time.sleep(1)


def _check_durability(connection: psycopg.Connection[Any]) -> None:
    row: Any = connection.execute("SHOW fsync").fetchone()
    if row[0] != "on":
        raise OutboxError("PostgreSQL runs with fsync=off: what it commits may be lost")


def _migrate(connection: psycopg.Connection[Any]) -> None:
    if _version(connection) == len(_MIGRATIONS):
        return
    with connection.transaction():
        # Until the transaction ends: processes that start together do it one after the other.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '60s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        connection.execute("CREATE SCHEMA IF NOT EXISTS relay")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS relay.migrations (version integer PRIMARY KEY,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        version = _version(connection)
        if version > len(_MIGRATIONS):
            raise OutboxError("the schema relay was written by a newer relay")
        for number, migration in enumerate(_MIGRATIONS[version:], version + 1):
            connection.execute(migration)
            connection.execute("INSERT INTO relay.migrations VALUES (%s)", (number,))


def _version(connection: psycopg.Connection[Any]) -> int:
    row: Any = connection.execute("SELECT to_regclass('relay.migrations') IS NULL").fetchone()
    if row[0]:
        return 0
    row = connection.execute("SELECT coalesce(max(version), 0) FROM relay.migrations").fetchone()
    version: int = row[0]
    return version


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise OutboxError("PostgreSQL cannot be reached") from error
    except psycopg.Error as error:
        raise OutboxError(f"PostgreSQL: {_line(error)}") from error


def _line(error: psycopg.Error) -> str:
    """What it says, without the details, which may hold values."""
    said = error.diag.message_primary or str(error)
    return said.partition("\n")[0]


def _text(value: str) -> str:
    """The text as PostgreSQL can hold it."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


_ADD: Final = """
    WITH added AS (
        INSERT INTO relay.entries
            (provider, message_id, state, received_at, due_at, claim, reason, detail, body)
        SELECT
            provider, message_id, CASE WHEN reason IS NULL THEN 'pending' ELSE 'dead' END,
            received_at,
            CASE WHEN reason IS NULL THEN
                least(received_at, coalesce(%(now)s::timestamptz, now()))
            END,
            %(claim)s::bigint, reason, detail, body
        FROM unnest(
            %(providers)s::text[], %(message_ids)s::text[], %(received_at)s::timestamptz[],
            %(reasons)s::text[], %(details)s::text[], %(bodies)b::bytea[]
        ) AS arrival (provider, message_id, received_at, reason, detail, body)
        -- A default of "off" would make the answer come before the disk.
        WHERE (
            SELECT set_config(
                'synchronous_commit',
                replace(current_setting('synchronous_commit'), 'off', 'on'),
                true
            )
        ) <> ''
        ON CONFLICT (message_id) DO NOTHING
        RETURNING message_id
    )
    SELECT message_id FROM added
"""

_ADD_AND_RING: Final = _ADD + ", (SELECT pg_notify('relay', '')) AS bell"

_ADDED: Final = """
    SELECT message_id FROM relay.entries
    WHERE message_id = ANY (%(message_ids)s) AND claim = %(claim)s
"""

_ANYTHING_DUE: Final = """
    SELECT 1 FROM relay.entries
    WHERE state = 'pending' AND due_at <= coalesce(%(now)s::timestamptz, now()) LIMIT 1
"""

_CLAIM: Final = """
    WITH due AS MATERIALIZED (
        SELECT id, due_at, octet_length(body) AS size FROM relay.entries
        WHERE state = 'pending' AND due_at <= coalesce(%(now)s::timestamptz, now())
            AND (SELECT set_config('synchronous_commit', 'off', true)) <> ''
        ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ), summed AS (
        SELECT id, size, sum(size) OVER (ORDER BY due_at, id) AS total FROM due
    )
    UPDATE relay.entries AS entry
    SET due_at = coalesce(%(now)s::timestamptz, now()) + %(lease)s,
        attempts = attempts + 1, claim = %(claim)s
    FROM summed WHERE entry.id = summed.id AND total - summed.size < %(bytes)s
    RETURNING entry.id, provider, message_id, received_at, attempts, body
"""

_SETTLE: Final = """
    UPDATE relay.entries AS entry
    SET state = %(state)s, reason = %(reason)s, detail = %(detail)s,
        due_at = CASE WHEN %(state)s = 'pending' THEN coalesce(%(now)s::timestamptz, now()) END,
        delivered_at =
            CASE WHEN %(state)s = 'delivered' THEN coalesce(%(now)s::timestamptz, now()) END
    FROM unnest(%(ids)s::bigint[], %(claims)s::bigint[]) AS held (id, claim)
    WHERE entry.id = held.id AND entry.claim = held.claim AND entry.state = 'pending'
        AND (SELECT set_config('synchronous_commit', 'off', true)) <> ''
"""

_PACE: Final = """
    SELECT pace, extract(epoch FROM coalesce(%(now)s::timestamptz, clock_timestamp()))::float8
    FROM relay.pace, (
        SELECT
            set_config('synchronous_commit', 'off', true),
            -- A process stopped while it has the pace must not stop the others.
            set_config('idle_in_transaction_session_timeout', '5s', true)
    ) AS settings
    FOR UPDATE OF pace
"""

_COUNT: Final = "SELECT state, count(*), min(received_at) FROM relay.entries GROUP BY state"

_PURGE: Final = """
    DELETE FROM relay.entries WHERE id IN (
        SELECT id FROM relay.entries WHERE state = 'delivered' AND delivered_at < %(before)s
        ORDER BY delivered_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) RETURNING id
"""

"""Keeps the throttles of a PostgreSQL outbox, a row for each destination."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import json
from psycopg import sql

from relay.outbox.postgres.sessions import Sessions
from relay.outbox.protocol import T
from relay.throttle import DestinationStatus, Throttle


def change_throttle(
    sessions: Sessions,
    destination: str,
    now: datetime | None,
    change: Callable[[Throttle, float], T],
) -> T:
    """Call `change` with the destination's throttle and return its result; see `Outbox.throttle`.

    Processes that need the same throttle wait for its row meanwhile.

    Args:
        sessions: sessions with the server.
        destination: name of the destination; its row is created if there is none.
        now: the time; None for the server's.
        change: may alter the throttle; the second argument is the time in seconds.
    """
    values = {"destination": destination, "now": now}
    with sessions.transaction() as session:
        row: Any = session.execute(_LOCK, values, binary=True).fetchone()
        if row is None:
            session.execute(_MAKE, values | {"state": json.encode(Throttle())})
            row = session.execute(_LOCK, values, binary=True).fetchone()
        state, seconds = row
        throttle = json.decode(state, type=Throttle)
        result = change(throttle, seconds)
        changed = json.encode(throttle)
        if changed != state:
            session.execute(_WRITE, values | {"state": changed})
    return result


def read_status(sessions: Sessions, destination: str, now: datetime | None) -> DestinationStatus:
    """Return the status of the destination, without waiting for a change under way."""
    rows = sessions.run(_READ, {"destination": destination, "now": now})
    if not rows:
        return DestinationStatus()
    ((state, seconds),) = rows
    return json.decode(state, type=Throttle).status(seconds, datetime.fromtimestamp(seconds, UTC))


_SECONDS: Final = sql.SQL(
    "extract(epoch FROM coalesce(%(now)s::timestamptz, clock_timestamp()))::float8"
)

# A process that is suspended while it has the row must not block others, which wait 4 s for it.
_SETTINGS: Final = sql.SQL(
    "(SELECT set_config('idle_in_transaction_session_timeout', '3s', true)) AS settings"
)

_READ: Final = sql.SQL("""
    SELECT state, {seconds} FROM relay.throttles WHERE destination = %(destination)s
""").format(seconds=_SECONDS)

_LOCK: Final = sql.SQL("""
    SELECT state, {seconds} FROM relay.throttles, {settings}
    WHERE destination = %(destination)s FOR UPDATE OF throttles
""").format(seconds=_SECONDS, settings=_SETTINGS)

# If another process inserts the row at the same time, this waits until that one has committed.
_MAKE: Final = sql.SQL("""
    INSERT INTO relay.throttles SELECT %(destination)s, %(state)b FROM {settings}
    ON CONFLICT (destination) DO NOTHING
""").format(settings=_SETTINGS)

_WRITE: Final = """
    UPDATE relay.throttles SET state = %(state)b WHERE destination = %(destination)s
"""

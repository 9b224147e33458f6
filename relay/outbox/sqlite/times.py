"""Times as a SQLite outbox holds them: in milliseconds since 1970."""

from datetime import UTC, datetime
from typing import Final

from relay.errors import OutboxError

MILLISECONDS: Final = range(253_402_300_800_000)
"""What a file may hold: up to the year 9999."""


def to_milliseconds(time: datetime) -> int:
    """Return the time as the file holds it."""
    return int(time.timestamp() * 1000)


def from_milliseconds(milliseconds: int) -> datetime:
    """Return the time that the file holds, aware UTC.

    Raises:
        OutboxError: there is no such time, or relay could not have seen it.
    """
    if milliseconds not in MILLISECONDS:
        raise OutboxError(f"a time that cannot be: {milliseconds} ms after 1970")
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

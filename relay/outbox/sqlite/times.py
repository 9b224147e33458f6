"""Converts times to and from the milliseconds since 1970 that a SQLite outbox holds."""

from datetime import UTC, datetime
from typing import Final

from relay.errors import OutboxError

MILLISECONDS: Final = range(253_402_300_800_000)
"""The times that a file may hold: up to the year 9999."""


def to_milliseconds(time: datetime) -> int:
    """Return the time as the file holds it."""
    return int(time.timestamp() * 1000)


def from_milliseconds(milliseconds: int) -> datetime:
    """Return the time that the file holds, aware UTC.

    Raises:
        OutboxError: the number is no time between 1970 and 9999.
    """
    if milliseconds not in MILLISECONDS:
        raise OutboxError(f"an impossible time: {milliseconds} ms after 1970")
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

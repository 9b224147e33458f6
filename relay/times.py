"""Writes times as text."""

from datetime import datetime


def isoformat(time: datetime) -> str:
    """Return an aware UTC time to the millisecond, like `2026-03-01T12:00:00.000Z`."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The log: one line for each event, written by a thread of its own."""

from relay.logs.configuration import configure, drain

__all__ = ["configure", "drain"]

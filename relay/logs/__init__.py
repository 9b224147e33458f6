"""The log: one line for each event, written in the background."""

from relay.logs.configuration import configure, drain

__all__ = ["configure", "drain"]

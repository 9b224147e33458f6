"""Finds out whether an earlier attempt at an entry may have arrived although no answer came."""

from datetime import datetime
from typing import Final

from relay.errors import UnavailableError
from relay.outbox.entries import Entry, Query
from relay.outbox.protocol import EntryStore

_MAY_HAVE_ARRIVED: Final = "; it may have arrived"
_ANSWERED: Final = frozenset({"posted", "dead", "delivered"})


def answer_of(error: UnavailableError) -> str:
    """Return what an entry's history says of a failed attempt."""
    return f"{error}{_MAY_HAVE_ARRIVED}" if error.may_have_arrived else str(error)


def may_have_arrived_at(entries: EntryStore, entry: Entry) -> datetime | None:
    """Return when an earlier attempt was made that may have arrived; None if there was none.

    An attempt that left nothing in the history ended with its process, before the answer came.
    """
    if entry.attempts <= 1:
        return None
    for stored in entries.find(Query(ids=(entry.id,)), 1, with_history=True):
        answered = [event for event in stored.history if event.what in _ANSWERED]
        doubtful = [event.at for event in answered if event.detail.endswith(_MAY_HAVE_ARRIVED)]
        if doubtful:
            return doubtful[-1]
        if len(answered) < entry.attempts - 1:
            return answered[-1].at if answered else stored.received_at
    return None

"""What entries did, counted by the outbox as it happens.

Reading the counters of ten million entries takes as long as those of ten.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct

from relay.outbox.entries import State

SLOT: Final = timedelta(minutes=5)
"""The changes within one slot are counted together."""

APART: Final = timedelta(hours=25)
"""How long slots are kept apart. Older ones are added up."""


class Change(StrEnum):
    """What may happen to an entry."""

    RECEIVED = "received"
    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    REQUEUED = "requeued"
    """Pending again. It has left the state that it was in, which is counted, too."""
    LEFT_PENDING = "left_pending"
    LEFT_DELIVERED = "left_delivered"
    LEFT_DEAD = "left_dead"
    """This and the other two: requeued, erased or purged."""


class CounterRow(Struct, frozen=True):
    """The number of entries of one kind that made the same change in one slot.

    Attributes:
        since: the beginning of the slot; None for all slots before those kept apart.
        collection: None if the entries could not be read when they came.
        reason: of dead letters, and of entries that were dead letters.
        latest: the time of the last change.
    """

    since: datetime | None
    source: str
    destination: str
    collection: str | None
    change: Change
    reason: str | None
    entries: int
    latest: datetime


class Kind(Struct, frozen=True):
    """The properties by which entries are counted."""

    source: str
    destination: str
    collection: str | None
    state: State
    reason: str | None


_EFFECTS: Final[Mapping[Change, Mapping[State, int]]] = {
    Change.RECEIVED: {State.PENDING: 1},
    Change.REQUEUED: {State.PENDING: 1},
    Change.DELIVERED: {State.PENDING: -1, State.DELIVERED: 1},
    Change.DEAD_LETTERED: {State.PENDING: -1, State.DEAD: 1},
    Change.LEFT_PENDING: {State.PENDING: -1},
    Change.LEFT_DELIVERED: {State.DELIVERED: -1},
    Change.LEFT_DEAD: {State.DEAD: -1},
}


def in_states(changes: Mapping[Change, int]) -> dict[State, int]:
    """Return how many entries are in each state after so many changes."""
    counted = dict.fromkeys(State, 0)
    for change, entries in changes.items():
        for state, effect in _EFFECTS[change].items():
            counted[state] += effect * entries
    return counted


def population(counters: Iterable[CounterRow]) -> dict[Kind, int]:
    """Return how many entries there are of each kind."""
    counted: Counter[Kind] = Counter()
    for row in counters:
        for state, effect in _EFFECTS[row.change].items():
            reason = row.reason if state is State.DEAD else None
            counted[Kind(row.source, row.destination, row.collection, state, reason)] += (
                effect * row.entries
            )
    return {kind: entries for kind, entries in counted.items() if entries}


def forgotten(counters: Iterable[CounterRow]) -> int:
    """Return how many entries have been erased or purged."""
    changes = Counter[Change]()
    for row in counters:
        changes[row.change] += row.entries
    left = changes[Change.LEFT_PENDING] + changes[Change.LEFT_DELIVERED] + changes[Change.LEFT_DEAD]
    return left - changes[Change.REQUEUED]

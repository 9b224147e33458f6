"""Counters of what happened to entries; the outbox updates them with every change.

The time to read them does not grow with the number of entries.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct

from relay.outbox.entries import State

SLOT: Final = timedelta(minutes=5)
"""Length of a slot of time; changes within one slot are counted together."""

APART: Final = timedelta(hours=25)
"""How long each slot keeps its own counters. Those of older slots are added up."""


class Change(StrEnum):
    """A change of an entry that is counted."""

    RECEIVED = "received"
    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    REQUEUED = "requeued"
    """It is pending again. That it left its former state is counted, too."""
    LEFT_PENDING = "left_pending"
    LEFT_DELIVERED = "left_delivered"
    LEFT_DEAD = "left_dead"
    """It left this state, or one of the two above: it was requeued, erased or purged."""


class CounterRow(Struct, frozen=True):
    """The number of entries of one kind that made the same change in one slot.

    Attributes:
        since: the beginning of the slot; None for all older slots, which are added up.
        collection: None if the entries could not be parsed when they were received.
        reason: the reason of dead letters, and of entries that were dead letters.
        latest: the time of the latest change.
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

"""What entries did, counted by the outbox as it happens: ten million count as quickly as ten."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from msgspec import Struct

from relay.outbox.entries import State

SLOT: Final = timedelta(minutes=5)
"""What happened in one of these is counted together."""

APART: Final = timedelta(hours=25)
"""How long slots are kept apart; what is older is counted as a whole."""


class Change(StrEnum):
    """What may become of an entry."""

    RECEIVED = "received"
    DELIVERED = "delivered"
    DEAD_LETTERED = "dead_lettered"
    REQUEUED = "requeued"
    """Replayed: pending again. What it was before, it has left."""
    LEFT_PENDING = "left_pending"
    LEFT_DELIVERED = "left_delivered"
    LEFT_DEAD = "left_dead"
    """This and the other two: replayed, or forgotten."""


class CounterRow(Struct, frozen=True):
    """How many entries did the same.

    Attributes:
        since: the beginning of the slot they did it in; None for all before those kept apart.
        collection: None for what could not be read when it came.
        reason: of what died, or has left the dead.
        latest: when the last of them did.
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
    """What entries may have in common."""

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
    """How many entries are in each state, after so many changes."""
    counted = dict.fromkeys(State, 0)
    for change, entries in changes.items():
        for state, effect in _EFFECTS[change].items():
            counted[state] += effect * entries
    return counted


def population(counters: Iterable[CounterRow]) -> dict[Kind, int]:
    """How many entries there are of each kind."""
    counted: Counter[Kind] = Counter()
    for row in counters:
        for state, effect in _EFFECTS[row.change].items():
            reason = row.reason if state is State.DEAD else None
            counted[Kind(row.source, row.destination, row.collection, state, reason)] += (
                effect * row.entries
            )
    return {kind: entries for kind, entries in counted.items() if entries}


def forgotten(counters: Iterable[CounterRow]) -> int:
    """How many entries have been erased, or were delivered long ago."""
    changes = Counter[Change]()
    for row in counters:
        changes[row.change] += row.entries
    left = changes[Change.LEFT_PENDING] + changes[Change.LEFT_DELIVERED] + changes[Change.LEFT_DEAD]
    return left - changes[Change.REQUEUED]

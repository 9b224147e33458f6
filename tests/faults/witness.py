"""Who works with an outbox on a simulated disk, and knows what must be there after a power cut."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random

import apsw

from relay.errors import OutboxError
from relay.outbox.entries import Arrival, Entry, State
from relay.outbox.sqlite.store import SqliteOutbox
from tests.contracts.lanes import UNSOUND, VERO, call, drain
from tests.contracts.outbox import FAULT, MINUTE, arrival, states
from tests.faults.disk import Disk
from tests.harness.fakes import Clock
from tests.harness.stores import run_sql, stored


class Witness:
    """Works with an outbox, as a receiver and a forwarder do, and remembers what came of it when.

    When is how far the disk's notes had come.

    Attributes:
        stored_at: when the outbox reported an arrival as stored, by its `messageId`.
        receiving: the receiver's outbox, while it is open.
        forwarding: the forwarder's.
    """

    def __init__(
        self, disk: Disk, path: Path, rng: Random, receiver: type[SqliteOutbox] = SqliteOutbox
    ) -> None:
        self.stored_at: dict[str, int] = {}
        self._disk, self._path, self._rng, self._receiver = disk, path, rng, receiver
        self._clock = Clock()
        self._asked: dict[str, tuple[int, Arrival]] = {}
        self._fates: defaultdict[str, list[tuple[int, State]]] = defaultdict(list)
        self._forgotten: dict[str, int] = {}
        self._held: list[Entry] = []

    def open(self) -> None:
        self.receiving = self._receiver(self._path, clock=self._clock.now)
        self.forwarding = SqliteOutbox(self._path, clock=self._clock.now)

    def close(self) -> None:
        self.forwarding.close()
        self.receiving.close()

    def steps(self, groups: int) -> Iterator[Callable[[], object]]:
        """Things to do; each can be done again when it has failed."""
        for _ in range(groups):
            first, size = len(self._asked), self._rng.choice([1, 3, 40])
            yield partial(self.add, [self._arrival(first + place) for place in range(size)])
            if self._rng.random() < 0.7:
                destination = self._rng.choice(["segment", "segment", VERO])
                yield partial(self.claim, self._rng.choice([1, 100]), destination)
                yield from (partial(self.settle, outcome) for outcome in State)
            if self._rng.random() < 0.1:
                yield self._purge
            yield self.receiving.check

    def _arrival(self, number: int) -> Arrival:
        body = self._rng.randbytes(self._rng.choice([0, 300, 20_000]))
        fault = FAULT if number % 10 == 0 else None
        if number % 5 != 1:
            return arrival(str(number), body=body, fault=fault)
        lanes = self._rng.choices(range(40), k=self._rng.choice([1, 1, 2]))
        return call(str(number), *lanes, body=body, fault=fault)

    def add(self, group: Sequence[Arrival]) -> None:
        for each in group:
            self._asked.setdefault(each.message_id, (self._disk.now, each))
        self.receiving.add(group)
        self.stored_at |= {each.message_id: self._disk.now for each in group}

    def claim(self, limit: int, destination: str = "segment") -> None:
        ordered = destination == VERO
        self._held = self.forwarding.claim(destination, limit, lease=MINUTE, ordered=ordered)

    def settle(self, outcome: State) -> None:
        share = {State.PENDING: slice(1), State.DEAD: slice(1, 2), State.DELIVERED: slice(2, None)}
        entries = self._held[share[outcome]]
        for entry in entries:
            self._fates[entry.message_id].append((self._disk.now, outcome))
        match outcome:
            case State.DELIVERED:
                self.forwarding.ack(entries)
            case State.PENDING:
                self.forwarding.release(entries)
            case State.DEAD:
                for entry in entries:
                    self.forwarding.dead_letter(entry, FAULT)

    def _purge(self) -> None:
        for name, fates in self._fates.items():
            if any(state is State.DELIVERED for _, state in fates):
                self._forgotten.setdefault(name, self._disk.now)
        self.receiving.purge(self._clock.now() + MINUTE, 1_000)

    def broken_promises(self, path: Path, cut_at: int) -> list[str]:
        """Everything in which an outbox differs from what had been told when the power was cut."""
        try:
            with closing(SqliteOutbox(path)) as outbox:
                return [*self._differences(path, cut_at), *self.problems(outbox, cut_at)]
        except (OutboxError, apsw.Error) as error:
            return [f"it cannot be read: {error}"]

    def _kept(self, cut_at: int) -> set[str]:
        """What must be there."""
        gone = {name for name, forgotten_at in self._forgotten.items() if forgotten_at <= cut_at}
        return {name for name, stored_at in self.stored_at.items() if stored_at <= cut_at} - gone

    def _differences(self, path: Path, cut_at: int) -> Iterator[str]:
        if (found := run_sql(path, "PRAGMA integrity_check")) != [("ok",)]:
            yield f"it is corrupt: {found}"
        if found := run_sql(path, UNSOUND):
            yield f"its lanes are not as its entries: {found}"
        entries = {entry.message_id: entry for entry in stored(path)}
        yield from (f"lost: {name}" for name in self._kept(cut_at) - entries.keys())
        for name, entry in entries.items():
            asked_at, asked = self._asked[name]
            fates = {state for settled_at, state in self._fates[name] if settled_at < cut_at}
            if asked_at > cut_at or entry.body != asked.body:
                yield f"not what was added: {name}"
            if entry.state not in fates | {State.DEAD if asked.fault else State.PENDING}:
                yield f"settled by nobody: {name} is {entry.state}"

    def problems(self, outbox: SqliteOutbox, cut_at: int) -> Iterator[str]:
        """Why the outbox does not go on as if nothing had been."""
        if any(outbox.add([self._asked[name][1] for name in self._kept(cut_at)])):
            yield "what was there is new again"
        while claimed := outbox.claim("segment", 1_000, lease=MINUTE):
            outbox.ack(claimed)
        for lane, names in self._ended(outbox).items():
            if names != sorted(names, key=int):
                yield f"lane {lane} is out of order: {names}"
        if left := states(outbox)["pending"]:
            yield f"never due again: {left}"

    def _ended(self, outbox: SqliteOutbox) -> dict[int, list[str]]:
        """Deliver all that is in lanes; return the names by their lanes, in the order of claims."""
        ended: defaultdict[int, list[str]] = defaultdict(list)
        for name in chain.from_iterable(drain(outbox)):
            for lane in self._asked[name][1].lanes:
                ended[lane].append(name)
        return ended

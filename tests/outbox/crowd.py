"""Several programs that work on the lanes of one PostgreSQL outbox at the same moment."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

from relay.outbox.entries import Arrival, Entry, Query, State
from relay.outbox.postgres.store import PostgresOutbox
from tests.contracts.lanes import UNSOUND, call, names, requeue
from tests.contracts.outbox import MINUTE, arrival, settle
from tests.harness.entries import erase
from tests.harness.postgres import query

ADDERS, FORWARDERS, GROUPS, LANES = "xyz", 4, 40, 6


class Crowd:
    """Several adders, forwarders and an operator, and what is wrong with what they see.

    Attributes:
        lanes: of each entry, by its name. Names of one adder are in the order of its entries.
        faults: the entries that were leased together with another one of their lanes.
        ended: the names of the entries that ended, in their order.
        disturbed: the names of those that the operator erased or requeued.
        over: set once nothing more is added.
    """

    def __init__(self, url: str, seed: int, pending: Callable[[], bool]) -> None:
        self.lanes: dict[str, frozenset[int]] = {}
        self.faults: list[str] = []
        self.ended: list[str] = []
        self.disturbed: set[str] = set()
        self.over = threading.Event()
        self._url, self._seed, self._pending = url, seed, pending
        self._leased: dict[int, str] = {}
        self._lock = threading.Lock()
        self._give_up_at = time.monotonic() + 60  # an entry that is blocked for ever is left

    def add(self, adder: str) -> None:
        random = Random(f"{self._seed}{adder}")  # noqa: S311 (no secret)
        numbers = count()
        groups: list[list[Arrival]] = []
        with closing(PostgresOutbox(self._url)) as outbox:
            for _ in range(GROUPS):
                group = [
                    call(f"{adder}{next(numbers):04}", *random.choices(range(LANES), k=lanes))
                    for lanes in random.choices([1, 1, 1, 2], k=random.choice([1, 1, 2, 5]))
                ]
                self.lanes |= {each.message_id: frozenset(each.lanes) for each in group}
                outbox.add([*group, arrival(f"{adder}-{next(numbers)}")])
                groups.append(group)
                if random.random() < 0.2:
                    outbox.add(random.choice(groups))

    def forward(self, number: int) -> None:
        random = Random(self._seed + number)  # noqa: S311 (no secret)
        with closing(PostgresOutbox(self._url)) as outbox:
            while not self.over.is_set() or self._pending():
                if time.monotonic() > self._give_up_at:
                    return
                entries = outbox.claim("vero", random.choice([1, 3, 9]), lease=MINUTE, ordered=True)
                self._claimed(entries)
                for entry in random.sample(entries, len(entries)):
                    outcome = random.choice([*[State.DELIVERED] * 4, State.DEAD, State.PENDING])
                    self._settles(entry.message_id, outcome)
                    if outcome is State.PENDING and random.random() < 0.5:
                        now = datetime.now(UTC)
                        soon = now + timedelta(milliseconds=50)
                        outbox.postpone(entry, retry_at=soon, answer="500", failing_since=now)
                    else:
                        settle(outbox, entry, outcome)

    def operate(self) -> None:
        random = Random(self._seed)  # noqa: S311 (no secret)
        with closing(PostgresOutbox(self._url)) as outbox:
            while not self.over.wait(0.05):
                found = outbox.entries.find(Query(destination="vero"), 20)
                chosen = random.sample(found, min(2, len(found)))
                with self._lock:
                    self.disturbed |= {entry.message_id for entry in chosen}
                    self._leased = {
                        lane: name
                        for lane, name in self._leased.items()
                        if name not in self.disturbed
                    }
                for entry in chosen:
                    if entry.state is State.DEAD:
                        requeue(outbox, (entry.message_id, (*self.lanes[entry.message_id],)))
                    else:
                        erase(outbox.entries, entry)

    def _claimed(self, entries: list[Entry]) -> None:
        with self._lock:
            for name in {*names(entries)} - self.disturbed:
                for lane in self.lanes[name]:
                    if other := self._leased.get(lane):
                        self.faults.append(f"{name} is leased with {other}")
                    self._leased[lane] = name

    def _settles(self, name: str, outcome: State) -> None:
        """Note, before it is written, that an entry is leased no longer."""
        with self._lock:
            if name in self.disturbed:
                return
            for lane in self.lanes[name]:
                del self._leased[lane]
            if outcome is not State.PENDING:
                self.ended.append(name)

    def out_of_order(self) -> list[list[str]]:
        """Return the lanes in which one adder's entries have ended in another order."""
        ended: defaultdict[tuple[int, str], list[str]] = defaultdict(list)
        for name in self.ended:
            for lane in self.lanes[name] if name not in self.disturbed else ():
                ended[lane, name[0]].append(name)
        return [each for each in ended.values() if each != sorted(each)]


def _pending(url: str) -> bool:
    """Return whether any entry in a lane is pending."""
    return query(url, "SELECT EXISTS (SELECT 1 FROM relay.lanes)") == [(True,)]


def assert_kept_by_a_crowd(url: str, through: str | None = None) -> None:
    """Let a crowd work on an empty outbox, and assert that every order was kept.

    Args:
        url: of its database.
        through: the URL by which the crowd reaches it, if that is another one.
    """
    seed = time.time_ns()
    crowd = Crowd(through or url, seed, lambda: _pending(url))
    with ThreadPoolExecutor(FORWARDERS + len(ADDERS) + 1) as threads:
        work = [threads.submit(crowd.forward, number) for number in range(FORWARDERS)]
        work.append(threads.submit(crowd.operate))
        try:
            for adding in [threads.submit(crowd.add, adder) for adder in ADDERS]:
                adding.result()
        finally:
            crowd.over.set()
        for each in work:
            each.result()
    left = crowd.lanes.keys() - {*crowd.ended} - crowd.disturbed

    assert (crowd.faults, crowd.out_of_order(), left) == ([], [], set()), f"seed {seed}"
    assert query(url, "SELECT count(*) FROM relay.lanes") == [(0,)], f"seed {seed}"
    assert query(url, UNSOUND, search_path="relay") == []

"""The promise about people, seen from outside: what was posted, answered, and sent to Vero.

For each person the requests arrive in the order of the calls that relay has answered 200. None is
missing. One is repeated only if its answer did not come, or relay was killed. What Vero refuses is
a dead letter.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from tests.harness.customers import REFUSED, CustomerCall, Expected
from tests.harness.stores import Store
from tests.harness.vero import Fault, Request, Vero, people_in, says
from tests.harness.vero_model import People

MOST_AT_ONCE = 8
"""The requests that one process may have under way, by default."""


@dataclass
class Kill:
    """A kill of a process that forwards.

    Attributes:
        began_at: just before, in monotonic seconds.
        ended_at: just after.
        excused: requests that were repeated although they had been answered: relay died before it
            could note the answer.
    """

    began_at: float
    ended_at: float = float("inf")
    excused: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Due:
    """One request that a person's calls must become."""

    call: CustomerCall
    request: Expected

    def __str__(self) -> str:
        return f"{self.request.method} {self.request.path} of {self.call.message_id}"


class _Person:
    """The requests about one person, beside those that were due."""

    def __init__(self, kills: Sequence[Kill]) -> None:
        self.due: list[Due] = []
        self.came: list[Request] = []
        self._kills = kills

    def problems(self) -> list[str]:
        """Return where they differ."""
        attempts: dict[int, list[Request]] = defaultdict(list)
        return [*self._overlaps(), *self._disorder(attempts), *self._missing(attempts)]

    def _overlaps(self) -> Iterator[str]:
        for earlier, later in pairwise(self.came):
            in_time = earlier.answered_at <= later.arrived_at
            if not in_time and not self._kill_between(earlier, later):
                yield f"{_named(later)} came while {_named(earlier)} was under way"

    def _disorder(self, attempts: dict[int, list[Request]]) -> Iterator[str]:
        """Note the attempts at each that is due; yield those that come at the wrong time."""
        at = -1
        for request in self.came:
            places = [number for number, due in enumerate(self.due) if due.request.is_(request)]
            if at + 1 in places:
                at += 1
            elif at in places:
                if not self._may_be_repeated(attempts[at][-1], request):
                    yield f"{self.due[at]} was repeated needlessly"
            else:
                (due,) = self.due[at + 1 : at + 2] or ("nothing",)
                yield f"{_named(request)} came when {due} was due"
                at = places[0] if places else at
            attempts[at].append(request)

    def _missing(self, attempts: dict[int, list[Request]]) -> Iterator[str]:
        for number, due in enumerate(self.due):
            if due.call.fate != "rejected":
                if not any(each.taken for each in attempts[number]):
                    yield f"{due} is missing"
            elif not any(each.refused for each in attempts[number]):
                yield f"{due} was never refused"

    def _may_be_repeated(self, earlier: Request, later: Request) -> bool:
        if not earlier.settled:
            return True
        kill = self._kill_between(earlier, later)
        if kill:
            kill.excused.add(id(later))
        return kill is not None

    def _kill_between(self, earlier: Request, later: Request) -> Kill | None:
        for kill in self._kills:
            if earlier.arrived_at <= kill.ended_at and kill.began_at <= later.arrived_at:
                return kill
        return None


class Ledger:
    """What was posted and answered 200, by all senders together; and when relay was killed.

    Two senders' calls must be about different people.
    """

    def __init__(self) -> None:
        self.calls: list[CustomerCall] = []
        self.kills: list[Kill] = []
        self._lock = threading.Lock()

    def answered(self, calls: Sequence[CustomerCall]) -> None:
        """Note that relay has answered 200 to these calls, in this order."""
        with self._lock:
            self.calls += calls

    @contextmanager
    def killing(self) -> Iterator[None]:
        """Note that a process that forwards is killed meanwhile."""
        kill = Kill(time.monotonic())
        self.kills.append(kill)
        yield
        kill.ended_at = time.monotonic()

    def broken_promises(self, vero: Vero, store: Store | None = None) -> list[str]:
        """Return where Vero, or the store, differs from what was answered."""
        people: dict[str, _Person] = defaultdict(lambda: _Person(self.kills))
        for call in self.calls:
            for request in call.requests:
                for name in request.people:
                    people[name].due.append(Due(call, request))
        for sent in vero.requests:
            for name in people_in(sent.body) or ("nobody",):
                people[name].came.append(sent)
        broken = [
            f"{name}: {problem}" for name, each in people.items() for problem in each.problems()
        ]
        broken += [
            f"{len(kill.excused)} requests were repeated after one kill"
            for kill in self.kills
            if len(kill.excused) > MOST_AT_ONCE
        ]
        broken += self._other_people(vero.people)
        return broken + (self._other_fates(vero, store) if store else [])

    def _other_people(self, people: People) -> Iterator[str]:
        """Yield the people that are not as the calls have made them."""
        as_called = People()
        for call in self.calls:
            for expected in () if call.fate == "rejected" else call.requests:
                as_called.take(expected.method, expected.path, expected.body)
        for name in {**as_called.by_name, **people.by_name}:
            due, found = as_called.by_name.get(name), people.by_name.get(name)
            if due != found:
                yield f"{name} should be {due} and is {found}"

    def _other_fates(self, vero: Vero, store: Store) -> list[str]:
        """Return the entries that have not become what they should."""
        broken = []
        calls = {call.message_id: call for call in self.calls}
        stored: Counter[str] = Counter()
        for row in store.stored():
            call = calls[msgspec.json.decode(row.body)["messageId"]]
            stored[call.message_id] += 1
            fate = row.reason or row.state
            if fate != call.fate and not (fate == "delivered" and self._was_doubtful(call, vero)):
                broken.append(f"{call.message_id} should be {call.fate} and is {fate}")
        for name, call in calls.items():
            if stored[name] != (call.fate != "ignored"):
                broken.append(f"{name} is stored {stored[name]} times")
        return broken

    def _was_doubtful(self, call: CustomerCall, vero: Vero) -> bool:
        """Return whether relay may take Vero's refusal for a sign that an earlier attempt arrived.

        It may have been one of a process that was killed, which had perhaps not sent it.
        """
        (first, *_) = call.requests
        attempts = [request for request in vero.requests if first.is_(request)]
        if first.path != "users/reidentify" or not attempts:
            return False
        last = attempts[-1].arrived_at
        return len(attempts) > 1 or any(kill.began_at <= last for kill in self.kills)


def well(request: Request) -> Fault | None:
    """Judge as Vero does at its best: it refuses only what it must refuse."""
    if request.body.get("event_name") == REFUSED:
        return Fault(says(400, "No."))
    return None


def _named(request: Request) -> str:
    return f"{request.method} {request.path} {request.body}"

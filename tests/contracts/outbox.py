"""What every store does: each has a test class that inherits this suite."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from operator import attrgetter
from threading import Barrier
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relay.events import DeadReason, Unusable
from relay.outbox.counters import population
from relay.outbox.entries import Arrival, Entry, State, total
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus, Permit, Throttle
from tests.harness.fakes import Clock
from tests.harness.processes import within

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
FAULT = Unusable(DeadReason.NO_RECIPIENT, "neither a user id nor an address")

# How long an example takes says nothing but how busy the machine is.
law = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OpenStore = Callable[[str, Clock], Outbox]
"""Opens the store of a name. The first time it is made, and empty."""


def arrival(
    message_id: str,
    *,
    received_at: datetime = NOON,
    body: bytes = b"{}",
    fault: Unusable | None = None,
) -> Arrival:
    """Return an event to be stored."""
    return Arrival("vero", "segment", message_id, received_at, body, fault)


def ids(entries: Sequence[Entry]) -> set[str]:
    """Return their message ids."""
    return {entry.message_id for entry in entries}


def settle(outbox: Outbox, entry: Entry, outcome: State) -> None:
    """Bring the entry into the state."""
    match outcome:
        case State.DELIVERED:
            outbox.ack([entry])
        case State.DEAD:
            outbox.dead_letter(entry, FAULT)
        case State.PENDING:
            outbox.release([entry])


def claim_all(outbox: Outbox, limit: int, *, lease: timedelta = MINUTE) -> list[Entry]:
    """Claim up to so many of the due entries, suspects included."""
    entries = outbox.claim("segment", limit, lease=lease)
    while len(entries) < limit and (suspects := outbox.claim_suspect("segment", lease=lease)):
        entries += suspects
    return entries


def acquire(throttle: Throttle, now: float) -> Permit | float:
    """Take a permit; there are plenty."""
    return throttle.acquire(now, 50)


def states(outbox: Outbox) -> Counter[str]:
    """Count the entries of all destinations by state, without states that have none."""
    counts = total(outbox.counts())
    return +Counter(pending=counts.pending, delivered=counts.delivered, dead=counts.dead)


_every_outcome = pytest.mark.parametrize("outcome", State)


class OutboxContract:
    """The queue: see `relay.outbox.protocol.Outbox`.

    A store's test class has the fixture `open_store`.

    Attributes:
        claimers: how many openings of one store may claim at a time.
        lives: how many stores are compared with a model, in `make test` and with `--long`.
    """

    claimers: ClassVar[int] = 2
    lives: ClassVar[tuple[int, int]] = (30, 60)

    @pytest.fixture
    def clock(self) -> Clock:
        """Return the store's clock."""
        return Clock()

    @pytest.fixture
    def outbox(self, open_store: OpenStore, clock: Clock) -> Iterator[Outbox]:
        """Open an empty store."""
        outbox = open_store("relay", clock)
        yield outbox
        outbox.close()

    def test_new_events_are_distinguished_from_copies(self, outbox: Outbox) -> None:
        assert outbox.add([]) == []
        assert outbox.add([arrival("a"), arrival("b")]) == [True, True]
        assert outbox.add([arrival("b"), arrival("c"), arrival("a")]) == [False, True, False]
        assert outbox.add([arrival("c")]) == [False]
        assert states(outbox) == Counter(pending=3)

    def test_the_first_of_several_copies_in_a_group_is_new(self, outbox: Outbox) -> None:
        copies = [arrival("a", body=b"1"), arrival("b"), arrival("a", body=b"2"), arrival("a")]

        assert outbox.add(copies) == [True, True, False, False]
        assert {entry.body for entry in outbox.claim("segment", 9, lease=MINUTE)} == {b"1", b"{}"}

    @_every_outcome
    def test_a_copy_of_a_settled_entry_is_not_new(self, outbox: Outbox, outcome: State) -> None:
        outbox.add([arrival("a")])
        settle(outbox, outbox.claim("segment", 1, lease=MINUTE)[0], outcome)

        assert outbox.add([arrival("a")]) == [False]

    def test_a_group_may_be_large(self, outbox: Outbox) -> None:
        group = [arrival(str(number)) for number in range(5_000)]

        assert outbox.add(group) == [True] * 5_000
        assert outbox.add([*group[:4_500], arrival("x")]) == [False] * 4_500 + [True]

    @pytest.mark.parametrize("body", [b"", b"\0", bytes(range(256)), b"\xff\xfe{", b"x" * 2**20])
    def test_a_body_comes_back_byte_for_byte(self, outbox: Outbox, body: bytes) -> None:
        outbox.add([arrival("a", body=body)])

        assert outbox.claim("segment", 1, lease=MINUTE)[0].body == body

    @pytest.mark.parametrize("milliseconds", [0, 1, 7, 123, 250, 999])
    def test_an_entry_is_what_was_stored(self, outbox: Outbox, milliseconds: int) -> None:
        received_at = NOON - timedelta(milliseconds=milliseconds)
        outbox.add([arrival("a", received_at=received_at)])
        entry = outbox.claim("segment", 1, lease=MINUTE)[0]

        assert (entry.source, entry.message_id, entry.attempts) == ("vero", "a", 1)
        assert (entry.received_at, entry.received_at.tzinfo) == (received_at, UTC)

    def test_the_oldest_due_entries_are_claimed_first(self, outbox: Outbox) -> None:
        ages = {"b": 2, "d": 4, "a": 1, "c": 3}
        outbox.add([arrival(i, received_at=NOON - age * MINUTE) for i, age in ages.items()])
        claims = [outbox.claim("segment", limit, lease=MINUTE) for limit in (1, 2, 5, 5)]

        assert [ids(claim) for claim in claims] == [{"d"}, {"b", "c"}, {"a"}, set()]

    def test_a_claim_of_large_bodies_is_small(self, outbox: Outbox) -> None:
        """A claim is in memory as a whole."""
        outbox.add([arrival(name, body=bytes(2**20)) for name in "abcdefgh"])
        claims = []
        while claim := outbox.claim("segment", 100, lease=MINUTE):
            claims.append(sum(len(entry.body) for entry in claim))

        assert sum(claims) == 8 * 2**20
        assert max(claims) <= 5 * 2**20

    def test_a_claimed_entry_is_hidden_until_its_lease_ends(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival("a")])
        first = outbox.claim("segment", 1, lease=MINUTE)
        clock.sleep(59.999)
        hidden = outbox.claim("segment", 1, lease=MINUTE)
        clock.sleep(0.001)
        again = outbox.claim("segment", 1, lease=MINUTE)

        assert (ids(first), hidden, ids(again)) == ({"a"}, [], {"a"})
        assert [entry.attempts for entry in first + again] == [1, 2]

    @_every_outcome
    def test_a_late_settle_leaves_the_claim_of_another_alone(
        self, outbox: Outbox, clock: Clock, outcome: State
    ) -> None:
        outbox.add([arrival("a")])
        late = outbox.claim("segment", 1, lease=MINUTE)[0]
        clock.sleep(60)
        holder = outbox.claim("segment", 1, lease=MINUTE)[0]
        settle(outbox, late, outcome)

        assert states(outbox) == Counter(pending=1)
        assert outbox.claim("segment", 1, lease=MINUTE) == []
        outbox.ack([holder])
        assert states(outbox) == Counter(delivered=1)

    @_every_outcome
    def test_an_entry_not_claimed_since_can_be_settled_late(
        self, outbox: Outbox, clock: Clock, outcome: State
    ) -> None:
        outbox.add([arrival("a")])
        entry = outbox.claim("segment", 1, lease=MINUTE)[0]
        clock.sleep(3600)
        settle(outbox, entry, outcome)

        assert states(outbox) == Counter([outcome])

    @_every_outcome
    @pytest.mark.parametrize("final", [State.DELIVERED, State.DEAD])
    def test_a_delivered_or_dead_entry_stays_so(
        self, outbox: Outbox, clock: Clock, final: State, outcome: State
    ) -> None:
        outbox.add([arrival("a")])
        entry = outbox.claim("segment", 1, lease=MINUTE)[0]
        settle(outbox, entry, final)
        settle(outbox, entry, outcome)
        clock.sleep(3600)

        assert states(outbox) == Counter([final])
        assert outbox.claim("segment", 1, lease=MINUTE) == []

    def test_only_the_named_entries_are_settled(self, outbox: Outbox) -> None:
        outbox.add([arrival(name) for name in "abcde"])
        held = {entry.message_id: entry for entry in outbox.claim("segment", 5, lease=MINUTE)}
        outbox.ack([held["a"], held["b"]])
        outbox.dead_letter(held["c"], FAULT)
        outbox.release([held["d"]])
        outbox.ack([])

        assert states(outbox) == Counter(delivered=2, dead=1, pending=2)
        assert ids(outbox.claim("segment", 5, lease=MINUTE)) == {"d"}

    def test_a_dead_arrival_is_never_claimed(self, outbox: Outbox, clock: Clock) -> None:
        new = outbox.add([arrival("a", fault=FAULT), arrival("a", fault=FAULT)])
        clock.sleep(3600)

        assert new == [True, False]
        assert outbox.claim("segment", 1, lease=MINUTE) == []
        assert states(outbox) == Counter(dead=1)

    def test_the_oldest_pending_entry_counts_claimed_or_not(self, outbox: Outbox) -> None:
        nothing = total(outbox.counts())
        outbox.add([arrival("a", received_at=NOON - MINUTE), arrival("b")])
        outbox.add([arrival("c", received_at=NOON - 2 * MINUTE, fault=FAULT)])
        oldest = outbox.claim("segment", 1, lease=MINUTE)[0]
        claimed = total(outbox.counts())
        outbox.ack([oldest])

        assert nothing.waiting_since is None
        assert claimed.waiting_since == NOON - MINUTE
        assert total(outbox.counts()).waiting_since == NOON

    def test_an_addition_is_noticed_once(self, open_store: OpenStore, clock: Clock) -> None:
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        forwarding.changed("segment")
        before = forwarding.changed("segment")
        receiving.add([arrival("a")])
        answers: list[bool] = []

        def changed() -> bool:
            answers.append(forwarding.changed("segment"))
            return any(answers)

        assert not before
        assert within(10, changed)
        receiving.close()
        forwarding.close()

    def test_every_process_knows_of_a_hold_until_it_ends(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        permit = forwarding.throttle("segment", acquire)
        assert isinstance(permit, Permit)
        forwarding.throttle(
            "segment", lambda throttle, now: throttle.refused(permit, now, "401 Unauthorized")
        )
        held = receiving.destination_status("segment").hold
        clock.sleep(60)
        probe = forwarding.throttle("segment", acquire)
        assert isinstance(probe, Permit)
        forwarding.throttle("segment", lambda throttle, _: throttle.succeeded(probe))

        assert (held, receiving.destination_status("segment").hold) == ("401 Unauthorized", None)
        receiving.close()
        forwarding.close()

    def test_every_process_knows_the_status_of_a_destination(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        at_first = receiving.destination_status("segment")
        permit = forwarding.throttle("segment", acquire)
        assert isinstance(permit, Permit)
        down, asked = "503 Service Unavailable", timedelta(minutes=2)
        forwarding.throttle(
            "segment", lambda throttle, now: throttle.failed(permit, now, down, asked, lambda _: 1)
        )
        in_trouble = receiving.destination_status("segment")
        clock.sleep(120)
        probe = forwarding.throttle("segment", acquire)
        assert isinstance(probe, Permit)
        forwarding.throttle("segment", lambda throttle, now: throttle.record("accepted", now))
        forwarding.throttle("segment", lambda throttle, _: throttle.succeeded(probe))
        clock.sleep(60)
        well = receiving.destination_status("segment")

        assert at_first == DestinationStatus()
        assert in_trouble == DestinationStatus(
            failures=1,
            next_at=NOON + 2 * MINUTE,
            answer=down,
            answered_at=NOON,
        )
        assert well == DestinationStatus(answer="accepted", answered_at=NOON + 2 * MINUTE)
        receiving.close()
        forwarding.close()

    def test_entries_delivered_long_ago_are_purged_in_steps(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival(name) for name in "abcd"] + [arrival("dead", fault=FAULT)])
        outbox.ack(
            [entry for entry in outbox.claim("segment", 4, lease=MINUTE) if entry.message_id != "d"]
        )
        clock.sleep(60)
        outbox.add([arrival("new")])
        outbox.ack(
            [entry for entry in outbox.claim("segment", 9, lease=MINUTE) if entry.message_id != "d"]
        )
        before = clock.now() - timedelta(seconds=30)
        forgotten = [outbox.purge(before, 2) for _ in range(3)]

        assert forgotten == [2, 1, 0]
        assert states(outbox) == Counter(pending=1, delivered=1, dead=1)
        assert outbox.add([arrival("a"), arrival("d"), arrival("new")]) == [True, False, False]

    def test_a_check_leaves_the_entries_alone(self, outbox: Outbox) -> None:
        outbox.add([arrival("a")])
        outbox.check()

        assert states(outbox) == Counter(pending=1)

    def test_stored_entries_outlive_the_process(self, open_store: OpenStore, clock: Clock) -> None:
        outbox = open_store("relay", clock)
        outbox.add([arrival("a"), arrival("b", fault=FAULT), arrival("c", body=b"\0")])
        claimed = {entry.message_id: entry for entry in outbox.claim("segment", 9, lease=MINUTE)}
        outbox.ack([claimed["a"]])
        outbox.close()
        reopened = open_store("relay", clock)
        clock.sleep(60)
        due = reopened.claim("segment", 9, lease=MINUTE)

        assert states(reopened) == Counter(pending=1, delivered=1, dead=1)
        assert reopened.add([arrival(name) for name in "abc"]) == [False] * 3
        assert [entry.body for entry in due] == [b"\0"]
        reopened.close()

    def test_one_of_several_copies_added_at_once_is_new(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        one, other = (open_store("relay", clock) for _ in range(2))
        start = Barrier(4)

        def add(outbox: Outbox) -> list[bool]:
            start.wait()
            groups = [[arrival(f"{number}{copy}") for copy in "ab"] for number in range(30)]
            return [new for group in groups for new in outbox.add(group)]

        with closing(one), closing(other), ThreadPoolExecutor(4) as threads:
            new = list(threads.map(add, [one, one, other, other]))

        assert [sum(copies) for copies in zip(*new, strict=True)] == [1] * 60

    def test_no_entry_is_claimed_twice(self, open_store: OpenStore, clock: Clock) -> None:
        one, other = (open_store("relay", clock) for _ in range(2))
        one.add([arrival(str(number)) for number in range(400)])
        start = Barrier(4 * self.claimers)

        def claim(outbox: Outbox) -> list[Entry]:
            start.wait()
            return [entry for _ in range(15) for entry in outbox.claim("segment", 4, lease=MINUTE)]

        with closing(one), closing(other), ThreadPoolExecutor(8) as threads:
            claims = list(threads.map(claim, [one, other][: self.claimers] * 4))
            left = one.claim("segment", 400, lease=MINUTE)
        held = [entry.message_id for claim in [*claims, left] for entry in claim]

        assert sorted(held, key=int) == [str(number) for number in range(400)]

    @pytest.mark.slow
    def test_no_sequence_of_calls_loses_or_doubles_an_entry(
        self, open_store: OpenStore, times: Callable[[int, int], int]
    ) -> None:
        numbers = count()
        run_state_machine_as_test(
            lambda: _Life(open_store, f"life{next(numbers)}"),  # type: ignore[arg-type]  # a factory will do
            settings=settings(law, max_examples=times(*self.lives), stateful_step_count=40),
        )


@dataclass
class _Fate:
    received_at: datetime
    state: State
    due_at: datetime
    attempts: int = 0
    holder: Entry | None = None


class _Life(RuleBasedStateMachine):
    """A store, and the simplest model of one, under the same calls."""

    def __init__(self, open_store: OpenStore, name: str) -> None:
        super().__init__()
        self.clock = Clock()
        self.open = partial(open_store, name, self.clock)
        self.outbox = self.open()
        self.fates: dict[str, _Fate] = {}
        self.claimed: list[Entry] = []

    def pending(self) -> list[_Fate]:
        return [fate for fate in self.fates.values() if fate.state is State.PENDING]

    @rule(
        names=st.lists(st.sampled_from("abcdef"), max_size=4),
        fault=st.sampled_from([None, None, None, FAULT]),
    )
    def add(self, names: list[str], fault: Unusable | None) -> None:
        now = self.clock.now()
        new = self.outbox.add([arrival(name, received_at=now, fault=fault) for name in names])

        assert new == [n not in self.fates and n not in names[:i] for i, n in enumerate(names)]
        for name in names:
            self.fates.setdefault(name, _Fate(now, State.DEAD if fault else State.PENDING, now))

    @rule(limit=st.integers(1, 3), lease=st.integers(1, 60))
    def claim(self, limit: int, lease: int) -> None:
        now = self.clock.now()
        due = [fate for fate in self.pending() if fate.due_at <= now]
        entries = claim_all(self.outbox, limit, lease=timedelta(seconds=lease))
        fates = {name: self.fates[name] for name in ids(entries)}

        assert len(fates) == len(entries)
        assert all(fate.state is State.PENDING for fate in fates.values())
        assert len(entries) == min(limit, len(due))
        for entry in entries:
            fate = fates[entry.message_id]
            fate.attempts += 1
            assert fate.due_at <= now
            assert entry.attempts == fate.attempts
            fate.due_at, fate.holder = now + timedelta(seconds=lease), entry
        self.claimed += entries

    @precondition(attrgetter("claimed"))
    @rule(which=st.integers(min_value=0), outcome=st.sampled_from(State))
    def settle(self, which: int, outcome: State) -> None:
        entry = self.claimed[which % len(self.claimed)]
        fate = self.fates[entry.message_id]
        settle(self.outbox, entry, outcome)
        if fate.holder == entry and fate.state is State.PENDING:
            fate.state, fate.due_at = outcome, self.clock.now()

    @rule(seconds=st.integers(1, 90))
    def wait(self, seconds: int) -> None:
        self.clock.sleep(seconds)

    @rule()
    def reopen(self) -> None:
        """Open the store again. Earlier claims may be due at once, or when their leases end."""
        self.outbox.close()
        self.outbox = self.open()
        self.claimed.clear()
        self.clock.sleep(60)

    @invariant()
    def every_entry_is_counted(self) -> None:
        waiting = [fate.received_at for fate in self.pending()]

        assert states(self.outbox) == Counter(fate.state for fate in self.fates.values())
        assert sum(population(self.outbox.counters()).values()) == len(self.fates)
        assert total(self.outbox.counts()).waiting_since == min(waiting, default=None)

    def teardown(self) -> None:
        self.clock.sleep(3600)
        left = ids(claim_all(self.outbox, 99))
        self.outbox.close()

        assert left == {name for name, fate in self.fates.items() if fate.state is State.PENDING}

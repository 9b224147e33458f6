"""What every store does to keep the order of lanes: its test class inherits this suite."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, ClassVar, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.outbox.entries import Arrival, Entry, HistoryEvent, Keys, Requeue, State
from relay.outbox.protocol import Outbox
from tests.contracts.changes import RunSql
from tests.contracts.outbox import FAULT, MINUTE, NOON, OpenStore, law, settle, states
from tests.harness.entries import by_name, erase, everything
from tests.harness.fakes import Clock

VERO: Final = "vero"
A, B, C = 2**63 - 1, 2, 3  # lanes
DOWN: Final = "500 Internal Server Error"

RunNamedSql = Callable[[str, str], list[Any]]
"""Runs a statement on the tables of the store of a name, without the store."""

UNSOUND: Final = """
    SELECT id FROM entries WHERE blocked IS DISTINCT FROM CASE
        WHEN NOT EXISTS (SELECT 1 FROM lanes WHERE lanes.entry = entries.id) THEN NULL
        WHEN EXISTS (
            SELECT 1 FROM lanes AS own JOIN lanes AS ahead ON ahead.lane = own.lane
            WHERE own.entry = entries.id AND ahead.seq < own.seq AND ahead.entry <> own.entry
        ) THEN 1 ELSE 0 END
    UNION ALL SELECT entry FROM lanes WHERE entry NOT IN (
        SELECT id FROM entries WHERE state = 'pending'
    )
"""
"""Finds the entries that are not blocked as the lanes demand, and the lanes of settled ones."""


def call(
    name: str,
    *lanes: int,
    received_at: datetime = NOON,
    body: bytes = b"{}",
    fault: Unusable | None = None,
) -> Arrival:
    """Return a call for a destination that keeps an order."""
    return Arrival("segment", VERO, name, received_at, body, fault, "track", lanes=lanes)


def claim(outbox: Outbox, limit: int = 99, *, lease: timedelta = MINUTE) -> list[Entry]:
    """Claim the entries that head their lanes."""
    return outbox.claim(VERO, limit, lease=lease, ordered=True)


def head(outbox: Outbox) -> Entry:
    """Claim the only entry that heads its lanes."""
    (entry,) = claim(outbox)
    return entry


def names(entries: Sequence[Entry]) -> list[str]:
    """Return their message ids, in the order of the claim."""
    return [entry.message_id for entry in entries]


def drain(outbox: Outbox) -> list[list[str]]:
    """Deliver everything; return the names of each claim."""
    claims = []
    while claimed := claim(outbox):
        claims.append(sorted(names(claimed)))
        outbox.ack(claimed)
    return claims


def postpone(outbox: Outbox, entry: Entry, clock: Clock, seconds: float) -> None:
    """Note that sending it has failed; it is due again in so many seconds."""
    retry_at = clock.now() + timedelta(seconds=seconds)
    since = entry.failing_since or clock.now()
    outbox.postpone(entry, retry_at=retry_at, answer=DOWN, failing_since=since)


def requeue(outbox: Outbox, *named: tuple[str, tuple[int, ...]]) -> int:
    """Requeue the entries of these names into these lanes; return how many were."""
    found = by_name(outbox.entries)
    operation = outbox.entries.begin("replay", "some")
    requeues = [Requeue(found[name].id, "track", Keys(), lanes) for name, lanes in named]
    return outbox.entries.requeue(requeues, operation)


_every_end = pytest.mark.parametrize("outcome", [State.DELIVERED, State.DEAD])


class LanesContract:
    """Entries of one lane are sent one after the other: see `relay.outbox.protocol.Outbox`.

    A store's test class has the fixture `run_named_sql`.

    Attributes:
        lives: how many stores are compared with a model, in `make test` and with `--long`.
    """

    lives: ClassVar[tuple[int, int]] = (30, 60)

    def test_the_entries_of_a_lane_are_claimed_one_after_the_other(self, outbox: Outbox) -> None:
        """Their order is that of their arrival, also if their names or times have another."""
        outbox.add([call("z", A), call("y", A, received_at=NOON - MINUTE)])
        outbox.add([call("x", A), call("w", A)])

        assert drain(outbox) == [["z"], ["y"], ["x"], ["w"]]

    def test_lanes_do_not_wait_for_each_other(self, outbox: Outbox) -> None:
        outbox.add([call("a1", A), call("a2", A), call("b1", B), call("b2", B), call("c1", C)])
        first = claim(outbox)
        (b1,) = (entry for entry in first if entry.message_id == "b1")
        outbox.ack([b1])

        assert sorted(names(first)) == ["a1", "b1", "c1"]
        assert names(claim(outbox)) == ["b2"]

    def test_the_oldest_heads_are_claimed_first(self, outbox: Outbox) -> None:
        ages = {A: 1, B: 3, C: 2}
        outbox.add([call(str(a), a, received_at=NOON - age * MINUTE) for a, age in ages.items()])

        assert [names(claim(outbox, limit)) for limit in (1, 2)] == [[str(B)], [str(C), str(A)]]

    def test_a_claim_of_large_bodies_is_small(self, outbox: Outbox) -> None:
        outbox.add([call(str(lane), lane, body=bytes(2**20)) for lane in range(8)])
        claims = []
        while claimed := claim(outbox):
            claims.append(sum(len(entry.body) for entry in claimed))

        assert sum(claims) == 8 * 2**20
        assert max(claims) <= 5 * 2**20

    def test_an_alias_holds_both_lanes(self, outbox: Outbox) -> None:
        outbox.add([call("a", A), call("b", B), call("alias", A, B), call("a2", A), call("b2", B)])

        assert drain(outbox) == [["a", "b"], ["alias"], ["a2", "b2"]]

    def test_an_alias_waits_for_the_slower_of_its_lanes(self, outbox: Outbox) -> None:
        outbox.add([call("a", A), call("b", B), call("alias", B, A), call("b2", B)])
        a, b = sorted(claim(outbox), key=lambda entry: entry.message_id)
        outbox.ack([b])
        between = names(claim(outbox))
        outbox.ack([a])

        assert between == []
        assert names(claim(outbox)) == ["alias"]

    def test_a_lane_named_twice_is_one_lane(self, outbox: Outbox) -> None:
        outbox.add([call("a", A, A), call("b", A, B, A)])

        assert drain(outbox) == [["a"], ["b"]]

    @_every_end
    def test_an_entry_that_ends_frees_the_next_one(self, outbox: Outbox, outcome: State) -> None:
        outbox.add([call("a", A), call("b", A)])
        a = head(outbox)
        settle(outbox, a, outcome)

        assert names(claim(outbox)) == ["b"]

    def test_an_entry_that_does_not_end_holds_its_lane(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([call("a", A), call("b", A), call("other", B)])
        (a, _) = claim(outbox)
        leased = names(claim(outbox))
        outbox.release([a], DOWN)
        released = names(claim(outbox))
        clock.sleep(60)

        assert (leased, released) == ([], ["a"])
        assert sorted(names(claim(outbox))) == ["a", "other"]

    def test_a_dead_arrival_and_a_copy_take_no_place(self, outbox: Outbox) -> None:
        outbox.add([call("dead", A, fault=FAULT), call("a", A), call("a", B), call("b", B)])
        outbox.add([call("a", B, C), call("c", C)])

        assert drain(outbox) == [["a", "b", "c"]]

    def test_the_order_of_a_large_group_is_kept(self, outbox: Outbox) -> None:
        group = [call(f"{number * 7919 % 5_000}", A, number + 9) for number in range(5_000)]

        assert outbox.add([*group, group[0]]) == [True] * 5_000 + [False]
        for arrival in group[:3]:
            entry = head(outbox)
            outbox.ack([entry])
            assert entry.message_id == arrival.message_id

    def test_a_postponed_entry_holds_its_own_lane_until_its_time(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([call("a", A), call("a2", A), call("b", B), call("b2", B)])
        first = {entry.message_id: entry for entry in claim(outbox)}
        postpone(outbox, first["a"], clock, 30)
        outbox.ack([first["b"]])
        clock.sleep(29)
        meanwhile = claim(outbox)
        outbox.ack(meanwhile)
        clock.sleep(1)
        again = head(outbox)
        postpone(outbox, again, clock, 3)
        clock.sleep(3)
        third = head(outbox)
        answers = by_name(outbox.entries)["a"].history

        assert names(meanwhile) == ["b2"]
        assert (again.message_id, again.attempts, again.failing_since) == ("a", 2, NOON)
        assert (third.message_id, third.attempts, third.failing_since) == ("a", 3, NOON)
        assert answers == (
            HistoryEvent(NOON, "posted", DOWN),
            HistoryEvent(NOON + timedelta(seconds=30), "posted", DOWN),
        )

    def test_an_operator_sees_when_a_postponed_entry_is_due_again(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([call("a", A), call("b", B)])
        postpone(outbox, claim(outbox, 1)[0], clock, 30)
        postponed, other = everything(outbox.entries)
        clock.sleep(30)
        outbox.ack(claim(outbox))
        delivered = everything(outbox.entries)

        assert (postponed.retry_at, other.retry_at) == (NOON + timedelta(seconds=30), None)
        assert [entry.retry_at for entry in delivered] == [None, None]

    @_every_end
    def test_what_an_entry_failed_with_is_forgotten_when_it_ends(
        self, outbox: Outbox, clock: Clock, outcome: State
    ) -> None:
        outbox.add([call("a", A)])
        postpone(outbox, head(outbox), clock, 3600)
        clock.sleep(3600)
        settle(outbox, head(outbox), outcome)
        requeue(outbox, ("a", (A,)))
        again = head(outbox)

        assert again.failing_since is None

    def test_a_release_leaves_the_time_since_an_entry_fails(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([call("a", A)])
        postpone(outbox, head(outbox), clock, 1)
        clock.sleep(1)
        outbox.release(claim(outbox), DOWN)

        assert claim(outbox)[0].failing_since == NOON

    def test_postponed_and_new_entries_take_turns_by_their_age(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        """A backlog of new ones must not keep a postponed one waiting, nor the other way round."""
        outbox.add([call("failing", A)])
        postpone(outbox, head(outbox), clock, 60)
        for number in range(4):
            outbox.add([call(str(number), 10 + number, received_at=clock.now())])
            clock.sleep(40)

        assert [names(claim(outbox, 1)) for _ in range(5)] == [
            [name] for name in ("0", "1", "failing", "2", "3")
        ]

    def test_a_late_worker_postpones_nothing(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([call("a", A)])
        late = head(outbox)
        clock.sleep(60)
        holder = head(outbox)
        postpone(outbox, late, clock, 60)
        outbox.release([holder])
        again = head(outbox)

        assert again.failing_since is None
        assert by_name(outbox.entries)["a"].history == ()

    def test_a_clock_that_is_set_back_delays_no_postponed_entry(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        with closing(open_store("relay", clock)) as outbox:
            outbox.add([call("a", A)])
            clock.sleep(7200)
            postpone(outbox, head(outbox), clock, 3600)
            clock.sleep(3599)
            too_early = claim(outbox)
        with closing(open_store("relay", Clock())) as outbox:
            assert too_early == []
            assert names(claim(outbox)) == ["a"]

    def test_an_erased_head_frees_the_next_one(self, outbox: Outbox) -> None:
        outbox.add([call("a", A), call("alias", A, B), call("b", B), call("b2", B)])
        found = by_name(outbox.entries)
        erase(outbox.entries, found["a"])
        after_the_head = claim(outbox)
        outbox.release(after_the_head)
        erase(outbox.entries, found["alias"])

        assert names(after_the_head) == ["alias"]
        assert drain(outbox) == [["b"], ["b2"]]

    def test_an_entry_erased_in_the_middle_frees_nothing_but_what_it_held(
        self, outbox: Outbox
    ) -> None:
        outbox.add([call("a", A), call("alias", A, B), call("a2", A), call("b", B)])
        erase(outbox.entries, by_name(outbox.entries)["alias"])

        assert drain(outbox) == [["a", "b"], ["a2"]]

    def test_a_whole_lane_can_be_erased(self, outbox: Outbox, run_sql: RunSql) -> None:
        outbox.add([call(str(number), A) for number in range(50)] + [call("other", B)])
        found = by_name(outbox.entries)
        erase(outbox.entries, *(each for name, each in found.items() if name != "other"))

        assert names(claim(outbox)) == ["other"]
        assert run_sql("SELECT count(*) FROM lanes") == [(1,)]

    @_every_end
    def test_a_requeued_entry_goes_to_the_end_of_its_lanes(
        self, outbox: Outbox, outcome: State
    ) -> None:
        outbox.add([call("a", A), call("b", A), call("c", B)])
        settle(outbox, claim(outbox, 1)[0], outcome)
        counts = [requeue(outbox, ("a", (A, B))) for _ in range(2)]
        outbox.add([call("d", A), call("e", B)])

        assert counts == [1, 0]
        assert drain(outbox) == [["b", "c"], ["a"], ["d", "e"]]

    def test_several_are_requeued_in_the_order_given(self, outbox: Outbox) -> None:
        outbox.add([call(name, A) for name in "abc"])
        drain(outbox)
        requeue(outbox, ("c", (A,)), ("a", (A,)), ("b", (A,)))

        assert drain(outbox) == [["c"], ["a"], ["b"]]

    def test_the_next_claim_knows_what_was_sent(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([call("a", A)])
        late = head(outbox)
        outbox.advance(late, 1)
        clock.sleep(60)
        holder = head(outbox)
        outbox.advance(late, 7)
        outbox.release([holder])
        again = head(outbox)
        outbox.ack([again])
        outbox.advance(again, 8)

        assert [entry.step for entry in (late, holder, again)] == [0, 1, 1]
        assert by_name(outbox.entries)["a"].step == 1

    @pytest.mark.parametrize(("outcome", "step"), [(State.DELIVERED, 0), (State.DEAD, 1)])
    def test_a_replay_sends_what_has_not_been_sent_to_the_end(
        self, outbox: Outbox, outcome: State, step: int
    ) -> None:
        """The messages of a dead letter that were sent before it died are not sent again."""
        outbox.add([call("a", A)])
        first = head(outbox)
        outbox.advance(first, 1)
        settle(outbox, first, outcome)
        requeue(outbox, ("a", (A,)))

        assert [entry.step for entry in claim(outbox)] == [step]

    def test_a_copy_keeps_the_order(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        outbox.add([call("a", A), call("b", A), call("c", B), call("alias", B, A), call("d", B)])
        (a, _) = claim(outbox)
        outbox.advance(a, 1)
        outbox.dead_letter(a, FAULT)
        copied = everything(outbox.entries)
        with closing(open_store("copy", clock)) as copy:
            copy.add([call("before", B)])
            copy.entries.restore(copied[:2])
            copy.entries.restore(copied)
            found = by_name(copy.entries)
            order = drain(copy)

        assert {each.message_id: each.lanes for each in copied} == {
            "a": (),
            "b": (A,),
            "c": (B,),
            "alias": (B, A),
            "d": (B,),
        }
        assert [structs.replace(found[each.message_id], id=each.id) for each in copied] == copied
        assert copied[0].step == 1
        assert order == [["b", "before"], ["c"], ["alias"], ["d"]]

    def test_an_entry_is_told_what_it_waits_for(self, outbox: Outbox) -> None:
        outbox.add([call("a", A), call("b", B), call("alias", A, B), call("a2", A), call("c", C)])
        found = by_name(outbox.entries)

        def ahead() -> dict[str, int | None]:
            return {name: outbox.entries.blocked_by(each.id) for name, each in found.items()}

        before = ahead()
        outbox.ack(claim(outbox, 1))
        a, b, alias = (found[name].id for name in ("a", "b", "alias"))

        assert before == {"a": None, "b": None, "alias": a, "a2": a, "c": None}
        assert ahead() == {"a": None, "b": None, "alias": b, "a2": alias, "c": None}
        assert outbox.entries.blocked_by(alias + 99) is None

    def test_a_suspect_holds_its_lanes(self, open_store: OpenStore, clock: Clock) -> None:
        with closing(open_store("relay", clock)) as outbox:
            outbox.add([call("a", A), call("b", A)])
        for _ in range(2):
            with closing(open_store("relay", clock)) as outbox:
                assert names(claim(outbox)) == ["a"]
            clock.sleep(60)
        with closing(open_store("relay", clock)) as outbox:
            others = claim(outbox)
            suspected = outbox.has_suspects(VERO)
            (suspect,) = outbox.claim_suspect(VERO, lease=MINUTE)
            outbox.dead_letter(suspect, Unusable(DeadReason.POISON, "it crashed"))

            assert (suspected, others) == (True, [])
            assert (suspect.message_id, suspect.crashes, suspect.ordered) == ("a", 2, True)
            assert names(claim(outbox)) == ["b"]

    def test_a_suspect_behind_another_entry_is_not_due(
        self, outbox: Outbox, run_sql: RunSql
    ) -> None:
        outbox.add([call("a", A), call("b", A)])
        run_sql("UPDATE entries SET crashes = 2 WHERE message_id = 'b'")

        assert not outbox.has_suspects(VERO)
        assert outbox.claim_suspect(VERO, lease=MINUTE) == []

    def test_what_keeps_no_order_is_claimed_beside_it(self, outbox: Outbox) -> None:
        outbox.add(
            [
                call("a", A),
                call("b", A),
                Arrival("vero", "segment", "email", NOON, b"{}"),
                Arrival("vero", "segment", "another", NOON, b"{}"),
            ]
        )
        emails = outbox.claim("segment", 9, lease=MINUTE)
        outbox.ack(emails)
        calls = claim(outbox)

        assert sorted(names(emails)) == ["another", "email"]
        assert names(calls) == ["a"]
        assert [entry.ordered for entry in [*emails, *calls]] == [False, False, True]
        assert states(outbox) == Counter(pending=2, delivered=2)

    @pytest.mark.slow
    def test_no_sequence_of_calls_breaks_an_order(
        self,
        open_store: OpenStore,
        run_named_sql: RunNamedSql,
        times: Callable[[int, int], int],
    ) -> None:
        numbers = count()
        run_state_machine_as_test(
            lambda: _Lanes(open_store, f"life{next(numbers)}", run_named_sql),  # type: ignore[arg-type]  # a factory will do
            settings=settings(law, max_examples=times(*self.lives), stateful_step_count=40),
        )


class _Lanes(RuleBasedStateMachine):
    """A store, and the simplest model of its lanes, under the same calls.

    The model is one list of the pending entries with their lanes, in their order.
    """

    def __init__(self, open_store: OpenStore, name: str, run_sql: RunNamedSql) -> None:
        super().__init__()
        self.clock = Clock()
        self.open = partial(open_store, name, self.clock)
        self.outbox = self.open()
        self.run_sql = partial(run_sql, name)
        self.queue: list[tuple[str, frozenset[int]]] = []
        self.ended: dict[str, State] = {}
        self.claimed: dict[str, Entry] = {}
        self.retry_at: dict[str, datetime] = {}
        self.numbers = count()

    def heads(self) -> set[str]:
        taken: set[int] = set()
        found = set()
        for name, lanes in self.queue:
            if not lanes & taken:
                found.add(name)
            taken |= lanes
        return found

    def end(self, name: str) -> None:
        self.queue = [each for each in self.queue if each[0] != name]
        self.claimed.pop(name, None)
        self.retry_at.pop(name, None)

    @rule(lanes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=4))
    def add(self, lanes: list[list[int]]) -> None:
        group = [call(f"{next(self.numbers)}", *each) for each in lanes]
        self.outbox.add(group)
        self.queue += [(each.message_id, frozenset(each.lanes)) for each in group]

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        waiting = {name for name, at in self.retry_at.items() if at > self.clock.now()}
        due = self.heads() - self.claimed.keys() - waiting
        entries = claim(self.outbox, limit)

        assert set(names(entries)) <= due
        assert len(entries) == min(limit, len(due))
        self.claimed |= {entry.message_id: entry for entry in entries}

    @rule(which=st.integers(0), outcome=st.sampled_from([*State, None]))
    def settle(self, which: int, outcome: State | None) -> None:
        if not self.claimed:
            return
        name = [*self.claimed][which % len(self.claimed)]
        entry = self.claimed.pop(name)
        if outcome is None:
            postpone(self.outbox, entry, self.clock, 30)
            self.retry_at[name] = self.clock.now() + timedelta(seconds=30)
            return
        settle(self.outbox, entry, outcome)
        if outcome is not State.PENDING:
            self.end(name)
            self.ended[name] = outcome

    @rule(which=st.integers(0))
    def erase(self, which: int) -> None:
        found = everything(self.outbox.entries)
        if found:
            entry = found[which % len(found)]
            if held := self.claimed.get(entry.message_id):
                self.outbox.release([held])  # SQLite may give its number to the next entry
            erase(self.outbox.entries, entry)
            self.end(entry.message_id)
            self.ended.pop(entry.message_id, None)

    @rule(which=st.integers(0), lanes=st.lists(st.integers(1, 4), min_size=1, max_size=2))
    def requeue(self, which: int, lanes: list[int]) -> None:
        if not self.ended:
            return
        name = [*self.ended][which % len(self.ended)]
        requeue(self.outbox, (name, tuple(lanes)))
        del self.ended[name]
        self.queue.append((name, frozenset(lanes)))

    @rule(reopen=st.booleans())
    def release(self, reopen: bool) -> None:  # noqa: FBT001 (as hypothesis calls it)
        """Release all claims and let some time pass, perhaps without a process."""
        self.outbox.release([*self.claimed.values()])
        self.claimed.clear()
        self.clock.sleep(20)
        if reopen:
            self.outbox.close()
            self.outbox = self.open()

    @invariant()
    def what_is_blocked_is_what_the_lanes_say(self) -> None:
        assert self.run_sql(UNSOUND) == []

    def teardown(self) -> None:
        self.clock.sleep(3600)
        lanes = dict(self.queue)
        order = [name for claimed in drain(self.outbox) for name in claimed]
        self.outbox.close()

        assert sorted(order) == sorted(lanes)
        for lane in range(1, 5):
            expected = [name for name, own in self.queue if lane in own]
            assert [name for name in order if lane in lanes[name]] == expected

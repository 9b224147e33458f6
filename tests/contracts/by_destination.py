"""What every store keeps apart for several destinations: its test class inherits this suite."""

from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta

import pytest

from relay.events import Unusable
from relay.outbox.counters import Change, population
from relay.outbox.entries import Arrival, Counts, Query, State
from relay.outbox.protocol import Outbox
from relay.throttle import DestinationStatus, Permit
from tests.contracts.outbox import FAULT, MINUTE, NOON, OpenStore, ids, settle
from tests.harness.entries import DOWN, by_name, claim_one, erase, everything, requeue
from tests.harness.fakes import Clock
from tests.harness.processes import within

ONE, OTHER = "segment", "vero"
BOTH = (ONE, OTHER)

_every_destination = pytest.mark.parametrize("destination", BOTH)


def arrival(
    message_id: str,
    destination: str,
    *,
    received_at: datetime = NOON,
    fault: Unusable | None = None,
) -> Arrival:
    """Return an event for the destination."""
    return Arrival("customerio", destination, message_id, received_at, b"{}", fault)


def some_for_both(outbox: Outbox) -> None:
    """Add an older entry for the one destination, two for the other, and one dead for each."""
    outbox.add(
        [
            arrival("a1", ONE, received_at=NOON - 2 * MINUTE),
            arrival("b1", OTHER, received_at=NOON - MINUTE),
            arrival("b2", OTHER),
            arrival("dead1", ONE, fault=FAULT),
            arrival("dead2", OTHER, fault=FAULT),
        ]
    )


def acquire(outbox: Outbox, destination: str, rate: int = 50) -> Permit | float:
    """Take a permit to send to the destination, or return how long to wait for one."""
    return outbox.throttle(destination, lambda throttle, now: throttle.acquire(now, rate))


def permit(outbox: Outbox, destination: str) -> Permit:
    """Take a permit that must be there."""
    taken = acquire(outbox, destination)
    assert isinstance(taken, Permit)
    return taken


def crash(outbox: Outbox, clock: Clock, destination: str) -> None:
    """End the process with all that it has claimed for the destination."""
    with closing(outbox):
        outbox.claim(destination, 9, lease=MINUTE)
    clock.sleep(60)


class ByDestinationContract:
    """Two destinations in one outbox: see `relay.outbox.protocol.Outbox`."""

    @_every_destination
    def test_a_claim_is_of_one_destination(self, outbox: Outbox, destination: str) -> None:
        some_for_both(outbox)
        claimed = outbox.claim(destination, 9, lease=MINUTE)
        rest = {each: outbox.claim(each, 9, lease=MINUTE) for each in BOTH}
        expected = {ONE: {"a1"}, OTHER: {"b1", "b2"}}

        assert ids(claimed) == expected[destination]
        assert {entry.destination for entry in claimed} == {destination}
        assert {each: ids(entries) for each, entries in rest.items()} == {
            each: set() if each == destination else expected[each] for each in BOTH
        }
        assert outbox.claim("nobody", 9, lease=MINUTE) == []

    def test_older_entries_of_one_destination_do_not_hide_those_of_the_other(
        self, outbox: Outbox
    ) -> None:
        outbox.add([arrival(f"old{n}", ONE, received_at=NOON - MINUTE) for n in range(50)])
        outbox.add([arrival("new", OTHER)])

        assert ids(outbox.claim(OTHER, 1, lease=MINUTE)) == {"new"}

    @pytest.mark.parametrize("outcome", State)
    def test_entries_of_both_are_settled_in_any_order(self, outbox: Outbox, outcome: State) -> None:
        some_for_both(outbox)
        held = {each: outbox.claim(each, 9, lease=MINUTE) for each in BOTH}
        for entry in held[OTHER]:
            settle(outbox, entry, outcome)
        due = {each: ids(outbox.claim(each, 9, lease=MINUTE)) for each in BOTH}
        outbox.ack(held[ONE])

        assert due == {ONE: set(), OTHER: {"b1", "b2"} if outcome is State.PENDING else set()}
        assert outbox.counts()[ONE].delivered == 1
        assert getattr(outbox.counts()[OTHER], outcome) >= 2

    def test_suspects_of_one_destination_are_not_the_others(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        with closing(open_store("relay", clock)) as outbox:
            outbox.add([arrival("a", ONE), arrival("b", OTHER)])
        for _ in range(2):
            crash(open_store("relay", clock), clock, ONE)
        with closing(open_store("relay", clock)) as outbox:
            claimed = {each: outbox.claim(each, 9, lease=MINUTE) for each in BOTH}
            suspected = {each: outbox.has_suspects(each) for each in BOTH}
            others = outbox.claim_suspect(OTHER, lease=MINUTE)
            (suspect,) = outbox.claim_suspect(ONE, lease=MINUTE)

        assert suspected == {ONE: True, OTHER: False}
        assert others == []
        assert {each: ids(entries) for each, entries in claimed.items()} == {
            ONE: set(),
            OTHER: {"b"},
        }
        assert (suspect.message_id, suspect.destination, suspect.crashes) == ("a", ONE, 2)
        assert claimed[OTHER][0].crashes == 0

    def test_each_destination_learns_of_a_change(self, open_store: OpenStore, clock: Clock) -> None:
        """That holds if the other one is asked about first."""
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        with closing(receiving), closing(forwarding):

            def quiet() -> bool:
                return within(10, lambda: not any(forwarding.changed(each) for each in BOTH))

            for destination, other in (BOTH, BOTH[::-1]):

                def heard(destination: str = destination, other: str = other) -> bool:
                    forwarding.changed(other)
                    return forwarding.changed(destination)

                assert quiet()
                receiving.add([arrival(f"for {destination}", destination)])
                assert within(10, heard)
                forwarding.ack(forwarding.claim(destination, 9, lease=MINUTE))

    def test_a_hold_of_one_destination_leaves_the_other_alone(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        with closing(receiving), closing(forwarding):
            refused = permit(forwarding, ONE)
            forwarding.throttle(
                ONE, lambda throttle, now: throttle.refused(refused, now, "401 Unauthorized")
            )
            held, free = acquire(forwarding, ONE), acquire(forwarding, OTHER)
            status = {each: receiving.destination_status(each) for each in BOTH}

            assert isinstance(held, float)
            assert isinstance(free, Permit)
            assert status[ONE].hold == "401 Unauthorized"
            assert status[OTHER] == DestinationStatus()

    def test_an_answer_is_noted_for_its_destination_only(
        self, open_store: OpenStore, clock: Clock
    ) -> None:
        receiving, forwarding = (open_store("relay", clock) for _ in range(2))
        with closing(receiving), closing(forwarding):
            accepted, failed = permit(forwarding, ONE), permit(forwarding, OTHER)
            clock.sleep(60)
            forwarding.throttle(ONE, lambda throttle, now: throttle.record("200 OK", now))
            forwarding.throttle(ONE, lambda throttle, _: throttle.succeeded(accepted))
            forwarding.throttle(
                OTHER, lambda throttle, now: throttle.failed(failed, now, DOWN, 2 * MINUTE)
            )

            assert {each: receiving.destination_status(each) for each in BOTH} == {
                ONE: DestinationStatus(answer="200 OK", answered_at=NOON + MINUTE),
                OTHER: DestinationStatus(
                    failures=1,
                    next_at=NOON + 3 * MINUTE,
                    answer=DOWN,
                    answered_at=NOON + MINUTE,
                ),
            }

    def test_permits_of_one_destination_are_not_taken_from_the_other(self, outbox: Outbox) -> None:
        permits = [acquire(outbox, each, rate=1) for each in (*BOTH, *BOTH)]

        assert [isinstance(each, Permit) for each in permits] == [True, True, False, False]

    def test_entries_are_counted_by_destination(self, outbox: Outbox) -> None:
        some_for_both(outbox)
        before = outbox.counts()
        outbox.ack(outbox.claim(OTHER, 1, lease=MINUTE))
        after = outbox.counts()

        assert before == {
            ONE: Counts(pending=1, dead=1, waiting_since=NOON - 2 * MINUTE),
            OTHER: Counts(pending=2, dead=1, waiting_since=NOON - MINUTE),
        }
        assert after == {
            ONE: before[ONE],
            OTHER: Counts(pending=1, delivered=1, dead=1, waiting_since=NOON),
        }

    def test_the_age_of_a_backlog_is_that_of_its_destination(self, outbox: Outbox) -> None:
        some_for_both(outbox)
        outbox.ack(outbox.claim(ONE, 9, lease=MINUTE))
        counts = outbox.counts()

        assert counts[ONE].waiting_since is None
        assert counts[OTHER].waiting_since == NOON - MINUTE

    def test_a_full_outbox_is_full_for_all_destinations(self, outbox: Outbox) -> None:
        some_for_both(outbox)

        assert [outbox.pending_exceed(limit) for limit in (2, 3)] == [True, False]

    def test_changes_are_counted_by_destination(self, outbox: Outbox, clock: Clock) -> None:
        some_for_both(outbox)
        outbox.ack(outbox.claim(OTHER, 9, lease=MINUTE))
        outbox.dead_letter(outbox.claim(ONE, 9, lease=MINUTE)[0], FAULT)
        requeue(outbox.entries, by_name(outbox.entries)["dead2"])
        erase(outbox.entries, by_name(outbox.entries)["b1"])
        apart = outbox.counters()
        outbox.aggregate_counters(clock.now() + timedelta(days=36_500))
        whole = outbox.counters()

        assert {row.since for row in whole} == {None}
        for counters in (apart, whole):
            counted = Counter[tuple[str, Change]]()
            for row in counters:
                counted[row.destination, row.change] += row.entries
            assert counted == {
                (ONE, Change.RECEIVED): 2,
                (ONE, Change.DEAD_LETTERED): 2,
                (OTHER, Change.RECEIVED): 3,
                (OTHER, Change.DEAD_LETTERED): 1,
                (OTHER, Change.DELIVERED): 2,
                (OTHER, Change.LEFT_DEAD): 1,
                (OTHER, Change.REQUEUED): 1,
                (OTHER, Change.LEFT_DELIVERED): 1,
            }
            assert Counter(kind.destination for kind in population(counters)) == {ONE: 1, OTHER: 2}

    @pytest.mark.parametrize("outcome", [State.DELIVERED, State.DEAD])
    def test_a_requeued_entry_keeps_its_destination(self, outbox: Outbox, outcome: State) -> None:
        outbox.add([arrival("a", ONE), arrival("b", OTHER)])
        (entry,) = outbox.claim(OTHER, 9, lease=MINUTE)
        settle(outbox, entry, outcome)
        requeue(outbox.entries, by_name(outbox.entries)["b"])
        (again,) = outbox.claim(OTHER, 9, lease=MINUTE)

        assert (again.message_id, again.destination) == ("b", OTHER)
        assert claim_one(outbox).message_id == "a"

    def test_a_restored_entry_keeps_its_destination(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        some_for_both(outbox)
        originals = everything(outbox.entries)
        with closing(open_store("copy", clock)) as copy:
            copy.entries.restore(originals)

            assert [entry.destination for entry in everything(copy.entries)] == [
                entry.destination for entry in originals
            ]
            assert copy.counts() == outbox.counts()
            assert ids(copy.claim(OTHER, 9, lease=MINUTE)) == {"b1", "b2"}

    def test_entries_are_found_by_destination(self, outbox: Outbox) -> None:
        some_for_both(outbox)
        queries = [
            Query(destination=OTHER),
            Query(destination=ONE, states=(State.DEAD,)),
            Query(destination="nobody"),
        ]
        found = [[entry.message_id for entry in everything(outbox.entries, q)] for q in queries]

        assert found == [["b1", "b2", "dead2"], ["dead1"], []]
        assert [outbox.entries.count(query) for query in queries] == [3, 1, 0]

    def test_a_message_id_is_stored_once_whichever_its_destination(self, outbox: Outbox) -> None:
        assert outbox.add([arrival("a", ONE)]) == [True]
        assert outbox.add([arrival("a", OTHER)]) == [False]
        assert outbox.counts() == {ONE: Counts(pending=1, waiting_since=NOON)}

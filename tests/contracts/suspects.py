"""What every store does when processes crash: its test class inherits this suite."""

from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest

from relay.outbox.entries import Entry, State, total
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import MINUTE, OpenStore, arrival, ids, settle
from tests.harness.entries import claim_one, everything, requeue
from tests.harness.fakes import Clock

LINEAGE = 7

Life = Callable[[], Outbox]
"""Opens the outbox of the next process, after those before it ended with all their claims."""


def end_with_claims(outbox: Outbox, clock: Clock, *, alone: bool = False) -> list[Entry]:
    """Claim in a process that ends without settling anything; return what it had claimed."""
    with closing(outbox):
        claimed = (
            outbox.claim_suspect("segment", lease=MINUTE)
            if alone
            else outbox.claim("segment", 9, lease=MINUTE)
        )
    clock.sleep(60)
    return claimed


class SuspectsContract:
    """Entries whose processes crash are set apart: see `relay.outbox.protocol.Outbox`."""

    @pytest.fixture
    def live(self, open_store: OpenStore, clock: Clock) -> Life:
        """Return what opens the store."""
        return partial(open_store, "relay", clock)

    def test_an_entry_with_two_crashes_is_claimed_alone(self, live: Life, clock: Clock) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival(name) for name in "abc"])
            nobody = outbox.has_suspects("segment")
        company = [end_with_claims(live(), clock) for _ in range(3)]
        with closing(live()) as outbox:
            outbox.add([arrival("innocent")])
            others = outbox.claim("segment", 9, lease=MINUTE)
            any_due = [outbox.has_suspects("segment")]
            alone = []
            for _ in range(4):
                alone.append(outbox.claim_suspect("segment", lease=MINUTE))
                any_due.append(outbox.has_suspects("segment"))

        assert not nobody
        assert [[entry.crashes for entry in claim] for claim in company] == [[0] * 3, [1] * 3, []]
        assert [(entry.message_id, entry.crashes) for entry in others] == [("innocent", 0)]
        assert any_due == [True, True, True, False, False]
        assert sorted(entry.message_id for (entry,) in alone[:3]) == ["a", "b", "c"]
        assert [entry.crashes for (entry,) in alone[:3]] == [2] * 3
        assert alone[3] == []

    def test_each_crash_counts_against_the_claimed_entries(self, live: Life, clock: Clock) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        claims = [end_with_claims(live(), clock)]
        with closing(live()) as outbox:
            outbox.add([arrival("b")])
        claims.append(end_with_claims(live(), clock))
        claims += [end_with_claims(live(), clock, alone=True) for _ in range(4)]
        claims.append(end_with_claims(live(), clock))
        crashes = [{entry.message_id: entry.crashes for entry in claim} for claim in claims]

        assert crashes == [
            {"a": 0},
            {"a": 1, "b": 0},
            {"a": 2},
            {"a": 3},
            {"a": 4},
            {"a": 5},
            {"b": 1},
        ]

    @pytest.mark.parametrize("outcome", State)
    def test_settling_clears_an_entry_of_suspicion(
        self, live: Life, clock: Clock, outcome: State
    ) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        for _ in range(2):
            end_with_claims(live(), clock)
        with closing(live()) as outbox:
            (suspect,) = outbox.claim_suspect("segment", lease=MINUTE)
            settle(outbox, suspect, outcome)
            if outcome is not State.PENDING:
                requeue(outbox.entries, *everything(outbox.entries))
            suspected = outbox.has_suspects("segment")
            again = claim_one(outbox)
        clock.sleep(60)

        assert not suspected
        assert (again.crashes, again.attempts) == (0, 4)
        assert ids(end_with_claims(live(), clock)) == {"a"}

    def test_no_suspect_is_always_the_first(self, live: Life, clock: Clock) -> None:
        """Otherwise an innocent suspect would be claimed at every crash."""
        with closing(live()) as outbox:
            outbox.add([arrival(name) for name in "abcdefgh"])
        for _ in range(2):
            end_with_claims(live(), clock)
        firsts = set()
        with closing(live()) as outbox:
            for _ in range(12):
                firsts |= ids(outbox.claim_suspect("segment", lease=MINUTE))
                clock.sleep(60)

        assert len(firsts) > 1

    def test_an_end_while_posting_a_suspect_counts_only_as_a_crash(
        self, live: Life, clock: Clock
    ) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        for _ in range(2):
            end_with_claims(live(), clock)
        crashes = []
        for crashed in [False, False, True, False, True, False]:
            with closing(live()) as outbox:
                if crashed:
                    outbox.count_crash(LINEAGE)
                    outbox.count_crash(LINEAGE)  # for nothing: it is counted once
                (suspect,) = outbox.claim_suspect("segment", lease=MINUTE)
                crashes.append(suspect.crashes)
                assert outbox.begin_post(suspect, LINEAGE).crashes == suspect.crashes
            clock.sleep(60)

        assert crashes == [2, 2, 3, 3, 4, 4]

    def test_a_crash_of_another_lineage_counts_nothing(self, live: Life, clock: Clock) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        for _ in range(2):
            end_with_claims(live(), clock)
        with closing(live()) as outbox:
            (suspect,) = outbox.claim_suspect("segment", lease=MINUTE)
            outbox.begin_post(suspect, LINEAGE)
        clock.sleep(60)
        with closing(live()) as outbox:
            outbox.count_crash(LINEAGE + 1)
            (suspect,) = outbox.claim_suspect("segment", lease=MINUTE)

        assert suspect.crashes == 2

    @pytest.mark.parametrize("outcome", State)
    def test_a_posted_suspect_is_settled_as_any_other(
        self, live: Life, clock: Clock, outcome: State
    ) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        for _ in range(2):
            end_with_claims(live(), clock)
        with closing(live()) as outbox:
            (suspect,) = outbox.claim_suspect("segment", lease=MINUTE)
            settle(outbox, outbox.begin_post(suspect, LINEAGE), outcome)
            counts = total(outbox.counts())
            outbox.count_crash(LINEAGE)
            suspected = outbox.has_suspects("segment")

        assert getattr(counts, outcome) == 1
        assert not suspected

    def test_a_late_post_of_a_suspect_leaves_a_newer_claim_alone(
        self, live: Life, clock: Clock
    ) -> None:
        with closing(live()) as outbox:
            outbox.add([arrival("a")])
        for _ in range(2):
            end_with_claims(live(), clock)
        with closing(live()) as outbox:
            (late,) = outbox.claim_suspect("segment", lease=MINUTE)
            clock.sleep(60)
            (held,) = outbox.claim_suspect("segment", lease=MINUTE)
            late = outbox.begin_post(late, LINEAGE)
            outbox.ack([late])
            pending = total(outbox.counts()).pending
            outbox.ack([held])

            assert pending == 1
            assert total(outbox.counts()).delivered == 1

"""What every store is held to when it counts: its test class inherits this suite, too."""

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta

from relay.outbox.counters import SLOT, Change, Kind, Tally, forgotten, population
from relay.outbox.entries import State
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import MINUTE, NOON, OpenStore, arrival
from tests.harness.fakes import Clock
from tests.harness.records import MANY, erase, everything, filled, revive


def counted(outbox: Outbox) -> dict[Kind, int]:
    """How many there are of each kind, entry by entry."""
    return Counter(
        Kind(record.provider, record.collection, record.state, record.reason)
        for record in everything(outbox.records)
    )


def changes(tallies: Iterable[Tally]) -> Counter[Change]:
    """How often each change has happened."""
    happened = Counter[Change]()
    for tally in tallies:
        happened[tally.change] += tally.entries
    return happened


class TalliesContract:
    """See `relay.outbox.protocol.Outbox.tallies`."""

    def test_what_is_tallied_is_what_there_is(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        """Whatever has become of them: settled, replayed, erased, forgotten or put back."""
        filled(outbox, clock)
        settled = population(outbox.tallies()), counted(outbox)
        delivered = everything(outbox.records)[1:3]
        revive(outbox.records, *everything(outbox.records)[:20])
        revived = population(outbox.tallies()), counted(outbox)
        erase(outbox.records, *everything(outbox.records)[10:30])
        outbox.deliver(outbox.claim(9, lease=MINUTE))
        clock.sleep(1)
        outbox.purge(clock.now(), 4)
        left = population(outbox.tallies()), counted(outbox)
        with closing(open_store("copy", clock)) as copy:
            copy.records.restore([*everything(outbox.records), *delivered])
            restored = population(copy.tallies()), counted(copy)

        assert len(settled[1]) > 6
        for tallied, there in (settled, revived, left, restored):
            assert tallied == there
        assert forgotten(outbox.tallies()) == 24 == MANY - sum(left[1].values())

    def test_each_change_is_tallied_in_its_five_minutes(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([arrival("a"), arrival("a"), arrival("b", received_at=NOON + MINUTE)])
        outbox.add([arrival("c", received_at=NOON + SLOT)])
        clock.sleep(2 * SLOT.total_seconds())
        outbox.deliver(outbox.claim(9, lease=MINUTE))
        told = [(t.since, t.change, t.entries, t.latest) for t in outbox.tallies()]

        assert told == [
            (NOON + 2 * SLOT, Change.DELIVERED, 3, NOON + 2 * SLOT),
            (NOON + SLOT, Change.RECEIVED, 1, NOON + SLOT),
            (NOON, Change.RECEIVED, 2, NOON + MINUTE),
        ]

    def test_what_is_long_past_is_counted_as_a_whole(self, outbox: Outbox, clock: Clock) -> None:
        filled(outbox, clock)
        before, there = outbox.tallies(), population(outbox.tallies())
        for _ in range(2):
            outbox.fold_tallies(clock.now() - 30 * MINUTE)
        some = outbox.tallies()
        outbox.fold_tallies(clock.now() + timedelta(days=36_500))
        whole = outbox.tallies()

        assert {t.since for t in some if t.since} == {
            t.since for t in before if t.since and t.since >= NOON - 30 * MINUTE
        }
        assert {t.since for t in whole} == {None}
        for tallies in (some, whole):
            assert population(tallies) == there
            assert changes(tallies) == changes(before)
            assert max(t.latest for t in tallies) == max(t.latest for t in before)

    def test_what_is_not_pending_for_the_first_time_is_counted_again(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival("a")])
        outbox.deliver(outbox.claim(1, lease=MINUTE))
        revive(outbox.records, *everything(outbox.records))
        clock.sleep(60)
        waiting_since = outbox.counts().waiting_since
        outbox.deliver(outbox.claim(1, lease=MINUTE))

        assert waiting_since == NOON
        assert outbox.counts().delivered == 1
        assert changes(outbox.tallies())[Change.DELIVERED] == 2
        assert State.PENDING not in {kind.state for kind in population(outbox.tallies())}

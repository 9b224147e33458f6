"""What every store is held to when it counts: its test class inherits this suite, too."""

from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta

from relay.outbox.counters import SLOT, Change, CounterRow, Kind, forgotten, population
from relay.outbox.entries import State, total
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import MINUTE, NOON, OpenStore, arrival
from tests.harness.entries import MANY, erase, everything, filled, requeue
from tests.harness.fakes import Clock


def counted(outbox: Outbox) -> dict[Kind, int]:
    """How many there are of each kind, entry by entry."""
    return Counter(
        Kind(entry.source, entry.destination, entry.collection, entry.state, entry.reason)
        for entry in everything(outbox.entries)
    )


def changes(counters: Iterable[CounterRow]) -> Counter[Change]:
    """How often each change has happened."""
    happened = Counter[Change]()
    for row in counters:
        happened[row.change] += row.entries
    return happened


class CountersContract:
    """See `relay.outbox.protocol.Outbox.counters`."""

    def test_what_is_tallied_is_what_there_is(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        """Whatever has become of them: settled, replayed, erased, forgotten or put back."""
        filled(outbox, clock)
        settled = population(outbox.counters()), counted(outbox)
        delivered = everything(outbox.entries)[1:3]
        requeue(outbox.entries, *everything(outbox.entries)[:20])
        requeued = population(outbox.counters()), counted(outbox)
        erase(outbox.entries, *everything(outbox.entries)[10:30])
        outbox.ack(outbox.claim("segment", 9, lease=MINUTE))
        clock.sleep(1)
        outbox.purge(clock.now(), 4)
        left = population(outbox.counters()), counted(outbox)
        with closing(open_store("copy", clock)) as copy:
            copy.entries.restore([*everything(outbox.entries), *delivered])
            restored = population(copy.counters()), counted(copy)

        assert len(settled[1]) > 6
        for tallied, there in (settled, requeued, left, restored):
            assert tallied == there
        assert forgotten(outbox.counters()) == 24 == MANY - sum(left[1].values())

    def test_each_change_is_tallied_in_its_five_minutes(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([arrival("a"), arrival("a"), arrival("b", received_at=NOON + MINUTE)])
        outbox.add([arrival("c", received_at=NOON + SLOT)])
        clock.sleep(2 * SLOT.total_seconds())
        outbox.ack(outbox.claim("segment", 9, lease=MINUTE))
        told = [(t.since, t.change, t.entries, t.latest) for t in outbox.counters()]

        assert told == [
            (NOON + 2 * SLOT, Change.DELIVERED, 3, NOON + 2 * SLOT),
            (NOON + SLOT, Change.RECEIVED, 1, NOON + SLOT),
            (NOON, Change.RECEIVED, 2, NOON + MINUTE),
        ]

    def test_what_is_long_past_is_counted_as_a_whole(self, outbox: Outbox, clock: Clock) -> None:
        filled(outbox, clock)
        before, there = outbox.counters(), population(outbox.counters())
        for _ in range(2):
            outbox.aggregate_counters(clock.now() - 30 * MINUTE)
        some = outbox.counters()
        outbox.aggregate_counters(clock.now() + timedelta(days=36_500))
        whole = outbox.counters()

        assert {t.since for t in some if t.since} == {
            t.since for t in before if t.since and t.since >= NOON - 30 * MINUTE
        }
        assert {t.since for t in whole} == {None}
        for counters in (some, whole):
            assert population(counters) == there
            assert changes(counters) == changes(before)
            assert max(t.latest for t in counters) == max(t.latest for t in before)

    def test_what_is_not_pending_for_the_first_time_is_counted_again(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival("a")])
        outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
        requeue(outbox.entries, *everything(outbox.entries))
        clock.sleep(60)
        waiting_since = total(outbox.counts()).waiting_since
        outbox.ack(outbox.claim("segment", 1, lease=MINUTE))

        assert waiting_since == NOON
        assert total(outbox.counts()).delivered == 1
        assert changes(outbox.counters())[Change.DELIVERED] == 2
        assert State.PENDING not in {kind.state for kind in population(outbox.counters())}

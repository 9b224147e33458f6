"""What every store counts: its test class inherits this suite."""

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
    """Count the entries of each kind one by one."""
    return Counter(
        Kind(entry.source, entry.destination, entry.collection, entry.state, entry.reason)
        for entry in everything(outbox.entries)
    )


def changes(counters: Iterable[CounterRow]) -> Counter[Change]:
    """Return how often each change has happened."""
    happened = Counter[Change]()
    for row in counters:
        happened[row.change] += row.entries
    return happened


class CountersContract:
    """The counters of changes: see `relay.outbox.protocol.Outbox.counters`."""

    def test_the_counters_agree_with_the_entries(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        """That holds when they are settled, requeued, erased, purged or restored."""
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
        for counted_by_outbox, there in (settled, requeued, left, restored):
            assert counted_by_outbox == there
        assert forgotten(outbox.counters()) == 24 == MANY - sum(left[1].values())

    def test_each_change_is_counted_in_its_five_minutes(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([arrival("a"), arrival("a"), arrival("b", received_at=NOON + MINUTE)])
        outbox.add([arrival("c", received_at=NOON + SLOT)])
        clock.sleep(2 * SLOT.total_seconds())
        outbox.ack(outbox.claim("segment", 9, lease=MINUTE))
        rows = [(row.since, row.change, row.entries, row.latest) for row in outbox.counters()]

        assert rows == [
            (NOON + 2 * SLOT, Change.DELIVERED, 3, NOON + 2 * SLOT),
            (NOON + SLOT, Change.RECEIVED, 1, NOON + SLOT),
            (NOON, Change.RECEIVED, 2, NOON + MINUTE),
        ]

    def test_old_slots_are_added_up(self, outbox: Outbox, clock: Clock) -> None:
        filled(outbox, clock)
        before, there = outbox.counters(), population(outbox.counters())
        for _ in range(2):
            outbox.aggregate_counters(clock.now() - 30 * MINUTE)
        some = outbox.counters()
        outbox.aggregate_counters(clock.now() + timedelta(days=36_500))
        whole = outbox.counters()

        assert {row.since for row in some if row.since} == {
            row.since for row in before if row.since and row.since >= NOON - 30 * MINUTE
        }
        assert {row.since for row in whole} == {None}
        for counters in (some, whole):
            assert population(counters) == there
            assert changes(counters) == changes(before)
            assert max(row.latest for row in counters) == max(row.latest for row in before)

    def test_an_entry_delivered_twice_is_counted_twice(self, outbox: Outbox, clock: Clock) -> None:
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

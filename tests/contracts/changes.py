"""What every store does when an operator changes entries: its test class inherits this suite."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from msgspec import structs

from relay.errors import OutboxError
from relay.outbox.entries import (
    Arrival,
    HistoryEvent,
    Keys,
    Operation,
    Query,
    Requeue,
    State,
    StoredEntry,
)
from relay.outbox.protocol import EntryStore, Outbox
from tests.contracts.outbox import FAULT, MINUTE, NOON, OpenStore, arrival, settle, states
from tests.harness.entries import (
    DOWN,
    MANY,
    as_requeue,
    by_name,
    claim_one,
    erase,
    everything,
    filled,
    requeue,
    without_ids,
)
from tests.harness.fakes import Clock
from tests.harness.processes import within

RunSql = Callable[[str], list[Any]]
"""Runs a statement on the tables of the store named `relay`, without the store."""

CHANGES: dict[str, Callable[[EntryStore, StoredEntry, Operation], int]] = {
    "requeue": lambda entries, entry, operation: entries.requeue([as_requeue(entry)], operation),
    "erase": lambda entries, entry, operation: entries.erase([entry.id], operation),
}

_every_change = pytest.mark.parametrize("change", CHANGES)


class ChangesContract:
    """Changes that operators make to entries: see `relay.outbox.protocol.EntryStore`.

    A store's test class has the fixture `run_sql`.
    """

    def test_requeued_entries_are_due_again(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([arrival("a", body=b"1"), arrival("b", body=b"2", fault=FAULT)])
        outbox.ack(outbox.claim("segment", 1, lease=MINUTE))
        delivered_at = clock.now()
        before = by_name(outbox.entries)
        clock.sleep(60)
        count = requeue(outbox.entries, *before.values())
        after = by_name(outbox.entries)
        due = {entry.message_id: entry for entry in outbox.claim("segment", 9, lease=MINUTE)}
        replayed = HistoryEvent(clock.now(), "replayed", "")

        assert count == 2
        assert after["a"].history == (HistoryEvent(delivered_at, "delivered", ""), replayed)
        assert after["b"].history == (HistoryEvent(NOON, "dead", "no_recipient"), replayed)
        for name, entry in after.items():
            assert entry == structs.replace(
                before[name],
                state=State.PENDING,
                collection="Email Sent",
                delivered_at=None,
                reason=None,
                detail=None,
                history=entry.history,
            )
        assert {name: (entry.body, entry.crashes) for name, entry in due.items()} == {
            "a": (b"1", 0),
            "b": (b"2", 0),
        }

    def test_the_history_has_each_replay_and_delivery_in_order(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival("a")])
        for _ in range(3):
            outbox.ack([claim_one(outbox)])
            clock.sleep(1)
            requeue(outbox.entries, by_name(outbox.entries)["a"])
        happened = [each.what for each in by_name(outbox.entries)["a"].history]

        assert happened == ["delivered", "replayed"] * 3

    def test_a_delivery_with_a_note_has_it_in_the_history(self, outbox: Outbox) -> None:
        outbox.add([arrival("a"), arrival("b")])
        first, second = outbox.claim("segment", 2, lease=MINUTE)
        outbox.ack([first], "sent twice")
        outbox.ack([second])
        histories = {
            entry.message_id: [(event.what, event.detail) for event in entry.history]
            for entry in by_name(outbox.entries).values()
        }

        assert histories == {
            first.message_id: [("posted", "sent twice")],
            second.message_id: [],
        }
        assert states(outbox)["delivered"] == 2

    def test_only_delivered_and_dead_entries_are_requeued(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        model = filled(outbox, clock)
        operation = outbox.entries.begin("replay", "all")
        requeues = [Requeue(entry.id, "Email Sent", Keys(77)) for entry in model]
        absent = Requeue(model[-1].id + 1, "Email Sent", Keys(77))
        count = outbox.entries.requeue([*requeues, absent], operation)
        changed = everything(outbox.entries, Query(key=("user", 77)))
        pending = [entry for entry in model if entry.state is State.PENDING]

        assert count == MANY - len(pending)
        assert [r.id for r in changed] == [r.id for r in model if r not in pending]
        assert [r for r in everything(outbox.entries) if r not in changed] == pending

    def test_a_requeued_entry_is_found_by_its_new_keys_and_collection(self, outbox: Outbox) -> None:
        keyed = Arrival("vero", "segment", "a", NOON, b"{}", FAULT, "Email Sent", Keys(1, 2, 3))
        outbox.add([keyed, arrival("keyless", fault=FAULT)])
        before = by_name(outbox.entries)
        operation = outbox.entries.begin("replay", "both")
        requeues = [
            Requeue(before["a"].id, "Email Opened", Keys(None, 22, 33)),
            Requeue(before["keyless"].id, "Email Opened", Keys(1, 22)),
        ]
        outbox.entries.requeue(requeues, operation)
        entries = outbox.entries
        wanted = [
            Query(key=("user", 1)),
            Query(key=("address", 2)),
            Query(key=("address", 22)),
            Query(key=("email", 33)),
        ]
        names = [{entry.message_id for entry in everything(entries, q)} for q in wanted]

        assert names == [{"keyless"}, set(), {"a", "keyless"}, {"a"}]
        assert entries.count(Query(collection="Email Opened")) == 2
        assert entries.count(Query(keyless=True)) == 0

    @pytest.mark.parametrize("outcome", State)
    def test_a_claim_from_before_the_replay_settles_nothing(
        self, outbox: Outbox, clock: Clock, outcome: State
    ) -> None:
        outbox.add([arrival("a")])
        late = claim_one(outbox)
        clock.sleep(60)
        holder = claim_one(outbox)
        outbox.ack([holder])
        requeue(outbox.entries, by_name(outbox.entries)["a"])
        for entry in (late, holder):
            settle(outbox, entry, outcome)
        history = by_name(outbox.entries)["a"].history

        assert states(outbox) == Counter(pending=1)
        assert [each.what for each in history] == ["delivered", "replayed"]
        assert claim_one(outbox).message_id == "a"

    @pytest.mark.parametrize("how", ["replayed", "restored"])
    def test_another_forwarder_notices_what_is_due_again(
        self, open_store: OpenStore, clock: Clock, how: str
    ) -> None:
        with (
            closing(open_store("relay", clock)) as operators,
            closing(open_store("relay", clock)) as forwarding,
        ):

            def changed() -> bool:
                return forwarding.changed("segment")

            def quiet() -> bool:
                return within(10, lambda: not changed())

            listens = changed() and quiet()
            operators.add([arrival("a", fault=FAULT)])
            hears = within(10, changed) and quiet()
            (entry,) = everything(operators.entries)
            if how == "replayed":
                requeue(operators.entries, entry)
            else:
                copy = structs.replace(entry, message_id="b", state=State.PENDING)
                operators.entries.restore([copy])

            assert listens
            assert hears
            assert within(10, changed)

    def test_an_operation_is_resumed_until_it_is_finished(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        entries = outbox.entries
        first = entries.begin("replay", "dead letters")
        clock.sleep(1)
        again = entries.begin("replay", "dead letters")
        others = [entries.begin("erase", "dead letters"), entries.begin("replay", "everything")]
        entries.finish(first)
        ended = clock.now()
        new = entries.begin("replay", "dead letters")
        latest = entries.operations(9)

        assert first == again
        assert (first.started_at, first.finished_at, first.entries) == (NOON, None, 0)
        assert latest == [new, *others[::-1], structs.replace(first, finished_at=ended)]
        assert entries.operations(2) == latest[:2]

    def test_an_operation_counts_what_it_has_changed(self, outbox: Outbox, clock: Clock) -> None:
        model = filled(outbox, clock)
        operation = outbox.entries.begin("replay", "all")
        for step in (model[:20], model[20:50]):
            outbox.entries.requeue([as_requeue(r) for r in step], operation)
        replayed = outbox.entries.operations(1)[0]
        pending = outbox.entries.count(Query(states=(State.PENDING,)))
        erasure = outbox.entries.begin("erase", "all")
        outbox.entries.erase([entry.id for entry in model[:7]], erasure)
        erased = outbox.entries.operations(1)[0]

        assert replayed.entries == pending - sum(r.state is State.PENDING for r in model)
        assert erased.entries == 7

    @_every_change
    def test_a_change_that_cannot_be_counted_is_not_made(
        self, outbox: Outbox, run_sql: RunSql, change: str
    ) -> None:
        outbox.add([arrival("a", fault=FAULT)])
        before = everything(outbox.entries)
        operation = outbox.entries.begin(change, "it")
        run_sql("ALTER TABLE operations RENAME TO away")
        with pytest.raises(OutboxError):
            CHANGES[change](outbox.entries, before[0], operation)
        run_sql("ALTER TABLE away RENAME TO operations")

        assert everything(outbox.entries) == before
        assert outbox.entries.operations(9) == [operation]
        assert CHANGES[change](outbox.entries, before[0], operation) == 1

    def test_an_erased_entry_leaves_nothing_behind(
        self, outbox: Outbox, clock: Clock, run_sql: RunSql
    ) -> None:
        model = filled(outbox, clock)
        held = outbox.claim("segment", 5, lease=MINUTE)
        erased, left = model[:30], model[30:]
        count = erase(outbox.entries, *erased)
        again = erase(outbox.entries, *erased)
        outbox.ack(held)
        remaining = [r.message_id for r in everything(outbox.entries)]
        erase(outbox.entries, *left)
        rows = [run_sql(f"SELECT count(*) FROM {table}") for table in ("entries", "history")]  # noqa: S608 (two names)

        assert {entry.state for entry in erased} == {*State}
        assert (count, again) == (len(erased), 0)
        assert remaining == [entry.message_id for entry in left]
        assert rows == [[(0,)]] * 2
        assert outbox.add([arrival(erased[0].message_id)]) == [True]

    def test_a_claim_on_an_erased_entry_does_not_settle_a_later_one(self, outbox: Outbox) -> None:
        outbox.add([arrival("a"), arrival("b")])
        held = outbox.claim("segment", 9, lease=MINUTE)
        erase(outbox.entries, *everything(outbox.entries))
        outbox.add([arrival("c"), arrival("d")])
        outbox.release(held, DOWN)
        outbox.ack(held)

        assert states(outbox) == Counter(pending=2)
        assert [entry.history for entry in everything(outbox.entries)] == [(), ()]
        assert {entry.message_id for entry in outbox.claim("segment", 9, lease=MINUTE)} == {
            "c",
            "d",
        }

    def test_a_purged_entry_leaves_nothing_behind(
        self, outbox: Outbox, clock: Clock, run_sql: RunSql
    ) -> None:
        filled(outbox, clock)
        outbox.ack(outbox.claim("segment", MANY, lease=MINUTE))
        clock.sleep(1)
        delivered = states(outbox)["delivered"]
        forgotten = outbox.purge(clock.now(), MANY)
        left = "SELECT count(*) FROM history WHERE entry NOT IN (SELECT id FROM entries)"

        assert forgotten == delivered > 30
        assert run_sql(left) == [(0,)]

    def test_restored_entries_are_what_they_were(
        self, outbox: Outbox, open_store: OpenStore, clock: Clock
    ) -> None:
        model = filled(outbox, clock)
        with closing(open_store("copy", clock)) as copy:
            counts = [copy.entries.restore(model[:40]), copy.entries.restore(model)]

            assert counts == [40, MANY - 40]
            assert without_ids(everything(copy.entries)) == without_ids(model)
            assert copy.entries.restore([]) == 0

    def test_restoring_leaves_present_entries_alone(self, outbox: Outbox, clock: Clock) -> None:
        model = filled(outbox, clock)
        held = {entry.message_id for entry in outbox.claim("segment", MANY, lease=MINUTE)}
        altered = [
            structs.replace(entry, body=b"another", state=State.DELIVERED, keys=Keys(99))
            for entry in model
        ]
        new = structs.replace(model[0], message_id="new")
        count = outbox.entries.restore([*altered, new, new])
        found = everything(outbox.entries)

        assert held == {r.message_id for r in model if r.state is State.PENDING}
        assert count == 1
        assert [(r.body, r.state, r.history) for r in found[:-1]] == [
            (r.body, r.state, r.history) for r in model
        ]
        assert [entry.message_id for entry in outbox.claim("segment", MANY, lease=MINUTE)] == [
            "new"
        ]

    @pytest.mark.parametrize("age", [timedelta(days=400), timedelta(days=-1)])
    def test_a_restored_pending_entry_is_due(self, outbox: Outbox, age: timedelta) -> None:
        """That includes one that was received while the clock was ahead."""
        outbox.add([arrival("a"), arrival("b", fault=FAULT)])
        entries = [
            structs.replace(entry, received_at=NOON - age) for entry in everything(outbox.entries)
        ]
        erase(outbox.entries, *entries)
        outbox.entries.restore(entries)
        (entry,) = outbox.claim("segment", 9, lease=MINUTE)

        assert (entry.message_id, entry.received_at) == ("a", NOON - age)
        assert (entry.attempts, entry.crashes) == (1, 0)

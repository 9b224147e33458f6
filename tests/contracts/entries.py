"""What every store is held to as an operator sees it: its test class inherits this suite, too."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.operations.search import reasons
from relay.outbox.entries import Arrival, HistoryEvent, Keys, Query, State
from relay.outbox.protocol import Outbox
from tests.contracts.outbox import FAULT, MINUTE, NOON, arrival
from tests.harness.entries import (
    DOWN,
    KEY,
    MANY,
    by_name,
    claim_one,
    everything,
    filled,
    matches,
    pages,
    queries,
)
from tests.harness.fakes import Clock


class EntryStoreContract:
    """How entries are found and told of: see `relay.outbox.protocol.EntryStore`."""

    def test_a_record_is_all_that_is_known_of_an_entry(self, outbox: Outbox, clock: Clock) -> None:
        model = filled(outbox, clock)
        plain = outbox.entries.find(Query(), MANY, newest_first=False)

        assert everything(outbox.entries) == model
        assert plain == [structs.replace(entry, history=()) for entry in model]

    def test_each_filter_finds_what_it_names(self, outbox: Outbox, clock: Clock) -> None:
        model = filled(outbox, clock)
        alone = [
            Query(ids=(model[3].id, model[50].id)),
            *(Query(states=(state,)) for state in State),
            Query(states=(State.DEAD, State.PENDING)),
            Query(source="customerio"),
            Query(collection="Email Opened"),
            Query(reason="rejected"),
            Query(since=NOON - 20 * MINUTE),
            Query(until=NOON - 20 * MINUTE),
            Query(message_id="event-9"),
            Query(key=("user", 2)),
            Query(key=("address", KEY)),
            Query(key=("email", 5)),
            Query(keyless=True),
        ]
        found = [everything(outbox.entries, query) for query in alone]

        assert found == [[entry for entry in model if matches(entry, q)] for q in alone]
        assert all(0 < len(entries) < MANY for entries in found)
        assert [outbox.entries.count(query) for query in alone] == [len(each) for each in found]

    def test_any_paging_of_any_query_visits_each_entry_once(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        model = filled(outbox, clock)

        @settings(max_examples=200)
        @given(queries(model), st.integers(1, MANY), st.booleans(), st.booleans())
        def check(query: Query, limit: int, newest_first: bool, with_history: bool) -> None:  # noqa: FBT001 (drawn)
            options = {"newest_first": newest_first, "with_history": with_history}
            found = list(pages(outbox.entries, query, limit, **options))
            wanted = [entry for entry in model if matches(entry, query)]
            if newest_first:
                wanted.reverse()
            end = model[MANY // 2].id
            this_far = outbox.entries.find(query, MANY, end=end, newest_first=newest_first)
            side = 1 if newest_first else -1

            assert [r.id for r in this_far] == [r.id for r in wanted if side * (r.id - end) >= 0]
            if not with_history:
                wanted = [structs.replace(entry, history=()) for entry in wanted]

            assert [entry for page in found for entry in page] == wanted
            assert all(len(page) == limit for page in found[:-1])
            assert outbox.entries.count(query) == len(wanted)

        check()

    def test_large_bodies_make_small_pages_and_one_always_comes(self, outbox: Outbox) -> None:
        sizes = [3, 3, 3, 12, 1, 1]
        outbox.add(
            [arrival(f"{number}", body=bytes(size * 2**20)) for number, size in enumerate(sizes)]
        )
        forth = list(pages(outbox.entries, newest_first=False))
        back = list(pages(outbox.entries))
        largest = max(sum(len(entry.body) for entry in page) for page in [*forth, *back])

        assert [len(r.body) // 2**20 for page in forth for r in page] == sizes
        assert [len(r.body) // 2**20 for page in back for r in page] == sizes[::-1]
        assert len(forth) >= 2
        assert largest <= 20 * 2**20

    def test_a_key_is_found_wherever_it_is(self, outbox: Outbox) -> None:
        """They are indexed by blocks of 512 entries in one store, of 4,096 in the other."""
        places = [0, 1, 4094, 4095, 4096, 4097, 8190, 8191, 8192, 8193, 8999]
        groups = [
            [
                Arrival(
                    "vero",
                    "segment",
                    str(n),
                    NOON,
                    b"{}",
                    keys=Keys(KEY if n in places else n, None, n),
                )
                for n in range(start, start + 3_000)
            ]
            for start in (0, 3_000, 6_000)
        ]
        for group in groups:
            outbox.add(group)
        query = Query(key=("user", KEY))
        forth = everything(outbox.entries, query)
        back = outbox.entries.find(query, 5, start=forth[-1].id)

        assert [int(entry.message_id) for entry in forth] == places
        assert [int(entry.message_id) for entry in back] == places[-2:-7:-1]
        assert outbox.entries.count(query) == len(places)
        assert [r.message_id for r in everything(outbox.entries, Query(key=("email", 8_500)))] == [
            "8500"
        ]

    def test_an_empty_outbox_has_no_records(self, outbox: Outbox) -> None:
        for query in (Query(), Query(key=("user", 1)), Query(ids=(1,)), Query(keyless=True)):
            assert outbox.entries.find(query, 9, with_history=True) == []
            assert outbox.entries.count(query) == 0
        assert reasons(outbox) == []
        assert outbox.entries.operations(9) == []

    def test_the_commonest_reason_comes_first_with_its_newest_dead_letter(
        self, outbox: Outbox
    ) -> None:
        faults = ["rejected"] * 3 + ["poison"] + ["no_recipient"] * 2 + ["rejected"]
        for number, reason in enumerate(faults):
            fault = Unusable(DeadReason(reason), "why")
            outbox.add([arrival(f"{number}", fault=fault), arrival(f"pending {number}")])

        assert [(r.reason, r.count, r.example.message_id) for r in reasons(outbox)] == [
            ("rejected", 4, "6"),
            ("no_recipient", 2, "5"),
            ("poison", 1, "3"),
        ]

    def test_whether_more_are_pending_than_a_limit_is_known(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        empty = outbox.pending_exceed(0)
        model = filled(outbox, clock)
        pending = sum(entry.state is State.PENDING for entry in model)
        held = outbox.claim("segment", 3, lease=MINUTE)
        limits = (0, pending - 4, pending - 3, pending - 1, pending, pending + 1)
        before = [outbox.pending_exceed(limit) for limit in limits]
        outbox.ack(held)
        after = [outbox.pending_exceed(limit) for limit in limits]

        assert not empty
        assert before == [True, True, True, True, False, False]
        assert after == [True, True, False, False, False, False]

    def test_each_post_in_vain_is_told(self, outbox: Outbox, clock: Clock) -> None:
        outbox.add([arrival("a")])
        told = []
        for answer in (DOWN, None, "429 Too Many Requests"):
            outbox.release(outbox.claim("segment", 1, lease=MINUTE), answer)
            told.append(HistoryEvent(clock.now(), "posted", answer or ""))
            clock.sleep(1)
        outbox.dead_letter(claim_one(outbox), FAULT)
        history = by_name(outbox.entries)["a"].history

        assert history == (told[0], told[2], HistoryEvent(clock.now(), "dead", FAULT.reason))

    def test_only_of_what_is_still_held_anything_is_told(
        self, outbox: Outbox, clock: Clock
    ) -> None:
        outbox.add([arrival(name) for name in "abc"])
        late = outbox.claim("segment", 9, lease=MINUTE)
        clock.sleep(60)
        held = {entry.message_id: entry for entry in outbox.claim("segment", 9, lease=MINUTE)}
        outbox.ack([held["a"]])
        outbox.release(late, DOWN)
        outbox.release([held["a"], held["b"]], "429")
        outbox.dead_letter(held["a"], FAULT)
        for entry in late:
            outbox.dead_letter(entry, FAULT)
        histories = {name: entry.history for name, entry in by_name(outbox.entries).items()}

        assert histories == {"a": (), "b": (HistoryEvent(clock.now(), "posted", "429"),), "c": ()}

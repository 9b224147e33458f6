"""Records beside the simplest model of them: an outbox as an operator sees it."""

from collections.abc import Iterator, Sequence

from hypothesis import strategies as st
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.outbox.entries import (
    NO_KEYS,
    Arrival,
    Entry,
    HistoryEvent,
    Keys,
    Query,
    Requeue,
    State,
    StoredEntry,
)
from relay.outbox.protocol import EntryStore, Outbox
from tests.contracts.outbox import MINUTE, NOON
from tests.harness.fakes import Clock

DOWN = "503 Service Unavailable"
COLLECTIONS = ("Email Opened", "Email Bounced", None)
REASONS = (DeadReason.REJECTED, DeadReason.OVERSIZED, DeadReason.UNREADABLE)
MANY = 60
KEY = 2**32 - 1
ALL = Query()


def varied(number: int) -> Arrival:
    """The events differ in everything that they can be found by; each sixth is dead at once."""
    address = (None, 1, 2, KEY, 3, 5, None)[number % 7]
    keys = Keys(number % 5 or None, address, number % 6 or None)
    return Arrival(
        source="vero" if number % 3 else "customerio",
        destination="segment",
        message_id=f"event-{number}",
        received_at=NOON - (number * 37 % MANY) * MINUTE,
        body=f"body of {number}".encode(),
        fault=Unusable(REASONS[number % 3], f"detail {number}") if number % 6 == 5 else None,
        collection=COLLECTIONS[number % 3],
        keys=keys if number % 8 else NO_KEYS,
    )


def filled(outbox: Outbox, clock: Clock) -> list[StoredEntry]:
    """What the outbox holds once it was given the varied events and some were settled."""
    arrivals = [varied(number) for number in range(MANY)]
    for each in arrivals:
        outbox.add([each])
    clock.sleep(1)
    for entry in outbox.claim("segment", MANY, lease=MINUTE):
        number = int(entry.message_id.removeprefix("event-"))
        match number % 4:
            case 0:
                outbox.release([entry])
            case 1:
                outbox.ack([entry])
            case 2:
                outbox.dead_letter(entry, Unusable(REASONS[number % 3], "refused"))
            case 3:
                outbox.release([entry], DOWN)
    found = outbox.entries.find(Query(), MANY, newest_first=False)
    return [
        expected(number, entry.id, clock) for number, entry in zip(range(MANY), found, strict=True)
    ]


def expected(number: int, id_: int, clock: Clock) -> StoredEntry:
    """What has become of the event of that number."""
    each, now = varied(number), clock.now()
    reason = REASONS[number % 3]
    entry = StoredEntry(
        id=id_,
        source=each.source,
        destination=each.destination,
        message_id=each.message_id,
        state=State.PENDING,
        collection=each.collection,
        received_at=each.received_at,
        attempts=1,
        delivered_at=None,
        reason=None,
        detail=None,
        keys=each.keys,
        body=each.body,
    )
    if each.fault:
        return structs.replace(
            entry, state=State.DEAD, attempts=0, reason=reason, detail=each.fault.detail
        )
    match number % 4:
        case 1:
            return structs.replace(entry, state=State.DELIVERED, delivered_at=now)
        case 2:
            history = (HistoryEvent(now, "dead", reason),)
            return structs.replace(
                entry, state=State.DEAD, reason=reason, detail="refused", history=history
            )
        case 3:
            return structs.replace(entry, history=(HistoryEvent(now, "posted", DOWN),))
    return entry


def queries(model: Sequence[StoredEntry]) -> st.SearchStrategy[Query]:
    """Any question about the records, and some about what is not there."""
    moments = [entry.received_at for entry in model]
    kinds = st.sampled_from(["user", "address", "email"])
    return st.builds(
        Query,
        ids=st.just(()) | st.lists(st.integers(0, model[-1].id + 1), max_size=40).map(tuple),
        states=st.just(()) | st.lists(st.sampled_from(State), unique=True).map(tuple),
        source=st.sampled_from([None, None, "vero", "customerio", "nobody"]),
        destination=st.sampled_from([None, None, "segment", "vero", "nobody"]),
        collection=st.sampled_from([None, None, *COLLECTIONS, "Email"]),
        reason=st.sampled_from([None, None, *REASONS, "poison"]),
        since=st.none() | st.sampled_from(moments),
        until=st.none() | st.sampled_from(moments),
        message_id=st.sampled_from([None] * 9 + [model[7].message_id, model[8].message_id, ""]),
        key=st.none() | st.tuples(kinds, st.sampled_from([0, 1, 2, 3, 5, KEY])),
        keyless=st.sampled_from([False, False, True]),
    )


def matches(entry: StoredEntry, query: Query) -> bool:
    """Whether it is one of those that are asked for."""
    return (
        (not query.ids or entry.id in query.ids)
        and (not query.states or entry.state in query.states)
        and query.source in {None, entry.source}
        and query.destination in {None, entry.destination}
        and query.collection in {None, entry.collection}
        and query.reason in {None, entry.reason}
        and (query.since is None or entry.received_at >= query.since)
        and (query.until is None or entry.received_at < query.until)
        and query.message_id in {None, entry.message_id}
        and (query.key is None or getattr(entry.keys, query.key[0]) == query.key[1])
        and (not query.keyless or entry.keys == NO_KEYS)
    )


def pages(
    entries: EntryStore, query: Query = ALL, limit: int = 500, **options: bool
) -> Iterator[list[StoredEntry]]:
    """Page by page, each beginning behind the last."""
    start = None
    while page := entries.find(query, limit, start=start, **options):
        yield page
        start = page[-1].id


def everything(entries: EntryStore, query: Query = ALL) -> list[StoredEntry]:
    """All that are asked for with their histories, oldest first."""
    found = pages(entries, query, newest_first=False, with_history=True)
    return [entry for page in found for entry in page]


def by_name(entries: EntryStore) -> dict[str, StoredEntry]:
    """All there are with their histories, by message id."""
    return {entry.message_id: entry for entry in everything(entries)}


def as_requeue(entry: StoredEntry) -> Requeue:
    """By today's mapping it is what it was."""
    return Requeue(entry.id, entry.collection or "Email Sent", entry.keys)


def requeue(entries: EntryStore, *requeued: StoredEntry) -> int:
    """Replay the records, as one operation; how many."""
    operation = entries.begin("replay", "some")
    count = entries.requeue([as_requeue(entry) for entry in requeued], operation)
    entries.finish(operation)
    return count


def erase(entries: EntryStore, *erased: StoredEntry) -> int:
    """Erase the records, as one operation; how many."""
    operation = entries.begin("erase", "some")
    count = entries.erase([entry.id for entry in erased], operation)
    entries.finish(operation)
    return count


def without_ids(entries: Sequence[StoredEntry]) -> list[StoredEntry]:
    """What is the same of them in every store."""
    return [structs.replace(entry, id=0) for entry in entries]


def claim_one(outbox: Outbox) -> Entry:
    """The only entry that is due."""
    (entry,) = outbox.claim("segment", 9, lease=MINUTE)
    return entry

"""Records beside the simplest model of them: an outbox as an operator sees it."""

from collections.abc import Iterator, Sequence

from hypothesis import strategies as st
from msgspec import structs

from relay.events import DeadReason, Unusable
from relay.outbox.entries import (
    NO_KEYS,
    Arrival,
    Entry,
    Happening,
    Keys,
    Query,
    Record,
    Revival,
    State,
)
from relay.outbox.protocol import Outbox, Records
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
        provider="vero" if number % 3 else "customerio",
        message_id=f"event-{number}",
        received_at=NOON - (number * 37 % MANY) * MINUTE,
        body=f"body of {number}".encode(),
        fault=Unusable(REASONS[number % 3], f"detail {number}") if number % 6 == 5 else None,
        collection=COLLECTIONS[number % 3],
        keys=keys if number % 8 else NO_KEYS,
    )


def filled(outbox: Outbox, clock: Clock) -> list[Record]:
    """What the outbox holds once it was given the varied events and some were settled."""
    arrivals = [varied(number) for number in range(MANY)]
    for each in arrivals:
        outbox.add([each])
    clock.sleep(1)
    for entry in outbox.claim(MANY, lease=MINUTE):
        number = int(entry.message_id.removeprefix("event-"))
        match number % 4:
            case 0:
                outbox.release([entry])
            case 1:
                outbox.deliver([entry])
            case 2:
                outbox.bury(entry, Unusable(REASONS[number % 3], "refused"))
            case 3:
                outbox.release([entry], DOWN)
    found = outbox.records.find(Query(), MANY, newest_first=False)
    return [
        expected(number, record.id, clock)
        for number, record in zip(range(MANY), found, strict=True)
    ]


def expected(number: int, id_: int, clock: Clock) -> Record:
    """What has become of the event of that number."""
    each, now = varied(number), clock.now()
    reason = REASONS[number % 3]
    record = Record(
        id=id_,
        provider=each.provider,
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
            record, state=State.DEAD, attempts=0, reason=reason, detail=each.fault.detail
        )
    match number % 4:
        case 1:
            return structs.replace(record, state=State.DELIVERED, delivered_at=now)
        case 2:
            history = (Happening(now, "dead", reason),)
            return structs.replace(
                record, state=State.DEAD, reason=reason, detail="refused", history=history
            )
        case 3:
            return structs.replace(record, history=(Happening(now, "posted", DOWN),))
    return record


def queries(model: Sequence[Record]) -> st.SearchStrategy[Query]:
    """Any question about the records, and some about what is not there."""
    moments = [record.received_at for record in model]
    kinds = st.sampled_from(["user", "address", "email"])
    return st.builds(
        Query,
        ids=st.just(()) | st.lists(st.integers(0, model[-1].id + 1), max_size=40).map(tuple),
        states=st.just(()) | st.lists(st.sampled_from(State), unique=True).map(tuple),
        provider=st.sampled_from([None, None, "vero", "customerio", "nobody"]),
        collection=st.sampled_from([None, None, *COLLECTIONS, "Email"]),
        reason=st.sampled_from([None, None, *REASONS, "poison"]),
        since=st.none() | st.sampled_from(moments),
        until=st.none() | st.sampled_from(moments),
        message_id=st.sampled_from([None] * 9 + [model[7].message_id, model[8].message_id, ""]),
        key=st.none() | st.tuples(kinds, st.sampled_from([0, 1, 2, 3, 5, KEY])),
        keyless=st.sampled_from([False, False, True]),
    )


def matches(record: Record, query: Query) -> bool:
    """Whether it is one of those that are asked for."""
    return (
        (not query.ids or record.id in query.ids)
        and (not query.states or record.state in query.states)
        and query.provider in {None, record.provider}
        and query.collection in {None, record.collection}
        and query.reason in {None, record.reason}
        and (query.since is None or record.received_at >= query.since)
        and (query.until is None or record.received_at < query.until)
        and query.message_id in {None, record.message_id}
        and (query.key is None or getattr(record.keys, query.key[0]) == query.key[1])
        and (not query.keyless or record.keys == NO_KEYS)
    )


def pages(
    records: Records, query: Query = ALL, limit: int = 500, **options: bool
) -> Iterator[list[Record]]:
    """Page by page, each beginning behind the last."""
    start = None
    while page := records.find(query, limit, start=start, **options):
        yield page
        start = page[-1].id


def everything(records: Records, query: Query = ALL) -> list[Record]:
    """All that are asked for with their histories, oldest first."""
    found = pages(records, query, newest_first=False, with_history=True)
    return [record for page in found for record in page]


def by_name(records: Records) -> dict[str, Record]:
    """All there are with their histories, by message id."""
    return {record.message_id: record for record in everything(records)}


def revival(record: Record) -> Revival:
    """By today's mapping it is what it was."""
    return Revival(record.id, record.collection or "Email Sent", record.keys)


def revive(records: Records, *revived: Record) -> int:
    """Replay the records, as one operation; how many."""
    operation = records.begin("replay", "some")
    count = records.revive([revival(record) for record in revived], operation)
    records.finish(operation)
    return count


def erase(records: Records, *erased: Record) -> int:
    """Erase the records, as one operation; how many."""
    operation = records.begin("erase", "some")
    count = records.erase([record.id for record in erased], operation)
    records.finish(operation)
    return count


def without_ids(records: Sequence[Record]) -> list[Record]:
    """What is the same of them in every store."""
    return [structs.replace(record, id=0) for record in records]


def claim_one(outbox: Outbox) -> Entry:
    """The only entry that is due."""
    (entry,) = outbox.claim(9, lease=MINUTE)
    return entry

"""Finds entries by their columns, and by the person or the email that they are about."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from heapq import merge
from itertools import groupby
from typing import Any, Final, Literal

from msgspec import Struct, structs

from relay.addresses import is_address, matches
from relay.events import Call, EmailEvent, Event, ParseResult
from relay.operations.mentions import mentions
from relay.outbox.counters import population
from relay.outbox.entries import Query, State, StoredEntry, digest, person_key
from relay.outbox.protocol import EntryStore, Outbox
from relay.sources import Source

BATCH_ROWS: Final = 500
"""Entries read in one query."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


class Criteria(Query, frozen=True, omit_defaults=True):
    """The conditions by which an operator chooses entries; None or empty is no condition.

    `Search` works out `key` and `keyless` from the other fields.

    Attributes:
        email_id: the source's id of the email.
        user_id: the customer's id for the recipient, or for a person that a call names.
        address: the address of the recipient, or of the person whom a call is about, in upper or
            lower case; or its SHA-256 in hex, as Segment knows it if `RELAY_ANONYMOUS_ID` is
            `sha256`.
    """

    email_id: str | None = None
    user_id: str | None = None
    address: str | None = None


class Reason(Struct, frozen=True):
    """A reason of dead letters.

    Attributes:
        count: how many have it; `by_destination`: of those for each destination.
        example: the newest of them.
    """

    reason: str
    count: int
    by_destination: Mapping[str, int]
    example: StoredEntry


def reasons(outbox: Outbox) -> list[Reason]:
    """Return the reasons of the dead letters, the commonest first."""
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, count in population(outbox.counters()).items():
        if kind.state is State.DEAD:
            counted[kind.reason or ""][kind.destination] += count
    commonest = sorted(counted.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        Reason(reason, by_destination.total(), by_destination, example)
        for reason, by_destination in commonest
        for example in outbox.entries.find(Query(reason=reason), 1)
    ]


class Search:
    """A search of an outbox: indexes find entries by short digests, then bodies are compared."""

    def __init__(self, entries: EntryStore, sources: Iterable[Source]) -> None:
        self._entries = entries
        self._sources = {source.name: source for source in sources}

    def find(
        self,
        criteria: Criteria,
        *,
        start: int | None = None,
        end: int | None = None,
        newest_first: bool = True,
        with_history: bool = False,
        looked_at: Callable[[int], None] = lambda _count: None,
    ) -> Iterator[StoredEntry]:
        """Yield the entries that meet the criteria, reading them in batches.

        Args:
            criteria: what they must meet.
            start: the id after which to begin, in the direction of the search.
            end: the last id to look at.
            newest_first: the direction of the search.
            with_history: also read each entry's history.
            looked_at: called with the size of each batch read, found or not.
        """
        queries = _queries(criteria)
        # A body that could not be parsed has no keys, but it may name the person or the email.
        if queries[0].key and (not criteria.states or State.DEAD in criteria.states):
            queries.append(_unread(criteria))
        options: dict[str, Any] = {
            "end": end,
            "newest_first": newest_first,
            "with_history": with_history,
        }
        return self._merged(queries, criteria, start, looked_at, **options)

    def find_read(
        self, criteria: Criteria, *, start: int | None, end: int | None
    ) -> Iterator[StoredEntry]:
        """Yield what `find` does but the entries that could not be parsed, newest first.

        An index finds them.
        """
        return self._merged(_queries(criteria), criteria, start, lambda _count: None, end=end)

    def find_unread(
        self,
        either: Sequence[Criteria],
        *,
        start: int | None,
        end: int | None,
        looked_at: Callable[[int], None],
    ) -> Iterator[StoredEntry]:
        """Yield the entries that could not be parsed and meet one of the criteria.

        Every such entry is looked at.

        Args:
            either: they differ only in the person and the email that they name.
            start: the id below which to begin.
            end: the last id to look at.
            looked_at: called with the size of each batch read.
        """
        for entry in self._pages(_unread(either[0]), start, looked_at, end=end):
            if any(self._is_meant(entry, criteria) for criteria in either):
                yield entry

    def newest(self) -> int:
        """Return the highest id; 0 if there are no entries."""
        newest = self._entries.find(Query(), 1)
        return newest[0].id if newest else 0

    def stored_before(self, limit: datetime) -> int:
        """Return the highest id of the entries received before `limit`.

        Ids are taken to be in the order of receipt, which entries restored from a backup are not.
        """
        below, above = 0, self.newest() + 1
        while above - below > 1:
            middle = (below + above) // 2
            found = self._entries.find(Query(), 1, start=middle - 1, newest_first=False)
            if found and found[0].received_at < limit:
                below = found[0].id
            else:
                above = middle
        return below

    def _merged(
        self,
        queries: Iterable[Query],
        criteria: Criteria,
        start: int | None,
        looked_at: Callable[[int], None],
        *,
        newest_first: bool = True,
        **options: Any,  # noqa: ANN401 (passed on)
    ) -> Iterator[StoredEntry]:
        """Yield what any of the queries finds and the criteria mean, each entry once."""
        options["newest_first"] = newest_first
        found = [self._pages(query, start, looked_at, **options) for query in queries]
        entries = merge(*found, key=_id, reverse=newest_first)
        for _, (entry, *_) in groupby(entries, key=_id):
            if self._is_meant(entry, criteria):
                yield entry

    def _pages(
        self,
        query: Query,
        start: int | None,
        looked_at: Callable[[int], None],
        **options: Any,  # noqa: ANN401 (passed on)
    ) -> Iterator[StoredEntry]:
        while page := self._entries.find(query, BATCH_ROWS, start=start, **options):
            yield from page
            looked_at(len(page))
            start = page[-1].id

    def _is_meant(self, entry: StoredEntry, criteria: Criteria) -> bool:
        if not (criteria.user_id or criteria.email_id or criteria.address):
            return True
        parsed = self._parse(entry)
        if isinstance(parsed, EmailEvent | Call):
            return _is_about(parsed, criteria)
        return mentions(
            entry.body,
            user_id=criteria.user_id,
            email_id=criteria.email_id,
            address=criteria.address,
        )

    def _parse(self, entry: StoredEntry) -> ParseResult | None:
        try:
            return self._sources[entry.source].parse(entry.body, entry.received_at)
        except Exception:  # noqa: BLE001 (a body that makes the mapping fail can be searched, too)
            return None


def _id(entry: StoredEntry) -> int:
    return entry.id


def _queries(criteria: Criteria) -> list[Query]:
    """Return queries for the store, which together may find more entries than are meant."""
    keys = _keys(criteria)
    return [structs.replace(criteria, key=key) for key in keys] if keys else [criteria]


def _unread(criteria: Criteria) -> Query:
    """Return the query for the dead letters that could not be parsed when they were received."""
    return structs.replace(criteria, states=(State.DEAD,), keyless=True)


_Key = tuple[Literal["user", "address", "email"], int]


def _keys(criteria: Criteria) -> list[_Key]:
    """Return the keys to search by, for that of the criteria which fewest entries meet.

    The key of a person may be in any place of an entry's keys: see `Keys`.
    """
    if criteria.email_id:
        return [("email", digest(criteria.email_id))]
    if criteria.address and _SHA256.fullmatch(criteria.address):
        return _in_any_place(int(criteria.address[:8], 16))
    if person := criteria.address or criteria.user_id:
        keys = _in_any_place(person_key(person))
        # An email event has a user id that looks like an address as it was sent.
        own: _Key = ("user", digest(person))
        return keys if own in keys else [*keys, own]
    return []


def _in_any_place(key: int) -> list[_Key]:
    return [("user", key), ("address", key), ("email", key)]


def _is_about(event: Event, criteria: Criteria) -> bool:
    if criteria.user_id and criteria.user_id not in event.people:
        return False
    if criteria.email_id and event.email_id != criteria.email_id:
        return False
    return not criteria.address or any(
        matches(criteria.address, address) for address in (event.email or "", *_addresses(event))
    )


def _addresses(event: Event) -> list[str]:
    """Return the ids of people in a call that are addresses."""
    return [person for person in event.people if isinstance(event, Call) and is_address(person)]

"""Finding entries: by what is stored beside them, and by whom and which email they are about."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from heapq import merge
from typing import Any, Final, Literal

from msgspec import Struct, structs

from relay.errors import UnreadableError
from relay.events import EmailEvent, ParseResult
from relay.outbox.counters import population
from relay.outbox.entries import Query, State, StoredEntry, digest
from relay.outbox.protocol import EntryStore, Outbox
from relay.sources import Source
from relay.sources.fields import as_text, read_object

PAGE: Final = 500
"""Entries read at a time."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"""(?<![^\s<>",;:()\[\]{}=&\ufffd])[^\s<>",;:()\[\]{}=&\ufffd]+@[\w.-]+\w"""
)
_AT_SIGN: Final = re.compile(r"%(?:25)*40|\\u0040", re.IGNORECASE)
# What a field is called in which, or in a field of which, a user's id stands.
_PERSON: Final = re.compile(
    r"user(?![_-]?agent)|customer|recipient|subscriber|contact|profile|person|identif",
    re.IGNORECASE,
)
_BEFORE_AN_ID: Final = 200


class Criteria(Struct, frozen=True, omit_defaults=True):
    """Which entries an operator means; what is None or empty does not matter.

    Attributes:
        since: received then or later; `until`: before then.
        address: of the recipient, in any case; or its SHA-256 in hex, as Segment knows it where
            `RELAY_ANONYMOUS_ID` is `sha256`.
    """

    ids: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    source: str | None = None
    destination: str | None = None
    collection: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_id: str | None = None
    email_id: str | None = None
    user_id: str | None = None
    address: str | None = None


class Reason(Struct, frozen=True):
    """The dead letters of one reason, and the newest of them."""

    reason: str
    count: int
    example: StoredEntry


def reasons(outbox: Outbox) -> list[Reason]:
    """Why there are dead letters, the commonest reason first."""
    counted: Counter[str] = Counter()
    for kind, count in population(outbox.counters()).items():
        if kind.state is State.DEAD:
            counted[kind.reason or ""] += count
    return [
        Reason(reason, count, example)
        for reason, count in sorted(counted.items(), key=lambda one: (-one[1], one[0]))
        for example in outbox.entries.find(Query(reason=reason), 1)
    ]


class Search:
    """Finds entries in an outbox, which is searched by digests and by the bodies themselves."""

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
        """All that meet the criteria, read little by little while they are taken.

        Args:
            criteria: what they must meet.
            start: the id behind which they begin, in the direction asked for.
            end: the last id that is looked at.
            newest_first: the direction.
            with_history: fill in their histories.
            looked_at: told of how many more were looked at, whether they meet the criteria or not.
        """
        options = {"end": end, "newest_first": newest_first, "with_history": with_history}
        queries = [_query(criteria)]
        # What could not be read when it came has no keys; it may name them all the same.
        if queries[0].key and (not criteria.states or State.DEAD in criteria.states):
            queries.append(_unread(criteria))
        found = [self._pages(query, start, looked_at, **options) for query in queries]
        entries = merge(*found, key=lambda entry: entry.id, reverse=newest_first)
        return (entry for entry in entries if self._is_meant(entry, criteria))

    def find_read(
        self, criteria: Criteria, *, start: int | None, end: int | None
    ) -> Iterator[StoredEntry]:
        """The same, newest first, but for what could not be read when it came: by an index."""
        found = self._pages(_query(criteria), start, lambda _count: None, end=end)
        return (entry for entry in found if self._is_meant(entry, criteria))

    def find_unread(
        self,
        either: Sequence[Criteria],
        *,
        start: int | None,
        end: int | None,
        looked_at: Callable[[int], None],
    ) -> Iterator[StoredEntry]:
        """What could not be read when it came and meets one of the criteria: each is looked at.

        They differ only in whom or which email they are about.
        """
        for entry in self._pages(_unread(either[0]), start, looked_at, end=end):
            if any(self._is_meant(entry, criteria) for criteria in either):
                yield entry

    def newest(self) -> int:
        """The highest id; 0 when there are no entries."""
        newest = self._entries.find(Query(), 1)
        return newest[0].id if newest else 0

    def stored_before(self, moment: datetime) -> int:
        """The highest id of what came before then, as far as all were stored in their order.

        What was put back from a backup stands where it was put.
        """
        below, above = 0, self.newest() + 1
        while above - below > 1:
            middle = (below + above) // 2
            found = self._entries.find(Query(), 1, start=middle - 1, newest_first=False)
            if found and found[0].received_at < moment:
                below = found[0].id
            else:
                above = middle
        return below

    def _pages(
        self,
        query: Query,
        start: int | None,
        looked_at: Callable[[int], None],
        **options: Any,  # noqa: ANN401 (passed on)
    ) -> Iterator[StoredEntry]:
        while page := self._entries.find(query, PAGE, start=start, **options):
            yield from page
            looked_at(len(page))
            start = page[-1].id

    def _is_meant(self, entry: StoredEntry, criteria: Criteria) -> bool:
        if _key(criteria) is None:
            return True
        reading = self._reading(entry)
        if isinstance(reading, EmailEvent):
            return _is_about(reading, criteria)
        return mentions(entry.body, criteria)

    def _reading(self, entry: StoredEntry) -> ParseResult | None:
        try:
            return self._sources[entry.source].parse(entry.body, entry.received_at)
        except Exception:  # noqa: BLE001 (what makes relay itself fail can be looked for, too)
            return None


def _query(criteria: Criteria) -> Query:
    """What to ask the store, whose answers may hold more than is meant."""
    return Query(
        ids=criteria.ids,
        states=criteria.states,
        source=criteria.source,
        destination=criteria.destination,
        collection=criteria.collection,
        reason=criteria.reason,
        since=criteria.since,
        until=criteria.until,
        message_id=criteria.message_id,
        key=_key(criteria),
    )


def _unread(criteria: Criteria) -> Query:
    return structs.replace(_query(criteria), key=None, states=(State.DEAD,), keyless=True)


def _key(criteria: Criteria) -> tuple[Literal["user", "address", "email"], int] | None:
    """The key to search by: the one that the fewest entries share."""
    if criteria.email_id:
        return "email", digest(criteria.email_id)
    if criteria.address:
        if _SHA256.fullmatch(criteria.address):
            return "address", int(criteria.address[:8], 16)
        return "address", digest(criteria.address.lower())
    if criteria.user_id:
        return "user", digest(criteria.user_id)
    return None


def _is_about(event: EmailEvent, criteria: Criteria) -> bool:
    if criteria.user_id and event.user_id != criteria.user_id:
        return False
    if criteria.email_id and event.properties.get("email_id") != criteria.email_id:
        return False
    return not criteria.address or _is_address(event.email or "", criteria.address)


def _is_address(address: str, wanted: str) -> bool:
    address, wanted = address.lower(), wanted.lower()
    return wanted in {address, sha256(address.encode()).hexdigest()}


def mentions(body: bytes, criteria: Criteria) -> bool:
    """Whether a body that is no event names the person and the email that are meant.

    An address may stand anywhere in it. An id must be the whole of a field, and a user's id that of
    a field that tells of a person: numbers stand in many.
    """
    try:
        document = read_object(body)
    except UnreadableError:
        # Half of a document, most often. NULs: it may be UTF-16.
        return _says(body.replace(b"\0", b"").decode(errors="replace"), criteria)
    leaves = [(name, said) for name, leaf in _leaves(document) if (said := as_text(leaf))]
    wanted, email_id, user_id = criteria.address, criteria.email_id, criteria.user_id
    return (
        (not wanted or any(_holds(said, wanted) for _, said in leaves))
        and (not email_id or any(said == email_id for _, said in leaves))
        and (not user_id or any(s == user_id and _PERSON.search(name) for name, s in leaves))
    )


def _says(said: str, criteria: Criteria) -> bool:
    """The same for what is no document."""
    user_id, email_id = criteria.user_id, criteria.email_id
    return (
        (not criteria.address or _holds(said, criteria.address))
        and (not email_id or bool(_before_each(email_id, said)))
        and (not user_id or any(map(_tells_of_a_person, _before_each(user_id, said))))
    )


def _holds(said: str, wanted: str) -> bool:
    """Whether the address stands in the text; or is the whole of it, whatever it looks like."""
    addresses = _ADDRESS.findall(_AT_SIGN.sub("@", said))
    return any(_is_address(address.strip("'"), wanted) for address in (said, *addresses))


def _before_each(word: str, said: str) -> list[str]:
    """What stands before each place at which the text has the word."""
    found = re.finditer(rf"(?<![\w.@%+-]){re.escape(word)}(?![\w.@%+-])", said)
    return [said[max(0, match.start() - _BEFORE_AN_ID) : match.start()] for match in found]


def _tells_of_a_person(before: str) -> bool:
    """Whether the value behind it is in an object, or a field, that is named like a person."""
    before = before.rpartition("}")[2]
    names = [*_PERSON.finditer(before)]
    since_name = before[names[-1].end() :] if names else ","
    return "{" in since_name or not set(since_name) & set(",&")


def _leaves(document: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 (any JSON)
    """Every value that holds no others, with the names of the fields it is in."""
    nodes: list[tuple[str, Any]] = [("", document)]
    while nodes:
        names, node = nodes.pop()
        if isinstance(node, dict):
            nodes += [(f"{names}.{name}", value) for name, value in node.items()]
        elif isinstance(node, list):
            nodes += [(names, value) for value in node]
        else:
            yield names, node

"""Finding entries: by what is stored beside them, and by whom and which email they are about."""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import sha256
from heapq import merge
from typing import Any, Final, Literal

from msgspec import Struct, structs

from relay.errors import UnreadableError
from relay.events import EmailEvent
from relay.outbox import State, digest
from relay.outbox.records import Query, Record, Records
from relay.providers import Provider, read_object

PAGE: Final = 500
"""Entries read at a time."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)


class Criteria(Struct, frozen=True, omit_defaults=True):
    """Which entries an operator means; what is None or empty does not matter.

    Attributes:
        since: received then or later; `until`: before then.
        address: of the recipient, in any case; or its SHA-256 in hex, as Segment knows it where
            `RELAY_ANONYMOUS_ID` is `sha256`.
    """

    ids: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    provider: str | None = None
    collection: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    message_id: str | None = None
    email_id: str | None = None
    user_id: str | None = None
    address: str | None = None


class Lookup:
    """Finds entries in an outbox, which is searched by digests and by the bodies themselves."""

    def __init__(self, records: Records, providers: Iterable[Provider]) -> None:
        self._records = records
        self._providers = {provider.name: provider for provider in providers}

    def find(
        self,
        criteria: Criteria,
        *,
        start: int | None = None,
        newest_first: bool = True,
        with_history: bool = False,
    ) -> Iterator[Record]:
        """All that meet the criteria, read little by little while they are taken."""
        queries = self._queries(criteria)
        if queries is None:
            return iter(())
        found = [
            self._pages(query, start, newest_first=newest_first, with_history=with_history)
            for query in queries
        ]
        records = merge(*found, key=lambda record: record.id, reverse=newest_first)
        return (record for record in records if self._is_meant(record, criteria))

    def _queries(self, criteria: Criteria) -> list[Query] | None:
        """What to ask the store, whose answers may hold more than is meant; None for nothing."""
        plain = Query(
            ids=criteria.ids,
            states=criteria.states,
            provider=criteria.provider,
            collection=criteria.collection,
            reason=criteria.reason,
            since=criteria.since,
            until=criteria.until,
            message_id=criteria.message_id,
        )
        key = _key(criteria)
        if key is None:
            return [plain]
        queries = [structs.replace(plain, key=key)]
        # What could not be read when it came has no keys; it may name them all the same.
        if not criteria.states or State.DEAD in criteria.states:
            queries.append(structs.replace(plain, states=(State.DEAD,), keyless=True))
        return queries

    def _pages(
        self, query: Query, start: int | None, *, newest_first: bool, with_history: bool
    ) -> Iterator[Record]:
        while page := self._records.find(
            query, PAGE, start=start, newest_first=newest_first, with_history=with_history
        ):
            yield from page
            start = page[-1].id

    def _is_meant(self, record: Record, criteria: Criteria) -> bool:
        if _key(criteria) is None:
            return True
        provider = self._providers.get(record.provider)
        reading = provider.parse(record.body, record.received_at) if provider else None
        if isinstance(reading, EmailEvent):
            return _is_about(reading, criteria)
        wanted = (criteria.user_id, criteria.address, criteria.email_id)
        return all(mentions(record.body, value) for value in wanted if value)


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
    if not criteria.address:
        return True
    address = (event.email or "").lower()
    wanted = criteria.address.lower()
    return wanted in {address, sha256(address.encode()).hexdigest()}


def mentions(body: bytes, value: str) -> bool:
    """Whether the value stands in the body, in any case; in JSON, as the whole of a field."""
    wanted = value.lower()
    try:
        document = read_object(body)
    except UnreadableError:
        return wanted in body.decode(errors="replace").lower()
    return any(wanted == str(leaf).strip().lower() for leaf in _leaves(document))


def _leaves(document: Any) -> Iterator[Any]:  # noqa: ANN401 (any JSON)
    nodes = [document]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
        else:
            yield node

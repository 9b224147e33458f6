"""Finds one page of entries for the console, within a time limit."""

import re
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from msgspec import Struct, structs

from relay.operations.search import Criteria, Search
from relay.outbox.entries import State, StoredEntry
from relay.outbox.protocol import RARE_COLLECTIONS

PAGE_SIZE: Final = 50
"""Entries on a page."""
PATIENCE_SECONDS: Final = 0.06
"""How long entries are looked at one by one before the page is shown as it is."""

_FIRST_STRETCH: Final = 2_000
"""Ids that are looked at in the first query; each later stretch is longer."""
_LONGEST_STRETCH: Final = 32_000
_MESSAGE_ID: Final = re.compile(r"[a-z]+-[0-9a-zA-Z-]{8,}")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


class EntriesPage(Struct, frozen=True):
    """One page of entries, newest first.

    Attributes:
        older: the `start` of the next page; None on the last page.
        looked_to: the lowest id that was looked at, if time ran out before the page was full.
        given_up: whether time ran out before all dead letters that cannot be read were looked at.
    """

    entries: list[StoredEntry]
    older: int | None
    looked_to: int | None = None
    given_up: bool = False


def find_page(
    search: Search,
    criteria: Criteria,
    text: str,
    *,
    start: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> EntriesPage:
    """Return a page of the newest entries that meet the criteria and are about the text.

    Args:
        search: finds them.
        criteria: what they must meet.
        text: a message id, an email id, a user id or an address; empty for any.
        start: entries with this id and newer ones are left out.
        clock: seconds, monotonic.
    """
    if criteria.until:
        before = search.stored_before(criteria.until) + 1
        start = before if start is None else min(start, before)
    end = 1 + (search.stored_before(criteria.since) if criteria.since else 0)
    give_up_at = clock() + PATIENCE_SECONDS

    def is_late() -> bool:
        return clock() > give_up_at

    if text:
        return _find_about(search, criteria, text, start, end, is_late)
    return _find_any(search, criteria, start, end, is_late)


def _find_any(
    search: Search,
    criteria: Criteria,
    start: int | None,
    end: int,
    is_late: Callable[[], bool],
) -> EntriesPage:
    """Look at one stretch of ids after the other, until the page is full or time runs out."""
    has_index = (
        bool(criteria.reason)
        or criteria.collection in RARE_COLLECTIONS
        or State.DEAD in criteria.states
    )
    newest = search.newest() + 1
    position = newest if start is None else min(start, newest)
    stretch = _FIRST_STRETCH
    found: list[StoredEntry] = []
    while position > end:
        stretch_end = max(end, position - stretch)
        looked_at = search.find(criteria, start=position, end=stretch_end)
        found += islice(looked_at, PAGE_SIZE + 1 - len(found))
        if len(found) > PAGE_SIZE:
            return _page(found)
        position = stretch_end
        stretch = stretch * 4 if has_index else min(stretch * 2, _LONGEST_STRETCH)
        if position > end and is_late():
            return EntriesPage(found, position, looked_to=position)
    return _page(found)


def _page(found: Iterable[StoredEntry], *, given_up: bool = False) -> EntriesPage:
    entries = [*islice(found, PAGE_SIZE + 1)]
    older = entries[PAGE_SIZE - 1].id if len(entries) > PAGE_SIZE else None
    return EntriesPage(entries[:PAGE_SIZE], older, given_up=given_up)


class _LateError(Exception):
    """The time that a page may take is over."""


def _find_about(
    search: Search,
    criteria: Criteria,
    text: str,
    start: int | None,
    end: int,
    is_late: Callable[[], bool],
) -> EntriesPage:
    """Find entries that have the text as one of their ids or as the address."""
    meanings = [structs.replace(criteria, **{field: text}) for field in _fields(text)]
    found: dict[int, StoredEntry] = {}
    for each in meanings:
        read = search.find_read(each, start=start, end=end)
        found |= {entry.id: entry for entry in islice(read, PAGE_SIZE + 1)}
    given_up = False
    if not criteria.states or State.DEAD in criteria.states:

        def looked_at(_count: int) -> None:
            if is_late():
                raise _LateError

        by_body = [each for each in meanings if not each.message_id]
        unread = search.find_unread(by_body, start=start, end=end, looked_at=looked_at)
        try:
            for entry in islice(unread, PAGE_SIZE + 1):
                found[entry.id] = entry
        except _LateError:
            given_up = True
    newest_first = sorted(found.values(), key=lambda entry: entry.id, reverse=True)
    return _page(newest_first, given_up=given_up)


def _fields(text: str) -> list[str]:
    """Return the criteria that the text may be meant for."""
    fields = ["email_id", "user_id"]
    if "@" in text or _SHA256.fullmatch(text):
        fields.append("address")
    if _MESSAGE_ID.fullmatch(text):
        fields.append("message_id")
    return fields

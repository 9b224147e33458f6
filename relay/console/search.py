"""One page of entries, found within the time that a page may take."""

import re
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from msgspec import Struct, structs

from relay.operations.search import Criteria, Search
from relay.outbox.entries import State, StoredEntry
from relay.outbox.protocol import RARE

PAGE: Final = 50
"""Entries on a page."""
PATIENCE_SECONDS: Final = 0.06
"""For how long entries are looked at, one after the other, before a page is shown as it is."""

_FIRST_STRETCH: Final = 2_000  # ids looked at in one go, and twice as many the next time
_LONGEST_STRETCH: Final = 32_000
_MESSAGE_ID: Final = re.compile(r"[a-z]+-[0-9a-zA-Z-]{8,}")


class Page(Struct, frozen=True):
    """Some entries, newest first.

    Attributes:
        older: the id behind which the next page begins; None when there is none.
        looked_to: the id that it was looked as far as, where that was not far enough for a page.
        given_up: whether dead letters were left out that would have to be read one by one.
    """

    entries: list[StoredEntry]
    older: int | None
    looked_to: int | None = None
    given_up: bool = False


def find(
    search: Search,
    criteria: Criteria,
    text: str,
    *,
    start: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Page:
    """The newest entries that meet the criteria, and that the text is about if there is one.

    Args:
        search: finds them.
        criteria: what they must meet.
        text: a message id, an email id, a user id or an address; empty for any.
        start: the id behind which they begin.
        clock: seconds, monotonic.
    """
    if criteria.until:
        before = search.stored_before(criteria.until) + 1
        start = before if start is None else min(start, before)
    last = search.stored_before(criteria.since) if criteria.since else 0
    give_up_at = clock() + PATIENCE_SECONDS
    if text:
        return _about(search, criteria, text, start, last + 1, lambda: clock() > give_up_at)
    found: list[StoredEntry] = []
    newest = search.newest() + 1
    position = newest if start is None else min(start, newest)
    stretch = _FIRST_STRETCH
    has_index = (
        bool(criteria.reason) or criteria.collection in RARE or State.DEAD in criteria.states
    )
    while position > last + 1:
        end = max(last + 1, position - stretch)
        looked = search.find(criteria, start=position, end=end)
        found += islice(looked, PAGE + 1 - len(found))
        if len(found) > PAGE:
            return _page(found)
        position, stretch = end, stretch * 4 if has_index else min(stretch * 2, _LONGEST_STRETCH)
        if position > last + 1 and clock() > give_up_at:
            return Page(found, position, looked_to=position)
    return _page(found)


def _page(found: Iterable[StoredEntry], *, given_up: bool = False) -> Page:
    entries = [*islice(found, PAGE + 1)]
    older = entries[PAGE - 1].id if len(entries) > PAGE else None
    return Page(entries[:PAGE], older, given_up=given_up)


class _EnoughError(Exception):
    """The page is waited for."""


def _about(
    search: Search,
    criteria: Criteria,
    text: str,
    start: int | None,
    end: int,
    is_late: Callable[[], bool],
) -> Page:
    """What the text is about, whichever of the ids or the address it is."""
    ways = ["email_id", "user_id"]
    if "@" in text or re.fullmatch("[0-9a-fA-F]{64}", text):
        ways.append("address")
    if _MESSAGE_ID.fullmatch(text):
        ways = ["message_id", *ways]
    either = [structs.replace(criteria, **{way: text}) for way in ways]
    found: dict[int, StoredEntry] = {}
    for each in either:
        read = search.find_read(each, start=start, end=end)
        found |= {entry.id: entry for entry in islice(read, PAGE + 1)}
    given_up = False
    if not criteria.states or State.DEAD in criteria.states:

        def looked_at(_count: int) -> None:
            if is_late():
                raise _EnoughError

        unread = search.find_unread(
            [each for each in either if not each.message_id],
            start=start,
            end=end,
            looked_at=looked_at,
        )
        try:
            for entry in islice(unread, PAGE + 1):
                found[entry.id] = entry
        except _EnoughError:
            given_up = True
    newest_first = sorted(found.values(), key=lambda entry: entry.id, reverse=True)
    return _page(newest_first, given_up=given_up)

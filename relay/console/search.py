"""One page of entries, found within the time that a page may take."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import Any, Final

from msgspec import Struct, structs

from relay.events import DeadReason
from relay.lookup import Criteria, Lookup
from relay.outbox import State
from relay.outbox.records import Record

PAGE: Final = 50
"""Entries on a page."""
PATIENCE_SECONDS: Final = 0.06
"""For how long entries are looked at, one after the other, before a page is shown as it is."""

_FIRST_STRETCH: Final = 2_000  # ids looked at in one go, and twice as many the next time
_LONGEST_STRETCH: Final = 32_000
_READ: Final = (DeadReason.REJECTED, DeadReason.OVERSIZED)  # of what was an event when it came
_MESSAGE_ID: Final = re.compile(r"[a-z]+-[0-9a-zA-Z-]{8,}")


class Page(Struct, frozen=True):
    """Some entries, newest first.

    Attributes:
        older: the id behind which the next page begins; None when there is none.
        looked_to: the id that it was looked as far as, where that was not far enough for a page.
        given_up: whether dead letters were left out that would have to be read one by one.
    """

    records: list[Record]
    older: int | None
    looked_to: int | None = None
    given_up: bool = False


def find(
    lookup: Lookup,
    criteria: Criteria,
    text: str,
    *,
    start: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Page:
    """The newest entries that meet the criteria, and that the text is about if there is one.

    Args:
        lookup: finds them.
        criteria: what they must meet.
        text: a message id, an email id, a user id or an address; empty for any.
        start: the id behind which they begin.
        clock: seconds, monotonic.
    """
    if criteria.until:
        before = lookup.stored_before(criteria.until) + 1
        start = before if start is None else min(start, before)
    last = lookup.stored_before(criteria.since) if criteria.since else 0
    found: list[Record] = []
    give_up_at = clock() + PATIENCE_SECONDS
    if text:

        def looked_at(_count: int) -> None:
            if clock() > give_up_at:
                raise _EnoughError

        options: dict[str, Any] = {"start": start, "end": last + 1}
        about = _about(lookup, [criteria], text, looked_at=looked_at, **options)
        try:
            found.extend(islice(about, PAGE + 1))  # keeps what came before it gives up
        except _EnoughError:
            found += islice(_about(lookup, _with_keys(criteria), text, **options), PAGE + 1)
            found = sorted({record.id: record for record in found}.values(), key=_id, reverse=True)
            return structs.replace(_page(found), given_up=True)
        return _page(found)
    position = lookup.newest() + 1
    if start is not None:
        position = min(position, start)
    stretch = _FIRST_STRETCH
    while position > last + 1:
        end = max(last + 1, position - stretch)
        looked = lookup.find(criteria, start=position, end=end)
        found += islice(looked, PAGE + 1 - len(found))
        if len(found) > PAGE:
            return _page(found)
        position, stretch = end, min(stretch * 2, _LONGEST_STRETCH)
        if position > last + 1 and clock() > give_up_at:
            return Page(found, position, looked_to=position)
    return _page(found)


class _EnoughError(Exception):
    """The page is waited for."""


def _page(found: list[Record]) -> Page:
    return Page(found[:PAGE], found[PAGE - 1].id if len(found) > PAGE else None)


def _id(record: Record) -> int:
    return record.id


def _with_keys(criteria: Criteria) -> list[Criteria]:
    """The same, of what can be found without reading dead letters one by one."""
    states = criteria.states or (*State,)
    if State.DEAD not in states:
        return [criteria]
    living = tuple(state for state in states if state is not State.DEAD)
    return [structs.replace(criteria, states=living)] * bool(living) + [
        structs.replace(criteria, states=(State.DEAD,), reason=reason)
        for reason in _READ
        if criteria.reason in {None, reason}
    ]


def _about(
    lookup: Lookup,
    criteria: Sequence[Criteria],
    text: str,
    **options: Any,  # noqa: ANN401 (passed on)
) -> Iterator[Record]:
    """What the text is about, whichever of the ids or the address it is."""
    ways = ["email_id", "user_id"]
    if "@" in text or re.fullmatch("[0-9a-fA-F]{64}", text):
        ways.append("address")
    if _MESSAGE_ID.fullmatch(text):
        ways = ["message_id", *ways]
    found = merge(
        *(
            lookup.find(structs.replace(each, **{way: text}), **options)
            for way in ways
            for each in criteria
        ),
        key=_id,
        reverse=True,
    )
    latest = None
    for record in found:
        if record.id != latest:
            latest = record.id
            yield record

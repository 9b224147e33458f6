"""Reads the fields of a webhook's JSON body."""

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from relay.addresses import is_address
from relay.errors import UnreadableError
from relay.events import Collection, DeadReason, Unusable

MAX_NESTING: Final = 50

_TYPE_NAME: Final = re.compile(r"[a-z][a-z_]{0,39}")
_NUMBER: Final = re.compile(r"-?\d{1,15}(\.\d{1,9})?", re.ASCII)
_FIRST_MILLISECONDS: Final = 10**12  # 13 digits; as seconds this would be the year 33658
_END_OF_MILLISECONDS: Final = 10**13
_END_OF_TIME: Final = 253_402_300_800  # the year 10000, where datetime ends
# An ISO time with its zone behind a blank, or by name, as Ruby writes them; and an email's own.
_ZONED: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?) ?(UTC|GMT|Z|[+-]\d\d:?\d\d)",
    re.ASCII | re.IGNORECASE,
)
_RFC_2822: Final = re.compile(
    r"(?:[A-Z][a-z]{2}, ?)?(\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d(?::\d\d)?)"
    r" (UTC?|GMT|Z|[+-]\d{4})(?: \([A-Za-z ]+\))?",
    re.ASCII,
)
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_FURTHEST_AHEAD: Final = timedelta(days=1)

REPEATABLE: Final = frozenset({Collection.OPENED, Collection.LINK_CLICKED})
"""What may happen to one email many times; without a time, nothing tells one from the next."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode

# Escapes are read in their order: in `\\ud800` the `u` belongs to none.
_ESCAPES: Final = re.compile(
    rb"((?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+)"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|(?:\\(?:[^u]|u(?![dD][89a-fA-F])))+"
)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in the body.

    A byte order mark is passed over, as RFC 8259 allows, and the last of repeated keys counts. Half
    of a surrogate pair, as is left where a sender cuts off an emoji, becomes U+FFFD.

    Raises:
        UnreadableError: not UTF-8, not JSON (so `NaN` too), not an object, nested too deeply, or a
            number beyond what a computer holds.
    """
    try:
        document = _decoded(body.removeprefix(_BYTE_ORDER_MARK))
    except msgspec.MsgspecError as error:
        # msgspec names a position or a kind of fault, never the text it read.
        raise UnreadableError(f"not JSON: {error}") from None
    except UnicodeDecodeError:
        raise UnreadableError("not UTF-8") from None
    except RecursionError:
        raise UnreadableError(f"nested deeper than {MAX_NESTING} levels") from None
    if type(document) is not dict:
        raise UnreadableError("not a JSON object")
    # As many levels need as many brackets; nearly every body is cleared by this count alone.
    if body.count(b"{") + body.count(b"[") > MAX_NESTING and _is_too_deep(document):
        raise UnreadableError(f"nested deeper than {MAX_NESTING} levels")
    return document


def _decoded(body: bytes) -> object:
    try:
        return _decode(body)
    except msgspec.MsgspecError:
        mended = _ESCAPES.sub(lambda escape: rb"\ufffd" if escape[2] else escape[0], body)
        if mended == body:
            raise
        return _decode(mended)


def _is_too_deep(document: dict[str, Any]) -> bool:
    level: list[Any] = [document]
    for _ in range(MAX_NESTING):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) in {dict, list}
        ]
        if not level:
            return False
    return True


def text(value: object) -> str | None:
    """The value as a trimmed string, the same whether it came as a number or as a string.

    A list becomes its members joined by ", ". None for what is blank and for objects.
    """
    if type(value) is str:
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list):
        return ", ".join(filter(None, map(text, value))) or None
    return None


def unknown_type(kind: str | None) -> Unusable:
    """A dead letter of a type that its source does not know."""
    if kind is None:
        return Unusable(DeadReason.UNKNOWN_TYPE, "no type")
    # Only what looks like a type is repeated: the value may be anything, an address too.
    named = f": {kind}" if _TYPE_NAME.fullmatch(kind) else ""
    return Unusable(DeadReason.UNKNOWN_TYPE, f"a type relay does not know{named}")


def word(value: object) -> str | None:
    """What identifies: a string or a number, never the text of anything else."""
    return text(value) if type(value) in {str, int, float} else None


def address(value: object) -> str | None:
    """The value if it is an address."""
    candidate = word(value)
    return candidate if candidate and is_address(candidate) else None


def instant(value: object) -> datetime | None:
    """The instant that a time field names; None when it names none."""
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return _written_instant(value)
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _FIRST_MILLISECONDS <= value < _END_OF_MILLISECONDS:
        value /= 1000
    return datetime.fromtimestamp(value, UTC) if 0 <= value < _END_OF_TIME else None


def _written_instant(value: str) -> datetime | None:
    """The instant in ISO 8601 or RFC 2822, UTC where no zone is named; not `11/28/2026`."""
    try:
        if email := _RFC_2822.fullmatch(value):
            moment = parsedate_to_datetime(" ".join(email.groups()))
        else:
            zoned = _ZONED.fullmatch(value)
            moment = datetime.fromisoformat(_iso(*zoned.groups()) if zoned else value)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        return moment if moment.timestamp() >= 0 else None
    except (ValueError, OverflowError):  # the second for the first and last days of the calendar
        return None


def _iso(time: str, zone: str) -> str:
    return time + ("+00:00" if zone[0].isalpha() else zone)


def said_time(value: object) -> str | None:
    """What a time field says, an instant or not; None where it says nothing.

    Webhooks that say different things are about different events, understood or not.
    """
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True) if value else None
    return text(value)


def occurred(reported_at: datetime | None, received_at: datetime) -> datetime:
    """When it happened: when the source says, unless that cannot be."""
    if reported_at and _EARLIEST <= reported_at <= received_at + _FURTHEST_AHEAD:
        return reported_at
    return received_at

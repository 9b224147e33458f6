"""Reads a webhook's JSON body field by field."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import msgspec

from relay.addresses import is_address
from relay.errors import NestingError, UnreadableError
from relay.events import Collection, DeadReason, Unusable
from relay.texts import as_id, as_text

MAX_NESTING: Final = 50

_TYPE_NAME: Final = re.compile(r"[a-z][a-z_]{0,39}")
_NUMBER: Final = re.compile(r"-?\d{1,15}(\.\d{1,9})?", re.ASCII)
_FIRST_MILLISECONDS: Final = 10**12  # 13 digits; as seconds this would be the year 33658
_END_OF_MILLISECONDS: Final = 10**13
_END_OF_TIME: Final = 253_402_300_800  # the year 10000, where datetime ends
# ISO 8601 with a blank before the zone or with the zone's name, as Ruby writes it.
_ZONED: Final = re.compile(
    r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?) ?(UTC|GMT|Z|[+-]\d\d:?\d\d)",
    re.ASCII | re.IGNORECASE,
)
# The format of an email's `Date` header.
_RFC_2822: Final = re.compile(
    r"(?:[A-Z][a-z]{2}, ?)?(\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d(?::\d\d)?)"
    r" (UTC?|GMT|Z|[+-]\d{4})(?: \([A-Za-z ]+\))?",
    re.ASCII,
)
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_FURTHEST_AHEAD: Final = timedelta(days=1)

REPEATABLE: Final = frozenset({Collection.OPENED, Collection.LINK_CLICKED})
"""Events that can happen to one email several times; only the time distinguishes them."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode
_Document = TypeVar("_Document")

# A run of backslashes that ends in the escape of a surrogate: its length is odd, because in
# `\\ud800` the `u` does not belong to an escape. Group 1 is all backslashes but the last; group 2
# is whole pairs. The pattern begins with a literal, so that it is found a hundred times as fast.
_PAIR: Final = rb"u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATES: Final = re.compile(
    rb"\\(?<!\\\\)((?:\\\\)*+)(?:(%b(?:\\%b)*)|u[dD][89a-fA-F][0-9a-fA-F]{2})" % (_PAIR, _PAIR)
)
_MOST_SURROGATES: Final = 10_000
"""The most in a body that is mended: anybody can send such bodies, and each takes its time."""


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body.

    A byte order mark is skipped, as RFC 8259 allows. Of repeated keys the last counts. Half of a
    surrogate pair, which remains where a sender cuts off an emoji, becomes U+FFFD.

    Raises:
        UnreadableError: not UTF-8, not JSON (`NaN` is not), not an object, nested too deeply, or
            with a number that no float holds.
    """
    document = decoded(body, _decode)
    if type(document) is not dict:
        raise UnreadableError("not a JSON object")
    # Each level needs a bracket. Counting brackets, which is cheap, clears nearly every body.
    if body.count(b"{") + body.count(b"[") > MAX_NESTING and _is_too_deep(document):
        raise UnreadableError(f"nested deeper than {MAX_NESTING} levels")
    return document


def decoded(body: bytes, decode: Callable[[bytes], _Document]) -> _Document:
    """Return what the decoder, one of msgspec's, reads in the body.

    A byte order mark is skipped, and half of a surrogate pair becomes U+FFFD, as in `read_object`.

    Raises:
        UnreadableError: not UTF-8, not JSON, or not of the decoder's type.
        NestingError: nested too deeply.
    """
    try:
        return _decoded(body.removeprefix(_BYTE_ORDER_MARK), decode)
    except msgspec.MsgspecError as error:
        # msgspec names a position or a kind of fault, never the text it read.
        raise UnreadableError(f"not JSON: {error}") from None
    except UnicodeDecodeError:
        raise UnreadableError("not UTF-8") from None
    except RecursionError:
        raise NestingError(f"nested deeper than {MAX_NESTING} levels") from None


def _decoded(body: bytes, decode: Callable[[bytes], _Document]) -> _Document:
    try:
        return decode(body)
    except msgspec.MsgspecError:
        if body.count(rb"\ud") + body.count(rb"\uD") > _MOST_SURROGATES:
            raise
        mended = _SURROGATES.sub(_mended, body)
        if mended == body:
            raise
        return decode(mended)


def _mended(surrogates: re.Match[bytes]) -> bytes:
    return surrogates[0] if surrogates[2] else surrogates[1] + rb"\ufffd"


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


def as_address(value: object) -> str | None:
    """Return the value if it is an email address, else None."""
    candidate = as_id(value)
    return candidate if candidate and is_address(candidate) else None


def unknown_type(kind: str | None) -> Unusable:
    """Return the dead letter for a type of event that the source's module does not know."""
    if kind is None:
        return Unusable(DeadReason.UNKNOWN_TYPE, "no type")
    # The value may be anything, an address too. Only what looks like a type is repeated.
    name = f": {kind}" if _TYPE_NAME.fullmatch(kind) else ""
    return Unusable(DeadReason.UNKNOWN_TYPE, f"a type relay does not know{name}")


def parse_time(value: object) -> datetime | None:
    """Return a time field as aware UTC; None if it names no time.

    Numbers are seconds since 1970, or milliseconds if they have 13 digits.
    """
    if isinstance(value, str):
        value = value.strip()
        if not _NUMBER.fullmatch(value):
            return _parse_written(value)
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if _FIRST_MILLISECONDS <= value < _END_OF_MILLISECONDS:
        value /= 1000
    return datetime.fromtimestamp(value, UTC) if 0 <= value < _END_OF_TIME else None


def _parse_written(text: str) -> datetime | None:
    """Return a time in ISO 8601 or RFC 2822, as UTC if no zone is named.

    None for other formats: `11/12/2026` means two different days.
    """
    try:
        if email := _RFC_2822.fullmatch(text):
            time = parsedate_to_datetime(" ".join(email.groups()))
        else:
            zoned = _ZONED.fullmatch(text)
            time = datetime.fromisoformat(_iso(*zoned.groups()) if zoned else text)
        time = time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC)
        return time if time.timestamp() >= 0 else None
    except (ValueError, OverflowError):  # OverflowError: the calendar's first and last days
        return None


def _iso(time: str, zone: str) -> str:
    return time + ("+00:00" if zone[0].isalpha() else zone)


def time_text(value: object) -> str | None:
    """Return a time field's value as text, whether it names a time or not; None if it is blank.

    It is part of a dedupe key. Two events with different time fields are different events, even if
    relay cannot read the fields.
    """
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True) if value else None
    return as_text(value)


def plausible_time(reported_at: datetime | None, received_at: datetime) -> datetime:
    """Return when the event happened: the reported time, or the time of receipt.

    A reported time is plausible from the year 2000 until a day after the receipt.
    """
    if reported_at and _EARLIEST <= reported_at <= received_at + _FURTHEST_AHEAD:
        return reported_at
    return received_at

"""Blanks out what is nested too deeply in one call, so that the others beside it can be read."""

import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from relay.errors import NestingError
from relay.sources.fields import MAX_NESTING, decoded

_Parts = TypeVar("_Parts")

_read_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_read_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_KEPT_LEVELS: Final = 2 * MAX_NESTING
"""Levels that are kept, more than a call may have: parsing still finds the fault."""
_MOST_BRACKETS: Final = 100_000
"""The most in a body that is looked through: anybody can send such bodies, and each takes its
time."""
# What is no bracket, strings too, and then a bracket or the end. Nothing is looked at twice.
_UP_TO_BRACKET: Final = re.compile(
    rb'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.?+)*+(?:"|\Z))*+(?:([\[{])|[\]}]|\Z)', re.DOTALL
)


def members_of(body: bytes) -> dict[str, Raw]:
    """Return the members of a JSON object; see `elements_of`."""
    return _whatever_nesting(body, _read_members)


def elements_of(body: bytes) -> list[Raw]:
    """Return the elements of a JSON array.

    An element that is nested too deeply to be decoded has blanks in place of its depths. It is as
    long as it was.

    Raises:
        UnreadableError: the body cannot be read, or has too many brackets to look through.
    """
    return _whatever_nesting(body, _read_elements)


def _whatever_nesting(body: bytes, decode: Callable[[bytes], _Parts]) -> _Parts:
    try:
        return decoded(body, decode)
    except NestingError:
        if body.count(b"{") + body.count(b"[") > _MOST_BRACKETS:
            raise
    return decoded(_without_depths(body), decode)


def _without_depths(body: bytes) -> bytes:
    """Return the body with `0` and blanks in place of each value that is nested too deeply."""
    kept = []
    kept_to = begin = level = 0
    for match in _UP_TO_BRACKET.finditer(body):
        if match[1]:
            level += 1
            if level == _KEPT_LEVELS + 1:
                begin = match.start(1)
            continue
        if level == _KEPT_LEVELS + 1:
            kept += [body[kept_to:begin], b"0".ljust(match.end() - begin)]
            kept_to = match.end()
        level -= 1
    return b"".join([*kept, body[kept_to:]])

"""Writes JSON documents as lines of a page, each with the path of its value."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from msgspec import Struct, json

from relay.operations.lineage import Path, path_text

MAX_LINES: Final = 3_000
"""A longer document is cut off here; the page also shows all its bytes."""


class Line(Struct, frozen=True):
    """One line of a document.

    Attributes:
        depth: levels of indentation.
        name: the field's name as JSON; None in a list.
        value: the value as JSON; of an object or a list, the bracket that opens or closes it.
        path: the value's path; None for closing brackets.
        is_leaf: whether the value contains no other value.
        comma: whether a comma follows.
    """

    depth: int
    name: str | None
    value: str
    path: str | None
    is_leaf: bool
    comma: bool


def lines(document: Any) -> list[Line]:  # noqa: ANN401 (any JSON)
    """Return the document as lines, one for each value and each closing bracket."""
    shown = [*islice(_lines(document, (), None, comma=False), MAX_LINES)]
    if len(shown) == MAX_LINES:
        rest = "\N{HORIZONTAL ELLIPSIS} and more than can be shown here"
        shown.append(Line(0, None, rest, None, is_leaf=False, comma=False))
    return shown


def _lines(value: Any, path: Path, name: str | None, *, comma: bool) -> Iterator[Line]:  # noqa: ANN401 (any JSON)
    depth = len(path)
    if not isinstance(value, dict | list) or not value:
        yield Line(depth, name, _json(value), path_text(path), is_leaf=True, comma=comma)
        return
    brackets = "{}" if isinstance(value, dict) else "[]"
    yield Line(depth, name, brackets[0], path_text(path), is_leaf=False, comma=False)
    members = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
    for number, (key, member) in enumerate(members, 1):
        key_name = _json(key) if isinstance(key, str) else None
        yield from _lines(member, (*path, key), key_name, comma=number < len(members))
    yield Line(depth, None, brackets[1], None, is_leaf=False, comma=comma)


def _json(value: Any) -> str:  # noqa: ANN401 (any JSON)
    return json.encode(value).decode()

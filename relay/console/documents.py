"""JSON documents as lines of a page, each with the path of what stands in it."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from msgspec import Struct, json

from relay.operations.lineage import Path, named

MOST_LINES: Final = 3_000
"""Of a document with more, the rest is told by its bytes alone."""


class Line(Struct, frozen=True):
    """One line of a document.

    Attributes:
        depth: how far it is indented.
        name: the field's name as JSON, or nothing in a list.
        value: as JSON; or the bracket that opens or closes what holds others.
        path: of the value; None for brackets that close.
        is_leaf: whether the value holds no others.
        comma: whether one follows.
    """

    depth: int
    name: str | None
    value: str
    path: str | None
    is_leaf: bool
    comma: bool


def lines(document: Any) -> list[Line]:  # noqa: ANN401 (any JSON)
    """The document, a line for each value."""
    shown = [*islice(_lines(document, (), None, comma=False), MOST_LINES)]
    if len(shown) == MOST_LINES:
        rest = "\N{HORIZONTAL ELLIPSIS} and more than can be shown here"
        shown.append(Line(0, None, rest, None, is_leaf=False, comma=False))
    return shown


def _lines(value: Any, path: Path, name: str | None, *, comma: bool) -> Iterator[Line]:  # noqa: ANN401 (any JSON)
    depth = len(path)
    if not isinstance(value, dict | list) or not value:
        yield Line(depth, name, _json(value), named(path), is_leaf=True, comma=comma)
        return
    brackets = "{}" if isinstance(value, dict) else "[]"
    yield Line(depth, name, brackets[0], named(path), is_leaf=False, comma=False)
    members = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
    for number, (key, member) in enumerate(members, 1):
        said = _json(key) if isinstance(key, str) else None
        yield from _lines(member, (*path, key), said, comma=number < len(members))
    yield Line(depth, None, brackets[1], None, is_leaf=False, comma=comma)


def _json(value: Any) -> str:  # noqa: ANN401 (any JSON)
    return json.encode(value).decode()

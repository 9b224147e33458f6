"""Which field of a webhook goes where in the track call: found by changing one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Final

from msgspec import Struct, json

from relay.events import Unusable
from relay.routes import Rendered

MOST_FIELDS: Final = 300
"""Of a webhook with more, the rest is not traced."""
MOST_BYTES: Final = 8 * 2**20
"""Rendered for all fields together: the larger the webhook, the fewer are traced."""

Path = tuple[str | int, ...]
"""How a value is come at in a document: names in objects, places in lists."""


class Link(Struct, frozen=True):
    """A field of the webhook that the track call depends on, and what of it does."""

    source: str
    target: str


def leaves(document: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401 (any JSON)
    """Every value that holds no others, in the order of the document."""
    if isinstance(document, dict) and document:
        for name, value in document.items():
            yield from leaves(value, (*path, name))
    elif isinstance(document, list) and document:
        for place, value in enumerate(document):
            yield from leaves(value, (*path, place))
    else:
        yield path, document


def named(path: Path) -> str:
    """The path as people write it: `user.email`, `tags[0]`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def traced(document: Mapping[str, Any]) -> list[tuple[Path, Any]]:
    """The fields whose ways are looked for: all but those of very large webhooks."""
    most = min(MOST_FIELDS, MOST_BYTES // len(json.encode(document)))
    return [*islice(leaves(document), most)]


def links(
    document: Mapping[str, Any],
    rendered: Rendered,
    map_body: Callable[[bytes], Rendered | Unusable],
    *,
    name: Callable[[Path], str] = named,
) -> list[Link]:
    """What becomes of each field, whatever the mapping does with it.

    Args:
        document: the webhook's.
        rendered: what it becomes.
        map_body: today's mapping.
        name: how paths are told.
    """
    before = dict(leaves(rendered.document))
    changed = deepcopy(document)
    found = []
    for path, value in traced(document):
        another = _another(value)
        if another is value:
            continue
        _put(changed, path, another)
        other = map_body(json.encode(changed))
        _put(changed, path, value)
        # It decides what the webhook is, or whether it is anything.
        targets: list[Path] = [("event",)]
        if isinstance(other, Rendered) and other.event.collection == rendered.event.collection:
            after = dict(leaves(other.document))
            targets = [p for p in before | after if before.get(p) != after.get(p)]
            if other.event.dedupe_key != rendered.event.dedupe_key:
                targets.append(("messageId",))
        found += [Link(name(path), name(target)) for target in targets]
    return found


def _another(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Another value of the same kind; the same where there is none that tells anything."""
    if isinstance(value, str) and value.strip():
        return f"{value}0"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value - 1 if value > 1 else value + 1  # no digit more than JSON can hold
    return value  # null, and what is empty, goes nowhere


def _put(document: Any, path: Sequence[str | int], value: Any) -> None:  # noqa: ANN401 (any JSON)
    *parents, last = path
    for parent in parents:
        document = document[parent]
    document[last] = value

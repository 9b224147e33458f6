"""Which field of a webhook goes where in the track call: found by changing one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from msgspec import Struct, json

from relay.events import Unusable
from relay.mapping import Mapped

MOST_FIELDS: Final = 300
"""Of a webhook with more, the rest is not traced."""

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


def links(
    document: Mapping[str, Any],
    message: Mapping[str, Any],
    map_body: Callable[[bytes], Mapped | Unusable],
) -> list[Link]:
    """What becomes of each field, whatever the mapping does with it.

    Args:
        document: the webhook's.
        message: the track call that it becomes.
        map_body: today's mapping.
    """
    before = dict(leaves(message))
    found = []
    for path, value in [*leaves(document)][:MOST_FIELDS]:
        changed = deepcopy(document)
        _put(changed, path, _another(value))
        mapped = map_body(json.encode(changed))
        # It decides what the webhook is, or whether it is anything.
        targets: list[Path] = [("event",)]
        if isinstance(mapped, Mapped) and mapped.message["event"] == message["event"]:
            after = dict(leaves(mapped.message))
            targets = [p for p in before | after if before.get(p) != after.get(p)]
        found += [Link(named(path), named(target)) for target in targets]
    return found


def _another(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Another value of the same kind."""
    if isinstance(value, str):
        return f"{value}0"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value  # null, and what is empty, goes nowhere


def _put(document: Any, path: Sequence[str | int], value: Any) -> None:  # noqa: ANN401 (any JSON)
    *parents, last = path
    for parent in parents:
        document = document[parent]
    document[last] = value

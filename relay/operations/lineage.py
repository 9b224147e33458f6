"""Finds which field of a webhook goes where in the track call, by changing one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Final

from msgspec import Struct, json

from relay.events import Unusable
from relay.routes import Rendered

MAX_FIELDS: Final = 300
"""Fields of a webhook that are followed; the rest of a larger one is not."""
MAX_BYTES: Final = 8 * 2**20
"""Bytes rendered for all fields together: the larger the webhook, the fewer are followed."""

Path = tuple[str | int, ...]
"""Path to a JSON value: keys and list indexes."""


class FieldLink(Struct, frozen=True):
    """A field of the webhook, and a field of the track call that depends on it."""

    source: str
    target: str


def leaves(document: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:  # noqa: ANN401 (any JSON)
    """Yield every value that contains no other value, with its path, in the document's order."""
    if isinstance(document, dict) and document:
        for name, value in document.items():
            yield from leaves(value, (*path, name))
    elif isinstance(document, list) and document:
        for index, value in enumerate(document):
            yield from leaves(value, (*path, index))
    else:
        yield path, document


def path_text(path: Path) -> str:
    """Return the path as people write it: `user.email`, `tags[0]`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def followed_fields(document: Mapping[str, Any]) -> list[tuple[Path, Any]]:
    """Return the fields that `links` follows: all, unless the webhook is very large."""
    most = min(MAX_FIELDS, MAX_BYTES // len(json.encode(document)))
    return [*islice(leaves(document), most)]


def links(
    document: Mapping[str, Any],
    rendered: Rendered,
    render: Callable[[bytes], Rendered | Unusable],
    *,
    name: Callable[[Path], str] = path_text,
) -> list[FieldLink]:
    """Return which fields of the track call change with each field of the webhook.

    Args:
        document: the webhook.
        rendered: its track call.
        render: renders a webhook's body by today's mapping.
        name: returns the text that stands for a path.
    """
    before = dict(leaves(rendered.document))
    changed = deepcopy(document)
    found = []
    for path, value in followed_fields(document):
        another = _another(value)
        if another is value:
            continue
        _put(changed, path, another)
        other = render(json.encode(changed))
        _put(changed, path, value)
        # Without a call to compare with, this field decides what the webhook is.
        targets: list[Path] = [("event",)]
        if isinstance(other, Rendered) and other.event.collection == rendered.event.collection:
            after = dict(leaves(other.document))
            targets = [p for p in before | after if before.get(p) != after.get(p)]
            if other.event.dedupe_key != rendered.event.dedupe_key:
                targets.append(("messageId",))
        found += [FieldLink(name(path), name(target)) for target in targets]
    return found


def _another(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Return another value of the same kind; the same object if a change would show nothing."""
    if isinstance(value, str) and value.strip():
        return f"{value}0"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value - 1 if value > 1 else value + 1  # never more digits than JSON can hold
    return value  # null and empty values appear nowhere in the call


def _put(document: Any, path: Sequence[str | int], value: Any) -> None:  # noqa: ANN401 (any JSON)
    *parents, last = path
    for parent in parents:
        document = document[parent]
    document[last] = value

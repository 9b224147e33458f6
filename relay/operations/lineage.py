"""Finds which field of a body goes where in the messages sent for it, by changing one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Final

from msgspec import Struct, json

from relay.events import Unusable
from relay.routes import Rendered

MAX_FIELDS: Final = 300
"""Fields of a body that are followed; the rest of a larger one is not."""
MAX_BYTES: Final = 8 * 2**20
"""Bytes rendered for all fields together: the larger the body, the fewer are followed."""

# The field of a message that says what it is about: of Segment's, and of Vero's.
_NAMING: Final = (("event",), ("path",))

Path = tuple[str | int, ...]
"""Path to a JSON value: keys and list indexes."""


class FieldLink(Struct, frozen=True):
    """A field of the body, and a field of a message that depends on it.

    Attributes:
        message: the place of the message among those that are sent, counted from 0.
    """

    source: str
    target: str
    message: int = 0


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
    """Return the fields that `links` follows: all, unless the body is very large."""
    most = min(MAX_FIELDS, MAX_BYTES // len(json.encode(document)))
    return [*islice(leaves(document), most)]


def links(
    document: Mapping[str, Any],
    rendered: Rendered,
    render: Callable[[bytes], Rendered | Unusable],
    *,
    name: Callable[[Path], str] = path_text,
) -> list[FieldLink]:
    """Return which fields of the messages change with each field of the body.

    Args:
        document: the body.
        rendered: its messages.
        render: renders a body by today's mapping.
        name: returns the text that stands for a path.
    """
    before = _fields(rendered)
    changed = deepcopy(document)
    found = []
    for path, value in followed_fields(document):
        another = _another(value)
        if another is value:
            continue
        _put(changed, path, another)
        other = render(json.encode(changed))
        _put(changed, path, value)
        if isinstance(other, Rendered) and other.event.collection == rendered.event.collection:
            after = _fields(other)
            targets = [field for field in before | after if before.get(field) != after.get(field)]
            if other.event.dedupe_key != rendered.event.dedupe_key:
                targets.append((0, ("messageId",)))
        else:
            # Without messages to compare with, this field decides what the event is.
            targets = [(0, path) for path in _NAMING if (0, path) in before]
        found += [FieldLink(name(path), name(target), number) for number, target in targets]
    return found


def _fields(rendered: Rendered) -> dict[tuple[int, Path], Any]:
    """Return the values in all messages, each by the number of its message and its path."""
    return {
        (number, path): value
        for number, message in enumerate(rendered.messages)
        for path, value in leaves(message.document)
    }


def _another(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Return another value of the same kind; the same object if a change would show nothing."""
    if isinstance(value, str) and value.strip():
        return f"{value}0"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value - 1 if value > 1 else value + 1  # never more digits than JSON can hold
    return value  # null and empty values appear in no message


def _put(document: Any, path: Sequence[str | int], value: Any) -> None:  # noqa: ANN401 (any JSON)
    *parents, last = path
    for parent in parents:
        document = document[parent]
    document[last] = value

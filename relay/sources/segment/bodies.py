"""Splits the bodies of requests into calls to store. Values stay byte for byte as they came."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec
from msgspec import Raw

from relay.errors import TooManyEventsError, UnreadableError
from relay.sources.fields import decoded
from relay.sources.segment.nesting import elements_of, members_of

CALL_TYPES: Final[Mapping[str, str | None]] = {
    "identify": "identify",
    "track": "track",
    "group": "group",
    "alias": "alias",
    "page": "page",
    "screen": "screen",
    "batch": None,
    "import": None,
    # analytics.js
    "i": "identify",
    "t": "track",
    "g": "group",
    "a": "alias",
    "p": "page",
    "s": "screen",
    "b": None,
}
"""The type of call that each path under `/v1/` takes; None for those that take a batch."""

MAX_CALLS: Final = 5_000
"""The most calls in a body. Segment itself takes 2,500."""
MAX_MERGED_BYTES: Final = 8 * 2**20
"""The most bytes of a batch, with what it has in common repeated in each of its calls."""

_Members = dict[str, Raw]

_encode: Final = msgspec.json.encode
_read_members: Final = msgspec.json.Decoder(_Members).decode
_read_text: Final = msgspec.json.Decoder(str).decode
_WRITE_KEY: Final = re.compile(rb'"writeKey"\s*:\s*("(?:[^"\\]|\\.){1,1000}")')
_TRUE: Final = Raw(b"true")


def calls_in(body: bytes, *, call_type: str | None = None) -> Iterable[bytes]:
    """Return the calls in the body of a request to the Tracking API, without write keys.

    Those of a batch are made one after the other, because there may be thousands.

    What a batch has as `context` and `integrations` is merged into each of its calls, whose own
    values win. An element that is no object stays as it is: parsing finds its fault.

    Args:
        body: one call, or `{"batch": [...]}`.
        call_type: the type of the one call that this path takes; None if it takes a batch.

    Raises:
        UnreadableError: the body is not a JSON object, or has no batch.
        TooManyEventsError: the batch has too many calls, or too much that they have in common.
    """
    if call_type is not None:
        call = decoded(body, _read_members)
        return [_encode(_without_key(call) | {"type": Raw(_encode(call_type))})]
    envelope = members_of(body)
    elements = _elements(envelope.get("batch"))
    if elements is None:
        raise UnreadableError("no list of calls in `batch`")
    _check_count(elements)
    shared = {
        name: members
        for name in ("context", "integrations")
        if (members := _members(envelope.get(name)))
    }
    size = len(body) + len(elements) * len(_encode(shared))
    if size > MAX_MERGED_BYTES:
        raise TooManyEventsError(
            f"{size} bytes, with what the batch has in common repeated in each of its"
            f" {len(elements)} calls; relay takes {MAX_MERGED_BYTES}"
        )
    return (_call_of_batch(element, shared) for element in elements)


def calls_in_webhook(body: bytes) -> list[bytes]:
    """Return the calls in the body of a webhook: one call, or an array of them.

    Segment names the destinations of a call: `{"All": false, "Webhooks": true}` is not for its own
    Vero destination, but it has come here because the Webhooks destination leads to Vero. So Vero
    is turned on in such a call, unless the call names Vero itself.

    Raises:
        UnreadableError: the body is neither a JSON object nor an array.
        TooManyEventsError: the array has too many calls.
    """
    if not body.lstrip().startswith(b"["):
        decoded(body, _read_members)
        return [_for_vero(body)]
    elements = elements_of(body)
    _check_count(elements)
    return [_for_vero(bytes(element)) for element in elements]


def calls_in_line(line: bytes) -> list[bytes]:
    """Return the calls in a line of a file: one call, a batch, or an array as webhooks have it.

    Raises:
        UnreadableError: the line is neither a JSON object nor an array.
        TooManyEventsError: it has too many calls; see `calls_in`.
    """
    if line.lstrip().startswith(b"["):
        return calls_in_webhook(line)
    if _elements(members_of(line).get("batch")) is None:
        return [_call_of_batch(Raw(line), {})]
    return [*calls_in(line)]


def write_keys_in(body: bytes) -> set[bytes]:
    """Return the write keys in the body of a request to the Tracking API, wherever they are.

    The body is not parsed, which would take long: anybody can send one.
    """
    found = {match[1] for match in islice(_WRITE_KEY.finditer(body), MAX_CALLS + 1)}
    return {key for text in found if (key := _text(text))}


def _check_count(calls: Sequence[Raw]) -> None:
    if len(calls) > MAX_CALLS:
        raise TooManyEventsError(f"{len(calls)} calls in one body; relay takes {MAX_CALLS}")


def _text(value: bytes) -> bytes | None:
    """Return the text of a JSON string in UTF-8; None if it is none."""
    try:
        return decoded(value, _read_text).encode()
    except UnreadableError:
        return None


def _call_of_batch(element: Raw, shared: Mapping[str, _Members]) -> bytes:
    call = _members(element)
    if call is None:
        return bytes(element)
    merged = {name: _merged(members, call.get(name)) for name, members in shared.items()}
    changed = _without_key(call) | merged
    return bytes(element) if changed == call else _encode(changed)


def _merged(shared: _Members, own: Raw | None) -> Raw:
    """Return the call's members, and those of its batch that it does not have in any case."""
    members = _members(own) or {}
    names = {name.lower() for name in members}
    others = {name: value for name, value in shared.items() if name.lower() not in names}
    return Raw(_encode(others | members))


def _for_vero(element: bytes) -> bytes:
    call = _members(element)
    if call is None:
        return element
    changed = _without_key(call)
    integrations = _members(call.get("integrations")) or {}
    named = {name.lower(): bytes(value) for name, value in integrations.items()}
    if named.get("all") == b"false" and named.get("vero", b"null") == b"null":
        changed["integrations"] = Raw(_encode(integrations | {"Vero": _TRUE}))
    return element if changed == call else _encode(changed)


def _without_key(call: _Members) -> _Members:
    return {name: value for name, value in call.items() if name != "writeKey"}


def _members(value: bytes | Raw | None) -> _Members | None:
    """Return the members of an object; None if the value is none."""
    try:
        return None if value is None else decoded(bytes(value), _read_members)
    except UnreadableError:
        return None


def _elements(value: Raw | None) -> list[Raw] | None:
    """Return the elements of an array; None if the value is none."""
    try:
        return None if value is None else elements_of(bytes(value))
    except UnreadableError:
        return None

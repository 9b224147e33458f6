"""Compares a body with the messages sent for it: their lines, and which field goes where."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct, json, structs

from relay.addresses import mask, masked
from relay.console.documents import Line, lines
from relay.errors import UnreadableError
from relay.events import Unusable
from relay.operations.lineage import FieldLink, Path, followed_fields, links, path_text
from relay.operations.views import documents, fault_of, noun
from relay.outbox.entries import Arrival
from relay.routes import Rendered, Route, Routes, Stored
from relay.sources.fields import read_object


class MessageView(Struct, frozen=True):
    """What a page shows of one message.

    Attributes:
        lines: its lines; the paths in them are unique among all messages.
        is_sent: whether the destination has it already.
    """

    lines: list[Line]
    is_sent: bool


class Comparison(Struct, frozen=True):
    """What a page shows of a body and the messages for it.

    Attributes:
        destination: the name of the destination that they go to.
        noun: what the body is: a webhook or a call.
        raw: the body as text.
        left: the lines of the body; None if it is not a JSON object.
        right: the messages, in the order in which they are sent.
        fault: why nothing can be sent, or why a part of the event is in none of the messages.
        origins: the body's fields that each field of a message depends on.
        unused: the body's fields that no message depends on.
        links: pairs of a field of the body and a field of a message that depends on it.
        commands: what each shell command sends, and the command.
    """

    destination: str
    noun: str
    raw: str
    left: list[Line] | None
    right: list[MessageView]
    fault: Unusable | None
    origins: dict[str, list[str]]
    unused: set[str]
    links: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def compare(
    routes: Routes, stored: Stored, rendered: Rendered | Unusable, *, reveal: bool, sent: int = 0
) -> Comparison:
    """Compare a body with the messages for it by today's mapping.

    Args:
        routes: every route.
        stored: the body.
        rendered: what today's mapping makes of it.
        reveal: show addresses.
        sent: how many of the messages the destination has already.
    """
    show: Callable[[Any], Any] = (lambda document: document) if reveal else masked
    raw = stored.body.decode(errors="replace")
    try:
        document = read_object(stored.body)
    except UnreadableError:
        document = None

    def name(path: Path) -> str:  # a field's name may be an address, too
        return path_text(tuple(show(step) for step in path))

    def render(body: bytes) -> Rendered | Unusable:
        return routes.render(
            Arrival(stored.source, stored.destination, stored.message_id, stored.received_at, body)
        )

    found: list[FieldLink] = []
    if document and isinstance(rendered, Rendered):
        found = links(document, rendered, render, name=name)
    pairs = [(link.source, _target(link.message, link.target)) for link in found]
    origins: dict[str, list[str]] = {}
    for source, target in pairs:
        origins.setdefault(target, []).append(source)
    route, messages = routes.get(stored.source), documents(rendered)
    return Comparison(
        destination=stored.destination,
        noun=noun(route.source if route else None),
        raw=raw if reveal else mask(raw),
        left=None if document is None else lines(show(document)),
        right=[
            MessageView(_lines(number, show(message)), is_sent=number < sent)
            for number, message in enumerate(messages)
        ],
        fault=fault_of(rendered),
        origins=origins,
        unused={name(path) for path, _ in followed_fields(document or {})} - {s for s, _ in pairs},
        links=pairs,
        commands=_commands(route, stored, messages, show),
    )


def _lines(message: int, document: Any) -> list[Line]:  # noqa: ANN401 (any JSON)
    """Return the lines of one of the messages, with paths that are unique among all of them."""
    return [
        structs.replace(line, path=_target(message, line.path)) if line.path else line
        for line in lines(document)
    ]


def _target(message: int, path: str) -> str:
    return f"{message + 1}:{path}" if message else path


def _commands(
    route: Route | None,
    stored: Stored,
    messages: Sequence[Mapping[str, Any]],
    show: Callable[[Any], Any],
) -> list[tuple[str, str]]:
    """Return commands that send the body and its messages again, without any secret."""
    if route is None:
        return []
    body = stored.body.decode(errors="replace")
    try:
        body = json.encode(show(read_object(stored.body))).decode()
    except UnreadableError:
        body = body if show(body) == body else mask(body)
    title = f"The {noun(route.source)}, to relay"
    commands = [(title, f"body={_quoted(body)}\n{route.source.curl}")]
    for number, message in enumerate(messages, 1):
        text = json.encode(show(dict(message))).decode()
        name = f"Message {number}" if len(messages) > 1 else "The message"
        title = f"{name}, to {route.destination.title}"
        commands.append((title, f"body={_quoted(text)}\n{route.destination.curl}"))
    return commands


def _quoted(text: str) -> str:
    """Return the text as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"

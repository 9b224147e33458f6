"""Compares a webhook with its track call: their lines, and which field of one goes where."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, json

from relay.addresses import mask, masked
from relay.console.documents import Line, lines
from relay.errors import UnreadableError
from relay.events import Unusable
from relay.operations.lineage import FieldLink, Path, followed_fields, links, path_text
from relay.outbox.entries import Arrival
from relay.routes import Rendered, Route, Routes, Stored
from relay.sources.fields import read_object


class Comparison(Struct, frozen=True):
    """What a page shows of a webhook and its track call.

    Attributes:
        destination: the name of the destination that the call goes to.
        raw: the webhook's body as text.
        left: the lines of the webhook; None if it is not a JSON object.
        right: the lines of the call; None if nothing can be sent.
        origins: the webhook's fields that each field of the call depends on.
        unused: the webhook's fields that the call does not depend on.
        links: pairs of a webhook's field and a field of the call that depends on it.
        commands: what each shell command sends, and the command.
    """

    destination: str
    raw: str
    left: list[Line] | None
    right: list[Line] | None
    origins: dict[str, list[str]]
    unused: set[str]
    links: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def compare(
    routes: Routes, stored: Stored, rendered: Rendered | Unusable, *, reveal: bool
) -> Comparison:
    """Compare a webhook with its track call by today's mapping.

    Args:
        routes: every route.
        stored: the webhook.
        rendered: what today's mapping makes of it.
        reveal: show addresses.
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
    origins: dict[str, list[str]] = {}
    for link in found:
        origins.setdefault(link.target, []).append(link.source)
    message = rendered.document if isinstance(rendered, Rendered) else None
    used = {link.source for link in found}
    return Comparison(
        destination=stored.destination,
        raw=raw if reveal else mask(raw),
        left=None if document is None else lines(show(document)),
        right=None if message is None else lines(show(message)),
        origins=origins,
        unused={name(path) for path, _ in followed_fields(document or {})} - used,
        links=[(link.source, link.target) for link in found],
        commands=_commands(routes.get(stored.source), stored, message, show),
    )


def _commands(
    route: Route | None,
    stored: Stored,
    message: Mapping[str, Any] | None,
    show: Callable[[Any], Any],
) -> list[tuple[str, str]]:
    """Return commands that send the webhook and its call again, without any secret."""
    if route is None:
        return []
    body = stored.body.decode(errors="replace")
    try:
        body = json.encode(show(read_object(stored.body))).decode()
    except UnreadableError:
        body = body if show(body) == body else mask(body)
    commands = [("The webhook, to relay", f"body={_quoted(body)}\n{route.source.curl}")]
    if message is not None:
        call = json.encode(show(dict(message))).decode()
        title = f"The track call, to {route.destination.title}"
        commands.append((title, f"body={_quoted(call)}\n{route.destination.curl}"))
    return commands


def _quoted(text: str) -> str:
    """Return the text as one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"

"""A webhook and its track call side by side, and what connects them."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import json

from relay.addresses import mask, masked
from relay.console.documents import lines
from relay.errors import UnreadableError
from relay.events import Unusable
from relay.operations.lineage import Link, Path, links, named, traced
from relay.outbox.entries import Arrival
from relay.routes import Rendered, Routes, Stored
from relay.sources.fields import read_object


class Comparison:
    """Shows both by today's mapping."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def show(
        self, stored: Stored, rendered: Rendered | Unusable | None, *, reveal: bool
    ) -> dict[str, Any]:
        """The webhook and the track call side by side, and what connects them."""
        show: Callable[[Any], Any] = (lambda document: document) if reveal else masked
        raw = stored.body.decode(errors="replace")
        try:
            document = read_object(stored.body)
        except UnreadableError:
            document = None

        def name(path: Path) -> str:  # which may be an address, too
            return named(tuple(show(step) for step in path))

        found: list[Link] = []
        if document and isinstance(rendered, Rendered):
            found = links(document, rendered, lambda body: self._map(stored, body), name=name)
        sources: dict[str, list[str]] = {}
        for link in found:
            sources.setdefault(link.target, []).append(link.source)
        used = {link.source for link in found}
        message = rendered.document if isinstance(rendered, Rendered) else None
        return {
            "left": None if document is None else lines(show(document)),
            "right": None if message is None else lines(show(message)),
            "raw": raw if reveal else mask(raw),
            "sources": sources,
            "unused": {name(path) for path, _ in traced(document or {})} - used,
            "links": [(link.source, link.target) for link in found],
            "curls": self._curls(stored, message, show),
        }

    def _map(self, stored: Stored, body: bytes) -> Rendered | Unusable:
        changed = Arrival(
            stored.source, stored.destination, stored.message_id, stored.received_at, body
        )
        return self._routes.render(changed)

    def _curls(
        self,
        stored: Stored,
        message: Mapping[str, Any] | None,
        show: Callable[[Any], Any],
    ) -> list[tuple[str, str]]:
        """Commands that send the same once more, each with what it is; no secret is in them."""
        body = stored.body.decode(errors="replace")
        try:
            body = json.encode(show(read_object(stored.body))).decode()
        except UnreadableError:
            body = body if show(body) == body else mask(body)
        commands = []
        route = self._routes.get(stored.source)
        if route:
            commands.append(("The webhook, to relay", f"body={_quoted(body)}\n{route.source.curl}"))
        if route and message is not None:
            call = json.encode(show(dict(message))).decode()
            title = f"The track call, to {route.destination.title}"
            commands.append((title, f"body={_quoted(call)}\n{route.destination.curl}"))
        return commands


def _quoted(text: str) -> str:
    """As one word of a shell's."""
    return "'" + text.replace("'", "'\\''") + "'"

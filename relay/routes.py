"""Routes: each joins a source to its destination.

A route accepts a webhook's body when it comes in, and renders the stored body when it goes out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from hashlib import sha256
from typing import Any, Final, Protocol

import structlog
from msgspec import Struct

from relay import truncation
from relay.destinations import Destination, Message, Rendering
from relay.errors import UnreadableError
from relay.events import Call, DeadReason, EmailEvent, Event, Ignored, ParseResult, Unusable
from relay.outbox.entries import Arrival, keys_of, lane
from relay.sources import Source

_log = structlog.get_logger()


class Stored(Protocol):
    """What the outbox keeps of an event."""

    @property
    def source(self) -> str:
        """Name of the source that sent it."""
        ...

    @property
    def destination(self) -> str:
        """Name of the destination it goes to."""
        ...

    @property
    def message_id(self) -> str:
        """The `messageId` that it is sent under, also when it is sent again."""
        ...

    @property
    def received_at(self) -> datetime:
        """When its webhook was received."""
        ...

    @property
    def body(self) -> bytes:
        """Body of its webhook, as received."""
        ...


class Rendered(Struct, frozen=True):
    """A stored body as an event, and as the messages to the destination.

    Attributes:
        messages: sent one after the other.
        lanes: the lanes that they are sent in.
        fault: why a part of the event cannot be sent; see `relay.destinations.Rendering`.
    """

    event: Event
    messages: tuple[Message, ...]
    lanes: tuple[int, ...] = ()
    fault: Unusable | None = None

    @property
    def repeatable(self) -> bool:
        """Whether all messages are; see `relay.destinations.Message`."""
        return all(message.repeatable for message in self.messages)

    @property
    def document(self) -> Mapping[str, Any]:
        """The first message, for people to read: the only one, for most events."""
        return self.messages[0].document


class Sender(Enum):
    """How far the sender of a body is trusted."""

    TRUSTED = "trusted"
    """It has a secret."""
    PUBLIC = "public"
    """Anybody may have sent it, by a key that is no secret."""
    RESTRICTED = "restricted"
    """As `PUBLIC`, and what needs a privilege is not sent; see `Destination.privilege`."""


_PUBLIC_KEY: Final = "public"
"""Begins the dedupe keys of what anybody may have sent: nobody can take the key of an event that
the customer is going to send."""


class Route:
    """A source with its destination: accepts bodies and renders stored ones. Pure: no I/O."""

    def __init__(self, source: Source, destination: Destination) -> None:
        self.source = source
        self.destination = destination

    def split(self, body: bytes) -> Sequence[bytes]:
        """Return the bodies to store for the body of a request; see `Source.split`."""
        return self.source.split(body)

    def split_line(self, line: bytes) -> Sequence[bytes]:
        """Return the bodies to store for what an operator imports or pastes.

        A line that cannot be split is one body, of which `accept` finds the fault.

        Raises:
            TooManyEventsError: there are too many events in it.
        """
        try:
            return self.source.split_line(line)
        except UnreadableError:
            return [line]

    def accept(
        self,
        body: bytes,
        received_at: datetime,
        *,
        sender: Sender = Sender.TRUSTED,
        fallback_key: Callable[[], Iterable[str]] | None = None,
    ) -> Arrival | Ignored:
        """Return what to store for a body, if it is to be stored at all.

        Args:
            body: one of those that `split` returns.
            received_at: when it was received.
            sender: how far its sender is trusted. Copies are recognised among those of senders
                with a secret, or among those of all others.
            fallback_key: returns the dedupe key of a body that has none; by default such a body is
                never a duplicate.
        """
        parsed = self._parse(body, received_at)
        if isinstance(parsed, Ignored):
            return parsed
        if isinstance(parsed, Unusable):
            return self._dead_letter(body, sha256(body).hexdigest(), received_at, parsed)
        dedupe_key = parsed.dedupe_key or (fallback_key() if fallback_key else None)
        if dedupe_key and sender is not Sender.TRUSTED:
            dedupe_key = (_PUBLIC_KEY, *dedupe_key)
        message_id = self.destination.message_id(self.source.name, dedupe_key, parsed.reported_at)
        fault: Unusable | None = None
        lanes: tuple[int, ...] = ()
        if self.destination.ordered:
            rendered = self._rendered(parsed, message_id)
            if isinstance(rendered, Ignored):
                return rendered
            if sender is Sender.RESTRICTED:
                fault = self._forbidden(parsed)
            if isinstance(rendered, Unusable):
                fault = fault or rendered
            elif not fault:
                lanes = rendered.lanes
        return Arrival(
            self.source.name,
            self.destination.name,
            message_id,
            received_at,
            body,
            fault,
            parsed.collection,
            keys_of(parsed),
            lanes,
        )

    def accept_truncated(
        self, body: bytes | bytearray, received_at: datetime, *, size: int, digest: str
    ) -> Arrival:
        """Return what to store for a webhook that is too large to be kept whole.

        Args:
            body: its beginning.
            received_at: when it was received.
            size: bytes of the whole body.
            digest: digest of the whole body; a body with the same digest is kept once.
        """
        kept = truncation.cut(body, size)
        return self._dead_letter(kept, digest, received_at, truncation.fault_of(kept))

    def render(self, stored: Stored) -> Rendered | Unusable:
        """Return what today's mapping sends to the destination, or why nothing can be sent."""
        try:
            if fault := truncation.fault_of(stored.body):
                return fault
            event = self.source.parse(stored.body, stored.received_at)
        except Exception as error:  # noqa: BLE001 (one webhook must not stop the others)
            return _failed(error)
        if isinstance(event, Unusable):
            return event
        rendered = event if isinstance(event, Ignored) else self._rendered(event, stored.message_id)
        if isinstance(rendered, Ignored):
            # Accepted once, so it is not dropped: the mapping or a setting has changed since.
            cause = f"set by {rendered.setting}" if rendered.setting else "by today's mapping"
            return Unusable(DeadReason.IGNORED, f"{rendered.reason}: {cause}")
        return rendered

    def event(self, stored: Stored) -> Event | None:
        """Return the event in a stored body, also if nothing can be sent for it; None without one.

        A body that is cut short, or makes the mapping fail, has none.
        """
        try:
            event = self.source.parse(stored.body, stored.received_at)
        except Exception:  # noqa: BLE001 (as in `render`)
            return None
        return event if isinstance(event, EmailEvent | Call) else None

    def _rendered(self, event: Event, message_id: str) -> Rendered | Ignored | Unusable:
        try:
            rendering = self.destination.render(
                event,
                source=self.source.name,
                message_id=message_id,
                integrations=self.source.integrations,
            )
            if not isinstance(rendering, Rendering):
                return rendering
            lanes = {lane(name) for name in rendering.lanes}
            if self.destination.ordered and not lanes:
                lanes = {lane(message_id)}  # one of its own: what is in none is never claimed
        except Exception as error:  # noqa: BLE001 (one webhook must not stop the others)
            return _failed(error)
        return Rendered(event, rendering.messages, tuple(lanes), rendering.fault)

    def _forbidden(self, event: Event) -> Unusable | None:
        """Return why a restricted sender may not send the event; None if it may."""
        try:
            privilege = self.destination.privilege(event)
        except Exception as error:  # noqa: BLE001 (one webhook must not stop the others)
            return _failed(error)
        if privilege is None:
            return None
        return Unusable(DeadReason.FORBIDDEN, f"a browser's write key may not do this: {privilege}")

    def _parse(self, body: bytes, received_at: datetime) -> ParseResult:
        try:
            return self.source.parse(body, received_at)
        except Exception as error:  # noqa: BLE001 (whatever a mapping does, the body is kept)
            kind = type(error).__name__
            _log.error("webhook.mapping_failed", source=self.source.name, error=kind)
            return _failed(error)

    def dead_letter(self, body: bytes, received_at: datetime, fault: Unusable) -> Arrival:
        """Return what to store for a body that cannot be split, and why it cannot."""
        return self._dead_letter(body, sha256(body).hexdigest(), received_at, fault)

    def _dead_letter(
        self, body: bytes, digest: str, received_at: datetime, fault: Unusable | None
    ) -> Arrival:
        """Return a dead letter identified by its bytes: the same bytes are kept once."""
        message_id = self.destination.message_id(self.source.name, ("body", digest))
        name = self.source.name
        return Arrival(name, self.destination.name, message_id, received_at, body, fault)


def _failed(error: Exception) -> Unusable:
    return Unusable(DeadReason.POISON, f"the mapping failed: {type(error).__name__}")


class Routes:
    """Every route, by its source.

    Args:
        sources: all of them, configured or not.
        destinations: all of them.
    """

    def __init__(self, sources: Iterable[Source], destinations: Iterable[Destination]) -> None:
        named = {destination.name: destination for destination in destinations}
        self._routes = {source.name: Route(source, named[source.destination]) for source in sources}

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def __getitem__(self, source: str) -> Route:
        return self._routes[source]

    def get(self, source: str) -> Route | None:
        """Return the route of the source with that name; None if there is none."""
        return self._routes.get(source)

    @property
    def sources(self) -> list[Source]:
        """Every source, configured or not."""
        return [route.source for route in self]

    @property
    def receiving(self) -> list[Route]:
        """The routes whose sources are configured."""
        return [route for route in self if route.source.configured]

    @property
    def destinations(self) -> list[Destination]:
        """The destinations that are configured and that routes lead to."""
        destinations = {route.destination.name: route.destination for route in self}
        return [each for each in destinations.values() if each.configured]

    def event(self, stored: Stored) -> Event | None:
        """Return the event in a stored body; see `Route.event`."""
        route = self._routes.get(stored.source)
        return route.event(stored) if route else None

    def render(self, stored: Stored) -> Rendered | Unusable:
        """Render a stored body by the route it came on; see `Route.render`."""
        route = self._routes.get(stored.source)
        if route is None or route.destination.name != stored.destination:
            detail = f"there is no route from {stored.source} to {stored.destination}"
            return Unusable(DeadReason.POISON, detail)
        return route.render(stored)

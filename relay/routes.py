"""Today's mapping: what Segment is sent for a stored body, or why there is nothing to send."""

from collections.abc import Callable, Iterable
from datetime import datetime
from hashlib import sha256
from typing import Protocol

import structlog
from msgspec import Struct

from relay import truncation
from relay.destinations.segment import MAX_MESSAGE_BYTES, Message, Segment, encode
from relay.events import DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.outbox.entries import Arrival, keys_of
from relay.sources import Source

_log = structlog.get_logger()


class Stored(Protocol):
    """What is known of a webhook that was stored."""

    @property
    def source(self) -> str:
        """Whose webhook it is."""
        ...

    @property
    def message_id(self) -> str:
        """The `messageId` it keeps for ever."""
        ...

    @property
    def received_at(self) -> datetime:
        """When it came."""
        ...

    @property
    def body(self) -> bytes:
        """As it came."""
        ...


class Mapped(Struct, frozen=True):
    """A stored body as an event, as a track call, and as that is posted."""

    event: EmailEvent
    message: Message
    encoded: bytes


class Mapping:
    """Maps stored bodies, whichever source's.

    Args:
        sources: every source, configured or not.
        segment: for which the messages are meant.
    """

    def __init__(self, sources: Iterable[Source], segment: Segment) -> None:
        self._sources = {source.name: source for source in sources}
        self._segment = segment

    def map(self, stored: Stored) -> Mapped | Unusable:
        """What Segment is to be sent now; unusable, too, is what it would drop behind a 200."""
        try:
            if fault := truncation.fault_of(stored.body):
                return fault
            source = self._sources[stored.source]
            event = source.parse(stored.body, stored.received_at)
            if isinstance(event, Unusable):
                return event
            if isinstance(event, Ignored):
                # Accepted once, so it is not dropped: the mapping or a setting has changed since.
                cause = f"set by {event.setting}" if event.setting else "none of the seven"
                return Unusable(DeadReason.IGNORED, f"{event.reason}: {cause}")
            message = self._segment.track_call(
                event, stored.message_id, source.name, source.integrations
            )
            encoded = encode(message)
        except Exception as error:  # noqa: BLE001 (one webhook must not stop the others)
            return Unusable(DeadReason.POISON, f"the mapping failed: {type(error).__name__}")
        if len(encoded) > MAX_MESSAGE_BYTES:
            detail = f"{len(encoded)} bytes; Segment takes {MAX_MESSAGE_BYTES}"
            return Unusable(DeadReason.OVERSIZED, detail)
        return Mapped(event, message, encoded)


def arrival_of(
    source: Source,
    segment: Segment,
    body: bytes,
    received_at: datetime,
    *,
    otherwise: Callable[[], Iterable[str]] | None = None,
) -> Arrival | Ignored:
    """What a webhook's body is to be stored as, if at all.

    Args:
        source: whose it is.
        segment: for which it is meant.
        body: whatever came.
        received_at: when.
        otherwise: gives what identifies it if nothing in it does; by default it is one of its own.
    """
    reading = _parse(source, body, received_at)
    if isinstance(reading, Ignored):
        return reading
    if isinstance(reading, Unusable):
        # It has no identity but its bytes: the same ones are kept once.
        message_id = segment.message_id(source.name, ("body", sha256(body).hexdigest()))
        return Arrival(source.name, message_id, received_at, body, reading)
    dedupe_key = reading.dedupe_key or (otherwise() if otherwise else None)
    return Arrival(
        source.name,
        segment.message_id(source.name, dedupe_key, reading.reported_at),
        received_at,
        body,
        None,
        reading.collection,
        keys_of(reading),
    )


def cut_arrival(
    source: Source,
    segment: Segment,
    body: bytes | bytearray,
    received_at: datetime,
    *,
    size: int,
    digest: str,
) -> Arrival:
    """What a webhook is to be stored as that is too large to be kept whole.

    Args:
        source: whose it is.
        segment: for which it is meant.
        body: its beginning.
        received_at: when it came.
        size: of the whole, in bytes.
        digest: of the whole; the same one is kept once.
    """
    kept = truncation.cut(body, size)
    message_id = segment.message_id(source.name, ("body", digest))
    return Arrival(source.name, message_id, received_at, kept, truncation.fault_of(kept))


def _parse(source: Source, body: bytes, received_at: datetime) -> ParseResult:
    try:
        return source.parse(body, received_at)
    except Exception as error:  # noqa: BLE001 (whatever a mapping does, the body is kept)
        kind = type(error).__name__
        _log.error("webhook.mapping_failed", source=source.name, error=kind)
        return Unusable(DeadReason.POISON, f"the mapping failed: {kind}")

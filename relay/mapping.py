"""Today's mapping: what Segment is sent for a stored body, or why there is nothing to send."""

from collections.abc import Iterable
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from relay import cutting
from relay.events import DeadReason, EmailEvent, Ignored, Unusable
from relay.providers import Provider
from relay.segment import MAX_MESSAGE_BYTES, Message, Segment, encode


class Stored(Protocol):
    """What is known of a webhook that was stored."""

    @property
    def provider(self) -> str:
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
    """Maps stored bodies, whichever provider's.

    Args:
        providers: every provider, configured or not.
        segment: for which the messages are meant.
    """

    def __init__(self, providers: Iterable[Provider], segment: Segment) -> None:
        self._providers = {provider.name: provider for provider in providers}
        self._segment = segment

    def map(self, stored: Stored) -> Mapped | Unusable:
        """What Segment is to be sent now; unusable, too, is what it would drop behind a 200."""
        try:
            if fault := cutting.fault_of(stored.body):
                return fault
            provider = self._providers[stored.provider]
            event = provider.parse(stored.body, stored.received_at)
            if isinstance(event, Unusable):
                return event
            if isinstance(event, Ignored):
                # Accepted once, so it is not dropped: the mapping or a setting has changed since.
                cause = f"set by {event.setting}" if event.setting else "none of the seven"
                return Unusable(DeadReason.IGNORED, f"{event.reason}: {cause}")
            message = self._segment.track_call(
                event, stored.message_id, provider.name, provider.integrations
            )
            encoded = encode(message)
        except Exception as error:  # noqa: BLE001 (one webhook must not stop the others)
            return Unusable(DeadReason.POISON, f"the mapping failed: {type(error).__name__}")
        if len(encoded) > MAX_MESSAGE_BYTES:
            detail = f"{len(encoded)} bytes; Segment takes {MAX_MESSAGE_BYTES}"
            return Unusable(DeadReason.OVERSIZED, detail)
        return Mapped(event, message, encoded)

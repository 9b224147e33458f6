"""Destinations: where relay sends events, and what each of them is held to.

A destination is one module in this folder, found by its name, with `DESTINATION` naming its class.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Protocol, TypeVar

from msgspec import Struct
from pydantic import BaseModel

from relay.events import EmailEvent, Unusable

_Item = TypeVar("_Item")


class Limits(Struct, frozen=True):
    """What a destination takes.

    Attributes:
        requests_per_second: from all of relay's processes together.
        in_flight: requests of one process at a time.
        batch_messages: messages in a request.
        batch_bytes: bytes of a request's messages.
        timeout_seconds: for a request, from the look-up of the host to the end of the answer.
    """

    requests_per_second: int
    in_flight: int
    batch_messages: int
    batch_bytes: int
    timeout_seconds: float


class Message(Struct, frozen=True):
    """What a destination is sent for one event, as a document and as bytes."""

    document: Mapping[str, Any]
    encoded: bytes


class Destination(Protocol):
    """Renders events and sends them; `tests/contracts/destination.py` checks each destination."""

    name: ClassVar[str]
    """What it is called in settings, metrics, logs and the outbox."""
    title: ClassVar[str]
    """What people call it."""
    settings_model: ClassVar[type[BaseModel]]
    """Its settings."""
    limits: ClassVar[Limits]
    curl: ClassVar[str]
    """A shell command that sends `$body`, one message; its credentials are relay's variables."""

    def __init__(self, settings: Any) -> None: ...  # noqa: ANN401 (an instance of settings_model)

    @property
    def url(self) -> str:
        """Base URL of its API, without any secret."""
        ...

    def warnings(self) -> list[str]:
        """Return what is allowed and unwise in its settings, a sentence each."""
        ...

    def message_id(
        self,
        source: str,
        dedupe_key: Iterable[str | None] | None,
        reported_at: datetime | None = None,
    ) -> str:
        """Return the id by which the destination knows copies of an event; random without a key.

        Equal for equal source, key, time and account of the destination: on any machine, for ever.
        """
        ...

    def render(
        self, event: EmailEvent, *, source: str, message_id: str, integrations: Mapping[str, bool]
    ) -> Message | Unusable:
        """Return what is sent for the event, or why the destination would drop it.

        Args:
            event: of the source.
            source: its name.
            message_id: see `message_id`.
            integrations: see `relay.sources.Source.integrations`.
        """
        ...

    def send(self, batch: Sequence[bytes], *, attempt: int) -> None:
        """Send encoded messages in one request; when this returns, the destination has them.

        Args:
            batch: within the limits.
            attempt: the number of this attempt, from 1.

        Raises:
            UnavailableError: not now. The destination may have taken the batch all the same.
            RefusedError: it refuses the key, the host or the request.
            RejectedError: it rejects something in the batch.
        """
        ...

    def connect(self) -> None:
        """Send a request without effect, by the same way as `send`.

        Raises:
            UnavailableError: the destination cannot be reached, or its certificate is not trusted.
        """
        ...


def destination_classes() -> dict[str, type[Destination]]:
    """Return every destination in this folder, by name."""
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    classes = (getattr(module, "DESTINATION", None) for module in modules)
    return {each.name: each for each in classes if each is not None}


def batches(
    encoded: Iterable[tuple[_Item, bytes]], limits: Limits
) -> Iterator[list[tuple[_Item, bytes]]]:
    """Cut items, each with its encoded message, into batches within the limits, in their order."""
    batch: list[tuple[_Item, bytes]] = []
    size = 0
    for item, message in encoded:
        if batch and (
            len(batch) == limits.batch_messages or size + len(message) > limits.batch_bytes
        ):
            yield batch
            batch, size = [], 0
        batch.append((item, message))
        size += len(message) + 1  # the comma
    if batch:
        yield batch

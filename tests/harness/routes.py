"""Routes for tests: real sources and destinations with settings of the tests' own."""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from relay.destinations import Rendering, destination_classes
from relay.destinations.segment import Segment, SegmentSettings
from relay.events import EmailEvent
from relay.routes import Route, Routes
from relay.sources import Source, source_classes
from relay.sources.vero import Vero, VeroSettings

WRITE_KEY = "a-write-key"
NOBODY = "http://127.0.0.1:1"
"""A URL at which nothing listens."""


def segment_at(
    host: str = NOBODY, write_key: str = WRITE_KEY, *, timeout_seconds: float = 15, **variables: str
) -> Segment:
    """Return a Segment source; variables are those of its settings."""
    given = {"SEGMENT_WRITE_KEY": write_key, "SEGMENT_HOST": host, **variables}
    return Segment(SegmentSettings.model_validate(given), timeout_seconds=timeout_seconds)


def vero() -> Vero:
    """Return Vero without a secret."""
    return Vero(VeroSettings())


def routes(sources: Iterable[Source] | None = None, destination: Segment | None = None) -> Routes:
    """Return routes of the sources, by default of Vero, to Segment."""
    return Routes([vero()] if sources is None else sources, [destination or segment_at()])


def route(source: Source | None = None, destination: Segment | None = None) -> Route:
    """Return the route of the source, by default of Vero, to Segment."""
    return Route(source or vero(), destination or segment_at())


def settings_models() -> tuple[dict[str, type], dict[str, type]]:
    """Return the settings of every source, and of every destination, by name."""
    return (
        {name: cls.settings_model for name, cls in source_classes().items()},
        {name: cls.settings_model for name, cls in destination_classes().items()},
    )


def track_call(
    event: EmailEvent,
    destination: Segment,
    *,
    message_id: str = "vero-1",
    integrations: Mapping[str, bool] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the track call that the destination is sent for an event of Vero's."""
    rendering = destination.render(
        event, source="vero", message_id=message_id, integrations=integrations
    )
    assert isinstance(rendering, Rendering)
    (message,) = rendering.messages
    assert json.loads(message.encoded) == message.document
    return dict(message.document)

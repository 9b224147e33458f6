"""Segment calls for tests, and the Vero that they go to."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from relay.destinations import Rendering
from relay.destinations.vero import VeroDestination
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.events import Call, CallType, Ignored, Unusable
from relay.outbox.entries import Arrival
from relay.routes import Routes
from relay.sources.segment import SegmentSource
from relay.sources.segment.settings import SegmentSourceSettings
from tests.harness.routes import NOBODY, segment_at
from tests.harness.routes import vero as vero_source

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AUTH_TOKEN = "an/auth+token=="

IDENTIFY: Mapping[str, Any] = {
    "type": "identify",
    "messageId": "call-1",
    "timestamp": "2026-03-01T11:59:58.750Z",
    "userId": "42",
    "traits": {"email": "ann@example.com", "plan": "pro"},
    "context": {"library": {"name": "analytics-node", "version": "6.2.0"}},
    "integrations": {},
}
TRACK: Mapping[str, Any] = {
    "type": "track",
    "messageId": "call-2",
    "timestamp": "2026-03-01T11:59:59.999+00:00",
    "userId": "42",
    "event": "Seeds Ordered",
    "properties": {"sort": "tomato", "price": 3.5},
    "context": {"traits": {"email": "ann@example.com"}, "userAgent": "Mozilla/5.0"},
}

_TEXTS = st.text(max_size=20) | st.text(st.characters(), max_size=3)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXTS
)
_VALUES = st.recursive(
    _SCALARS,
    lambda value: st.lists(value, max_size=4) | st.dictionaries(_TEXTS, value, max_size=4),
    max_leaves=8,
)
_OBJECTS = st.dictionaries(_TEXTS, _VALUES, max_size=4)
_IDS = st.sampled_from(["42", " 42 ", 42, "ann@example.com", "", None, "x" * 300]) | _VALUES
_EMAILS = st.sampled_from(["ann@example.com", " Ann@example.com ", "nobody", 7]) | _VALUES
_EVENTS = st.sampled_from(["Unsubscribe", "un_subscribed", "Resubscribe", "Seeds Ordered", ""])
_TAGS = (
    st.fixed_dictionaries(
        {},
        optional={
            "id": _IDS,
            "action": st.sampled_from(["add", "remove", "set"]),
            "values": st.lists(_TEXTS, max_size=3) | _VALUES,
        },
    )
    | _VALUES
)
_INTEGRATIONS = (
    st.fixed_dictionaries(
        {}, optional={"Vero": st.fixed_dictionaries({"tags": _TAGS}), "All": st.booleans()}
    )
    | st.fixed_dictionaries({"vero": st.booleans() | _VALUES})
    | _VALUES
)
_WITH_EMAIL = st.fixed_dictionaries({"email": _EMAILS}) | _OBJECTS | _VALUES

CALLS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.sampled_from([*CallType, "unheard_of"]).map(str)},
    optional={
        "userId": _IDS,
        "anonymousId": _IDS,
        "previousId": _IDS,
        "groupId": _IDS,
        "messageId": _TEXTS | _VALUES,
        "timestamp": st.sampled_from(["2026-03-01", "1970-01-01", 1_772_323_200]) | _VALUES,
        "event": _EVENTS | _VALUES,
        "name": _VALUES,
        "traits": _WITH_EMAIL,
        "properties": st.fixed_dictionaries({"id": _IDS}) | _OBJECTS | _VALUES,
        "context": st.fixed_dictionaries({"traits": _WITH_EMAIL}) | _OBJECTS | _VALUES,
        "integrations": _INTEGRATIONS,
    },
)
"""Calls with Segment's own fields, and anything in them."""


def segment_source(**variables: str) -> SegmentSource:
    """Return the source with these settings."""
    return SegmentSource(SegmentSourceSettings.model_validate(variables))


def vero_at(
    host: str = NOBODY,
    auth_token: str = AUTH_TOKEN,
    *,
    timeout_seconds: float = 10,
    **variables: str,
) -> VeroDestination:
    """Return a Vero project; variables are those of its settings."""
    given = {"VERO_AUTH_TOKEN": auth_token, "VERO_HOST": host, **variables}
    settings = VeroDestinationSettings.model_validate(given)
    return VeroDestination(settings, timeout_seconds=timeout_seconds)


def parsed(document: object, received_at: datetime = NOON) -> Call | Ignored | Unusable:
    """Return what a stored call is parsed as."""
    result = segment_source().parse(json.dumps(document).encode(), received_at)
    assert isinstance(result, Call | Ignored | Unusable)
    return result


def call(document: object) -> Call:
    """Return the call in the document."""
    result = parsed(document)
    assert isinstance(result, Call)
    return result


def rendered(document: object, vero: VeroDestination) -> Rendering | Ignored | Unusable:
    """Return what Vero is sent for a call."""
    return vero.render(call(document), source="segment", message_id="segment-1", integrations={})


def requests(
    document: object, vero: VeroDestination | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return the requests for a call, like `("POST users/track", {"id": "42"})`."""
    rendering = rendered(document, vero or vero_at())
    assert isinstance(rendering, Rendering)
    assert rendering.fault is None
    return [
        (f"{each['method']} {each['path'].removeprefix('/api/v2/')}", each["body"])
        for each in (message.document for message in rendering.messages)
    ]


def routes_both_ways(vero: VeroDestination | None = None) -> Routes:
    """Return the routes from Vero to Segment, and from Segment to Vero."""
    return Routes([vero_source(), segment_source()], [segment_at(), vero or vero_at()])


def accepted(routes: Routes, *documents: object, received_at: datetime = NOON) -> list[Arrival]:
    """Return what is stored for the calls."""
    arrivals = [
        routes["segment"].accept(json.dumps(document).encode(), received_at)
        for document in documents
    ]
    assert all(isinstance(arrival, Arrival) for arrival in arrivals)
    return [arrival for arrival in arrivals if isinstance(arrival, Arrival)]

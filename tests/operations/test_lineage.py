import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.console.documents import MAX_LINES, lines
from relay.operations.lineage import (
    MAX_BYTES,
    MAX_FIELDS,
    FieldLink,
    Path,
    followed_fields,
    leaves,
    links,
    path_text,
)
from relay.outbox.entries import Arrival
from relay.routes import Rendered
from tests.harness.calls import routes_both_ways
from tests.harness.routes import route

ROUTE = route()
AT = datetime(2026, 3, 1, tzinfo=UTC)
WEBHOOK = {
    "type": "bounced",
    "bounced_at": 1_767_225_600,
    "message_id": "mail-1",
    "bounce_type": "hard",
    "bounce_code": 550,
    "bounce_message": "nobody there",
    "user_agent": "Mail/1.0",
    "user": {"id": 7, "email": "reader@example.com"},
    "campaign": {
        "id": 3,
        "name": "spring",
        "type": "newsletter",
        "subject": "Hello",
        "group": "all",
        "series_title": "welcome",
        "trigger-event": "signed up",
        "variation": "B",
        "template": "plain",
        "locale": "en",
        "tags": ["one", "two"],
    },
}
PROPERTIES = {
    "message_id": "email_id",
    "bounce_type": "bounce_type",
    "bounce_code": "bounce_code",
    "bounce_message": "bounce_message",
    "campaign.id": "campaign_id",
    "campaign.name": "campaign_name",
    "campaign.type": "campaign_type",
    "campaign.subject": "email_subject",
    "campaign.group": "campaign_group",
    "campaign.series_title": "campaign_series",
    "campaign.trigger-event": "trigger_event",
    "campaign.variation": "variation",
    "campaign.template": "template",
    "campaign.locale": "locale",
    "campaign.tags[0]": "tags",
    "campaign.tags[1]": "tags",
}


def render(body: bytes) -> Any:  # noqa: ANN401 (as Route's)
    return ROUTE.render(Arrival("vero", "segment", "vero-1", AT, body))


def links_of(document: dict[str, Any], **options: Any) -> list[FieldLink]:  # noqa: ANN401 (passed on)
    rendered = render(json.dumps(document).encode())
    assert isinstance(rendered, Rendered)
    return links(document, rendered, render, **options)


def targets(document: dict[str, Any], source: str) -> set[str]:
    return {link.target for link in links_of(document) if link.source == source}


@pytest.mark.parametrize(("source", "name"), PROPERTIES.items())
def test_a_field_is_linked_to_the_property_that_it_becomes(source: str, name: str) -> None:
    assert targets(WEBHOOK, source) - {"messageId"} == {f"properties.{name}"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("type", "event"),
        ("bounced_at", "timestamp"),
        ("user_agent", "context.userAgent"),
        ("user.id", "userId"),
    ],
)
def test_a_field_is_linked_to_its_place_outside_the_properties(source: str, target: str) -> None:
    assert targets(WEBHOOK, source) - {"messageId"} == {target}


def test_fields_of_the_dedupe_key_are_linked_to_the_message_id() -> None:
    dedupe_key = {link.source for link in links_of(WEBHOOK) if link.target == "messageId"}

    assert dedupe_key == {"bounced_at", "message_id", "user_agent", "user.id"}


def test_every_field_of_the_track_call_has_a_source_field() -> None:
    rendered = render(json.dumps(WEBHOOK).encode())
    paths = {path_text(path) for path, _ in leaves(rendered.document)}
    fixed = {name for name in paths if name.startswith(("context.integration", "context.library"))}
    fixed |= {name for name in paths if name.startswith("integrations")}
    fixed |= {"type", "anonymousId"}  # the last is null where there is a user id

    assert {link.target for link in links_of(WEBHOOK)} == paths - fixed


CALL = {
    "type": "identify",
    "messageId": "call-1",
    "timestamp": "2026-02-28T12:00:00Z",
    "userId": "42",
    "traits": {"email": "ann@example.com", "plan": "pro"},
    "context": {"ip": "192.0.2.1"},
    "integrations": {"Vero": {"tags": {"action": "add", "values": ["early", "late"]}}},
}
TAGS = "integrations.Vero.tags"


def links_of_call(document: dict[str, Any]) -> set[tuple[str, str, int]]:
    """Return what each field of the call is linked to, and in which message that is."""
    routes = routes_both_ways()

    def render_call(body: bytes) -> Any:  # noqa: ANN401 (as Route's)
        return routes.render(Arrival("segment", "vero", "segment-1", AT, body))

    rendered = render_call(json.dumps(document).encode())
    return {
        (link.source, link.target, link.message) for link in links(document, rendered, render_call)
    }


def test_a_field_is_linked_to_each_message_that_it_goes_to() -> None:
    assert links_of_call(CALL) == {
        ("type", "path", 0),
        ("messageId", "messageId", 0),
        ("userId", "body.id", 0),
        ("userId", "body.data.id", 0),
        ("userId", "body.id", 1),
        ("traits.email", "body.email", 0),
        ("traits.email", "body.data.email", 0),
        ("traits.plan", "body.data.plan", 0),
        (f"{TAGS}.values[0]", "body.add[0]", 1),
        (f"{TAGS}.values[1]", "body.add[1]", 1),
        # With another action there are no tags.
        *((f"{TAGS}.action", target, 1) for target in ("method", "path", "body.id")),
        (f"{TAGS}.action", "body.add[0]", 1),
        (f"{TAGS}.action", "body.add[1]", 1),
    }


def test_the_fields_of_a_message_are_linked_although_a_part_of_the_call_is_not_sent() -> None:
    bad_tags = {"Vero": {"tags": {"action": "replace", "values": ["early"]}}}
    found = links_of_call({**CALL, "integrations": bad_tags})

    assert ("traits.plan", "body.data.plan", 0) in found
    assert {source for source, _, _ in found if source.startswith(TAGS)} == set()


def test_fields_that_are_not_forwarded_have_no_link() -> None:
    campaign = {"sent_to": "other@example.com", "name": "n", "campaign_title": "second to name"}
    user = {"id": 1, "email": "reader@example.com", "roles": ["a", {}], "is": None}
    blanks: dict[str, Any] = {
        "message_id": " ",
        "user_agent": "",
        "bounce_type": None,
        "bounce_code": [],
    }
    document = {"type": "opened", "sent_at": 1, "user": user, "campaign": campaign, **blanks}

    assert {link.source for link in links_of(document)} == {
        "type",
        "user.id",
        "user.email",
        "campaign.name",
    }


def test_a_fallback_field_is_linked_when_it_is_used() -> None:
    document = {"type": "opened", "campaign": {"sent_to": "reader@example.com"}}

    assert targets(document, "campaign.sent_to") >= {"context.traits.email"}


def test_a_field_that_decides_about_the_event_is_linked_to_it() -> None:
    """With another channel the event is no email event."""
    document = {**WEBHOOK, "campaign": {"channel": "email"}}

    assert targets(document, "campaign.channel") == {"event"}


def test_links_use_the_given_form_of_a_path() -> None:
    def slashed(path: Path) -> str:
        return "/".join(map(str, path))

    assert FieldLink("campaign/tags/0", "properties/tags") in links_of(WEBHOOK, name=slashed)


def test_finding_links_does_not_change_the_document() -> None:
    document = json.loads(json.dumps(WEBHOOK))
    links_of(document)

    assert document == WEBHOOK


def test_the_larger_a_webhook_the_fewer_fields_are_followed() -> None:
    small = {f"f{number}": 1 for number in range(MAX_FIELDS + 9)}
    large = {"type": "opened", "x": "x" * (MAX_BYTES // 4), "y": 1, "z": 1, "a": 1}

    assert len(followed_fields(small)) == MAX_FIELDS
    assert [path for path, _ in followed_fields(large)] == [("type",), ("x",), ("y",)]
    assert followed_fields({}) == [((), {})]
    assert len(lines({"numbers": [0] * MAX_LINES})) == MAX_LINES + 1


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.sampled_from([10**4299, 10**4300 - 1, 1 - 10**4300, 2**64 - 1, -(2**63)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(["", " ", "opened", "2026-01-01", "1767225600", "a@example.com"])
)
_NAMES = st.text(max_size=5) | st.sampled_from(
    ["type", "action", "user", "id", "email", "campaign", "tags", "opened_at", "message_id"]
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(_NAMES, _JSON, max_size=5),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["opened", "clicked"])},
        optional={"campaign": st.dictionaries(_NAMES, _JSON), "opened_at": _SCALARS},
    ),
    st.fixed_dictionaries({"id": st.just(1)}, optional={"email": _SCALARS}),
)
def test_any_webhook_that_becomes_an_event_can_be_linked_and_shown(
    other: dict[str, Any], known: dict[str, Any], user: dict[str, Any]
) -> None:
    document = {**other, **known, "user": user}
    rendered = render(json.dumps(document).encode())
    if not isinstance(rendered, Rendered):
        return
    names = {path_text(path) for path, _ in leaves(document)}

    assert {link.source for link in links(document, rendered, render)} <= names
    assert lines(document)[-1].value in {"}", "{}"}

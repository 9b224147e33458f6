from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given

from relay.destinations import Rendering
from relay.destinations.vero import VeroDestination
from relay.events import Call, CallType, DeadReason, Ignored, Unusable
from tests.harness.calls import CALLS, IDENTIFY, TRACK, call, parsed, rendered, requests, vero_at

EXTRAS = {"created_at": 1_772_366_399, "source": "segment"}
"""The time of `TRACK`, floored to seconds."""

Requests = list[tuple[str, dict[str, Any]]]


def track(event: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 (any JSON)
    """A track call of user 42, without an address."""
    return {
        "type": "track",
        "timestamp": TRACK["timestamp"],
        "userId": "42",
        "event": event,
    } | fields


def tagged(document: Mapping[str, Any], tags: object) -> dict[str, Any]:
    return {**document, "integrations": {"Vero": {"tags": tags}}}


TABLE: dict[str, tuple[Mapping[str, Any], Requests]] = {
    "identify": (
        {"type": "identify", "userId": "42", "traits": {"email": "ann@example.com", "plan": "pro"}},
        [
            (
                "POST users/track",
                {
                    "id": "42",
                    "email": "ann@example.com",
                    "data": {"email": "ann@example.com", "plan": "pro", "id": "42"},
                },
            )
        ],
    ),
    "identify without traits": (
        {"type": "identify", "userId": 42},
        [("POST users/track", {"id": "42", "data": {"id": "42"}})],
    ),
    "identify with the address in the context": (
        {"type": "identify", "userId": "42", "context": {"traits": {"email": "ann@example.com"}}},
        [("POST users/track", {"id": "42", "email": "ann@example.com", "data": {"id": "42"}})],
    ),
    "identify with an address as user id": (
        {"type": "identify", "userId": "ann@example.com"},
        [
            (
                "POST users/track",
                {
                    "id": "ann@example.com",
                    "email": "ann@example.com",
                    "data": {"id": "ann@example.com"},
                },
            )
        ],
    ),
    "identify with an address that is none": (
        {"type": "identify", "userId": "42", "traits": {"email": "ann at example.com"}},
        [("POST users/track", {"id": "42", "data": {"email": "ann at example.com", "id": "42"}})],
    ),
    "identify with a user agent": (
        {"type": "identify", "userId": "42", "context": {"userAgent": "Mozilla/5.0"}},
        [("POST users/track", {"id": "42", "data": {"id": "42", "userAgent": "Mozilla/5.0"}})],
    ),
    "identify keeps values as they are": (
        {
            "type": "identify",
            "userId": "42",
            "traits": {
                "id": "another",
                "since": "2014-01-02",
                "phone": None,
                "address": {"city": "Ōsaka", "geo": [34.69, None]},
                "big": 123456789012345678901234567890,
                "small": 1e-07,
                "whole": 9.0,
                "yes": True,
            },
        },
        [
            (
                "POST users/track",
                {
                    "id": "42",
                    "data": {
                        "id": "42",
                        "since": "2014-01-02",
                        "phone": None,
                        "address": {"city": "Ōsaka", "geo": [34.69, None]},
                        "big": 123456789012345678901234567890,
                        "small": 1e-07,
                        "whole": 9.0,
                        "yes": True,
                    },
                },
            )
        ],
    ),
    "identify with an address only": (
        {"type": "identify", "anonymousId": "v-1", "traits": {"email": "ann@example.com"}},
        [("POST users/track", {"email": "ann@example.com", "data": {"email": "ann@example.com"}})],
    ),
    "an audience of Engage": (
        {
            "type": "identify",
            "userId": "42",
            "traits": {"recent_buyer": True},
            "context": {"personas": {"computation_class": "audience"}},
        },
        [("POST users/track", {"id": "42", "data": {"recent_buyer": True, "id": "42"}})],
    ),
    "track": (
        TRACK,
        [
            (
                "POST events/track",
                {
                    "event_name": "Seeds Ordered",
                    "identity": {"id": "42", "email": "ann@example.com"},
                    "data": {"sort": "tomato", "price": 3.5, "userAgent": "Mozilla/5.0"},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "track without properties": (
        track("Seeds Ordered"),
        [
            (
                "POST events/track",
                {
                    "event_name": "Seeds Ordered",
                    "identity": {"id": "42"},
                    "data": {},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "track with an address as user id, which is not sent as address": (
        track("Seeds Ordered", userId="ann@example.com", properties={"email": "a@example.com"}),
        [
            (
                "POST events/track",
                {
                    "event_name": "Seeds Ordered",
                    "identity": {"id": "ann@example.com"},
                    "data": {"email": "a@example.com"},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "track with an address only": (
        track("Seeds Ordered", userId=None, context={"traits": {"email": "ann@example.com"}}),
        [
            (
                "POST events/track",
                {
                    "event_name": "Seeds Ordered",
                    "identity": {"email": "ann@example.com"},
                    "data": {},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "unsubscribe": (
        track("Unsubscribe"),
        [("POST users/unsubscribe", {"id": "42", "extras": EXTRAS})],
    ),
    "unsubscribe the person among the properties": (
        track("Unsubscribe", properties={"id": 43}),
        [("POST users/unsubscribe", {"id": "43", "extras": EXTRAS})],
    ),
    "unsubscribe by address": (
        track("Unsubscribe", userId=None, context={"traits": {"email": "ann@example.com"}}),
        [("POST users/unsubscribe", {"email": "ann@example.com", "extras": EXTRAS})],
    ),
    "resubscribe": (
        track("Resubscribe"),
        [("POST users/resubscribe", {"id": "42"})],
    ),
    "resubscribe the person among the properties": (
        track("Resubscribe", properties={"id": "43"}),
        [("POST users/resubscribe", {"id": "43"})],
    ),
    "group": (
        {
            "type": "group",
            "userId": "42",
            "groupId": "acme",
            "traits": {"name": "Acme", "email": "office@example.com"},
        },
        [
            (
                "PUT users/edit",
                {
                    "id": "42",
                    "changes": {
                        "group": {"name": "Acme", "email": "office@example.com", "id": "acme"}
                    },
                },
            )
        ],
    ),
    "group with an address only": (
        {
            "type": "group",
            "groupId": "acme",
            "context": {"traits": {"email": "ann@example.com"}},
        },
        [("PUT users/edit", {"email": "ann@example.com", "changes": {"group": {"id": "acme"}}})],
    ),
    "alias": (
        {"type": "alias", "previousId": "ann@example.com", "userId": "42"},
        [("PUT users/reidentify", {"id": "ann@example.com", "new_id": "42"})],
    ),
    "page": (
        {
            "type": "page",
            "timestamp": TRACK["timestamp"],
            "userId": "42",
            "name": "Pricing",
            "properties": {"url": "https://example.com/pricing", "title": "Pricing"},
            "context": {"userAgent": "Mozilla/5.0", "traits": {"email": "ann@example.com"}},
        },
        [
            (
                "POST events/track",
                {
                    "event_name": "viewed_page",
                    "identity": {"id": "42"},
                    "data": {"url": "https://example.com/pricing"},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "page with the URL in the context": (
        {
            "type": "page",
            "timestamp": TRACK["timestamp"],
            "userId": "42",
            "properties": {"url": None},
            "context": {"page": {"url": "https://example.com/"}},
        },
        [
            (
                "POST events/track",
                {
                    "event_name": "viewed_page",
                    "identity": {"id": "42"},
                    "data": {"url": "https://example.com/"},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "page without a URL": (
        {"type": "page", "timestamp": TRACK["timestamp"], "userId": "42"},
        [
            (
                "POST events/track",
                {
                    "event_name": "viewed_page",
                    "identity": {"id": "42"},
                    "data": {},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "tags": (
        tagged(
            {"type": "identify", "userId": "42"}, {"action": "add", "values": ["giants", "niners"]}
        ),
        [
            ("POST users/track", {"id": "42", "data": {"id": "42"}}),
            ("PUT users/tags/edit", {"id": "42", "add": ["giants", "niners"]}),
        ],
    ),
    "tags of another person": (
        tagged(track("Unsubscribe"), {"id": " 43 ", "action": "remove", "values": ["giants"]}),
        [
            ("POST users/unsubscribe", {"id": "42", "extras": EXTRAS}),
            ("PUT users/tags/edit", {"id": "43", "remove": ["giants"]}),
        ],
    ),
    "tags with an alias": (
        tagged(
            {"type": "alias", "previousId": "41", "userId": "42"},
            {"id": "", "action": "add", "values": ["renamed"]},
        ),
        [
            ("PUT users/reidentify", {"id": "41", "new_id": "42"}),
            ("PUT users/tags/edit", {"id": "42", "add": ["renamed"]}),
        ],
    ),
    "tags of a person without an id": (
        tagged(
            {"type": "identify", "traits": {"email": "ann@example.com"}},
            {"action": "add", "values": ["giants"]},
        ),
        [
            (
                "POST users/track",
                {"email": "ann@example.com", "data": {"email": "ann@example.com"}},
            ),
            ("PUT users/tags/edit", {"email": "ann@example.com", "add": ["giants"]}),
        ],
    ),
    "tags of the person among the properties": (
        tagged(
            track("Unsubscribe", userId=None, properties={"id": "43"}),
            {"action": "add", "values": ["gone"]},
        ),
        [
            ("POST users/unsubscribe", {"id": "43", "extras": EXTRAS}),
            ("PUT users/tags/edit", {"id": "43", "add": ["gone"]}),
        ],
    ),
    "no tags": (
        tagged({"type": "identify", "userId": "42"}, {"action": "add", "values": []}),
        [("POST users/track", {"id": "42", "data": {"id": "42"}})],
    ),
    "tags of a call that is ignored": (
        tagged(
            {"type": "page", "anonymousId": "visitor-1"},
            {"id": "42", "action": "add", "values": ["seen"]},
        ),
        [("PUT users/tags/edit", {"id": "42", "add": ["seen"]})],
    ),
    "tags with a screen, which is ignored": (
        tagged({"type": "screen", "userId": "42"}, {"action": "add", "values": ["mobile"]}),
        [("PUT users/tags/edit", {"id": "42", "add": ["mobile"]})],
    ),
}


@pytest.mark.parametrize(("document", "expected"), TABLE.values(), ids=TABLE)
def test_a_call_becomes_requests(document: Mapping[str, Any], expected: Requests) -> None:
    assert requests(document) == expected


VISITOR = {"anonymousId": "visitor-1"}
SETTINGS: dict[str, tuple[VeroDestination, Mapping[str, Any], Requests]] = {
    "VERO_ANONYMOUS=id: identify": (
        vero_at(VERO_ANONYMOUS="id"),
        {"type": "identify", **VISITOR, "traits": {"plan": "free"}},
        [("POST users/track", {"id": "visitor-1", "data": {"plan": "free"}})],
    ),
    "VERO_ANONYMOUS=id: page": (
        vero_at(VERO_ANONYMOUS="id"),
        {"type": "page", "timestamp": TRACK["timestamp"], **VISITOR},
        [
            (
                "POST events/track",
                {
                    "event_name": "viewed_page",
                    "identity": {"id": "visitor-1"},
                    "data": {},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "VERO_SCREEN=track": (
        vero_at(VERO_SCREEN="track"),
        {
            "type": "screen",
            "timestamp": TRACK["timestamp"],
            "userId": "42",
            "name": "Brightness",
            "properties": {"from": "Settings"},
        },
        [
            (
                "POST events/track",
                {
                    "event_name": "viewed_screen",
                    "identity": {"id": "42"},
                    "data": {"name": "Brightness", "from": "Settings"},
                    "extras": EXTRAS,
                },
            )
        ],
    ),
    "VERO_DELETE=1": (
        vero_at(VERO_DELETE="1"),
        tagged({"type": "delete", "userId": "42"}, {"action": "add", "values": ["gone"]}),
        [("POST users/delete", {"id": "42"})],
    ),
}


@pytest.mark.parametrize(("vero", "document", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_decides_what_a_call_becomes(
    vero: VeroDestination, document: Mapping[str, Any], expected: Requests
) -> None:
    assert requests(document, vero) == expected


@pytest.mark.parametrize(
    ("name", "exact", "segment"),
    [
        ("Unsubscribe", True, True),
        ("unsubscribe", True, True),
        ("UNSUBSCRIBE", True, False),
        ("Unsubscribed", True, True),
        ("un-Subscribe_d", True, False),
        (" un subscribed ", True, False),
        ("Email Unsubscribed", False, True),
        ("Viewed Unsubscribe Page", False, True),
        ("Unsubscribes", False, True),
        ("Subscribed", False, False),
        ("Resubscribe", False, False),
    ],
)
def test_which_events_unsubscribe(name: str, *, exact: bool, segment: bool) -> None:
    for rule, expected in (("exact", exact), ("segment", segment)):
        ((path, _),) = requests(track(name), vero_at(VERO_UNSUBSCRIBE=rule))

        assert (path == "POST users/unsubscribe") == expected


@pytest.mark.parametrize("name", ["Resubscribed", "resubscribe", "RESUBSCRIBE", "Re-subscribe"])
def test_only_one_name_resubscribes(name: str) -> None:
    ((path, body),) = requests(track(name))

    assert (path, body["event_name"]) == ("POST events/track", name)


IGNORED: dict[str, tuple[Mapping[str, Any], Ignored]] = {
    "screen": ({"type": "screen", "userId": "42"}, Ignored("screen", "VERO_SCREEN")),
    "identify": ({"type": "identify", **VISITOR}, Ignored("anonymous", "VERO_ANONYMOUS")),
    "group": ({"type": "group", **VISITOR}, Ignored("anonymous", "VERO_ANONYMOUS")),
    "page": ({"type": "page", **VISITOR}, Ignored("anonymous", "VERO_ANONYMOUS")),
    "track": ({"type": "track", "event": "x", **VISITOR}, Ignored("anonymous", "VERO_ANONYMOUS")),
    "alias": ({"type": "alias", "previousId": 42, "userId": "42"}, Ignored("same_id")),
    "tags of nobody": (
        tagged({"type": "page", **VISITOR}, {"action": "add", "values": ["x"]}),
        Ignored("anonymous", "VERO_ANONYMOUS"),
    ),
    "tags that are none": (
        tagged({"type": "screen", "userId": "42"}, {"action": "add", "values": []}),
        Ignored("screen", "VERO_SCREEN"),
    ),
}


@pytest.mark.parametrize(("document", "ignored"), IGNORED.values(), ids=IGNORED)
def test_a_call_that_is_not_for_vero_is_ignored(
    document: Mapping[str, Any], ignored: Ignored
) -> None:
    assert rendered(document, vero_at()) == ignored


LONG = "é" * 255
SHAPE = 'it should be like {"action": "add", "values": ["a tag"]}'
UNUSABLE: dict[str, tuple[Mapping[str, Any], DeadReason, str]] = {
    "nobody": (
        {"type": "identify", "traits": {"email": "no address"}},
        DeadReason.NO_RECIPIENT,
        "no user id, no address and no anonymous id",
    ),
    "a group's address is nobody's": (
        {"type": "group", "traits": {"email": "office@example.com"}},
        DeadReason.NO_RECIPIENT,
        "no user id, no address and no anonymous id",
    ),
    "no event": (
        {"type": "track", "userId": "42", "event": " "},
        DeadReason.INCOMPLETE,
        "a track without the name of an event",
    ),
    "no old id": (
        {"type": "alias", "userId": "42", "anonymousId": "visitor-1"},
        DeadReason.INCOMPLETE,
        "an alias without previousId or without userId",
    ),
    "no new id": (
        {"type": "alias", "previousId": "42"},
        DeadReason.INCOMPLETE,
        "an alias without previousId or without userId",
    ),
    "nobody to delete": (
        {"type": "delete", "anonymousId": "visitor-1"},
        DeadReason.INCOMPLETE,
        "a deletion without userId",
    ),
    "somebody to delete": (
        {"type": "delete", "userId": "42"},
        DeadReason.DELETION_REQUESTED,
        "Segment asks to delete this person",
    ),
    "a long id": (
        {"type": "identify", "userId": LONG},
        DeadReason.OVERSIZED,
        "the user id has 255 characters; Vero takes fewer than 255",
    ),
    "a long new id": (
        {"type": "alias", "previousId": "42", "userId": LONG},
        DeadReason.OVERSIZED,
        "the new user id has 255 characters; Vero takes fewer than 255",
    ),
    "a long id in an event": (
        track("x", userId=LONG),
        DeadReason.OVERSIZED,
        "the user id has 255 characters; Vero takes fewer than 255",
    ),
    "a long name of an event": (
        track(LONG),
        DeadReason.OVERSIZED,
        "the name of the event has 255 characters; Vero takes fewer than 255",
    ),
    "bad tags of a call that is ignored": (
        tagged({"type": "screen", "userId": "42"}, {"action": "add", "values": "x"}),
        DeadReason.BAD_TAGS,
        f"integrations.Vero.tags: the values are not a list of texts; {SHAPE}",
    ),
}


@pytest.mark.parametrize(("document", "reason", "detail"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_call_that_cannot_be_sent_is_a_dead_letter(
    document: Mapping[str, Any], reason: DeadReason, detail: str
) -> None:
    assert rendered(document, vero_at()) == Unusable(reason, detail)


def test_texts_that_are_just_short_enough_are_sent() -> None:
    short = LONG[1:]

    assert requests(track(short, userId=short))[0][1]["event_name"] == short
    assert requests({"type": "alias", "previousId": "42", "userId": short})


@pytest.mark.parametrize(
    ("tags", "fault"),
    [
        (True, "it is not an object"),
        (["x"], "it is not an object"),
        ({"action": "set", "values": ["x"]}, "the action is neither add nor remove"),
        ({"action": ["add"], "values": ["x"]}, "the action is neither add nor remove"),
        ({"values": ["x"]}, "the action is neither add nor remove"),
        ({"add": ["x"]}, "the action is neither add nor remove"),
        ({"action": "add"}, "the values are not a list of texts"),
        ({"action": "add", "values": "x"}, "the values are not a list of texts"),
        ({"action": "add", "values": ["x", 5]}, "the values are not a list of texts"),
        ({"action": "add", "values": ["x", " "]}, "a value is blank"),
        (
            {"id": {"is": "ann@example.com"}, "action": "add", "values": ["x"]},
            "the id is neither a text nor a number",
        ),
        ({"id": True, "action": "add", "values": ["x"]}, "the id is neither a text nor a number"),
    ],
)
def test_bad_tags_let_the_call_itself_go(tags: object, fault: str) -> None:
    rendering = rendered(tagged({"type": "identify", "userId": "42"}, tags), vero_at())

    assert isinstance(rendering, Rendering)
    assert [message.document["path"] for message in rendering.messages] == ["/api/v2/users/track"]
    assert rendering.fault is not None
    assert rendering.fault.reason is DeadReason.BAD_TAGS
    assert rendering.fault.detail.startswith(f"integrations.Vero.tags: {fault}; it should be like")


def test_a_long_id_among_the_tags_lets_the_call_itself_go() -> None:
    tags = {"id": LONG, "action": "add", "values": ["x"]}
    rendering = rendered(tagged({"type": "identify", "userId": "42"}, tags), vero_at())

    assert isinstance(rendering, Rendering)
    assert len(rendering.messages) == 1
    assert rendering.fault is not None
    assert rendering.fault.reason is DeadReason.OVERSIZED


@pytest.mark.parametrize("tags", [None, {}])
@pytest.mark.parametrize("name", ["Vero", "vero", "VERO"])
def test_the_name_of_the_integration_is_found_in_any_case(name: str, tags: object) -> None:
    options = {"tags": tags or {"action": "add", "values": ["x"]}} if tags is not None else {}
    document = {"type": "identify", "userId": "42", "integrations": {name: options}}

    assert len(requests(document)) == (1 if tags is None else 2)


@pytest.mark.parametrize("vero", [True, None, "x", [], {}, {"tags": None}])
def test_options_without_tags_have_none(vero: object) -> None:
    document = {"type": "identify", "userId": "42", "integrations": {"Vero": vero}}

    assert len(requests(document)) == 1


# Lanes.


def lanes_of(document: Mapping[str, Any], vero: VeroDestination) -> tuple[str, ...]:
    rendering = rendered(document, vero)
    assert isinstance(rendering, Rendering)
    return rendering.lanes


@pytest.mark.parametrize(
    ("document", "lanes"),
    [
        (IDENTIFY, {"id:42"}),
        (TRACK, {"id:42"}),
        ({"type": "page", "userId": " 42 "}, {"id:42"}),
        ({"type": "group", "userId": 42}, {"id:42"}),
        ({"type": "identify", "traits": {"email": "Ann@Example.com"}}, {"email:ann@example.com"}),
        ({"type": "identify", "userId": "ann@example.com"}, {"email:ann@example.com"}),
        (track("Unsubscribe", properties={"id": 43}), {"id:43"}),
        (track("Resubscribe", properties={"id": 43}), {"id:43"}),
        (track("Seeds Ordered", properties={"id": 43}), {"id:42"}),
        (
            {"type": "alias", "previousId": "ann@example.com", "userId": "42"},
            {"email:ann@example.com", "id:42"},
        ),
        (tagged(IDENTIFY, {"id": 43, "action": "add", "values": ["x"]}), {"id:42", "id:43"}),
        (tagged(IDENTIFY, {"id": 42, "action": "add", "values": ["x"]}), {"id:42"}),
        (tagged(IDENTIFY, {"id": 43, "action": "add", "values": []}), {"id:42"}),
        (tagged(IDENTIFY, {"id": 43, "action": "set", "values": ["x"]}), {"id:42"}),
    ],
)
def test_a_call_is_sent_in_the_lanes_of_those_it_writes_to(
    document: Mapping[str, Any], lanes: set[str]
) -> None:
    assert {*lanes_of(document, vero_at())} == lanes


def test_a_deletion_is_sent_in_the_persons_lane() -> None:
    vero = vero_at(VERO_DELETE="1")

    assert lanes_of({"type": "delete", "userId": "42"}, vero) == ("id:42",)


# Privileges.


@pytest.mark.parametrize(
    ("document", "privilege"),
    [
        (IDENTIFY, None),
        (TRACK, None),
        ({"type": "page", "userId": "42"}, None),
        ({"type": "page", "anonymousId": "visitor-1"}, None),
        ({"type": "group", "userId": "42", "groupId": "acme"}, None),
        ({"type": "identify", "traits": {"email": "ann@example.com"}}, None),
        ({"type": "identify"}, None),
        (track("Seeds Ordered", properties={"id": "43"}), None),
        (tagged(IDENTIFY, {"action": "add", "values": ["x"]}), None),
        (tagged(IDENTIFY, {"id": "42", "action": "remove", "values": ["x"]}), None),
        ({"type": "alias", "previousId": "41", "userId": "42"}, "alias"),
        ({"type": "alias"}, "alias"),
        ({"type": "delete", "userId": "42"}, "delete"),
        (track("Unsubscribe"), "unsubscribe"),
        (track("Unsubscribe", properties={"id": "43"}), "unsubscribe"),
        (track("Resubscribe"), "resubscribe"),
        (tagged(IDENTIFY, {"id": "43", "action": "add", "values": ["x"]}), "another_id"),
        (
            tagged(
                {"type": "page", "anonymousId": "visitor-1"},
                {"id": "43", "action": "add", "values": ["x"]},
            ),
            "another_id",
        ),
        (tagged(IDENTIFY, {"action": "add", "values": ["x", " Unsubscribed"]}), "unsubscribe"),
        (tagged(IDENTIFY, {"action": "remove", "values": ["unsubscribed"]}), "unsubscribe"),
    ],
)
def test_the_privilege_that_a_call_needs(
    document: Mapping[str, Any], privilege: str | None
) -> None:
    assert vero_at().privilege(call(document)) == privilege


def test_the_rule_for_unsubscribing_decides_what_needs_a_privilege() -> None:
    document = call(track("Email Unsubscribed"))

    assert vero_at().privilege(document) is None
    assert vero_at(VERO_UNSUBSCRIBE="segment").privilege(document) == "unsubscribe"


@given(CALLS)
def test_any_call_says_what_it_needs(document: dict[str, Any]) -> None:
    read = parsed(document)
    if isinstance(read, Call) and read.type in {CallType.ALIAS, CallType.DELETE}:
        assert vero_at().privilege(read) == read.type

import base64
import json
from collections import ChainMap
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st

from relay.events import Collection, DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.sources import Webhook
from relay.sources.vero import Vero, VeroSettings
from tests.contracts.outbox import NOON
from tests.contracts.source import VALUES, SourceContract
from tests.harness.routes import segment_at

DAY = timedelta(days=1)
EPOCH = 1_772_323_200
REPORTED_AT = datetime(2026, 3, 1, tzinfo=UTC)

COLLECTIONS = {
    "sent": Collection.SENT,
    "delivered": Collection.DELIVERED,
    "opened": Collection.OPENED,
    "clicked": Collection.LINK_CLICKED,
    "unsubscribed": Collection.UNSUBSCRIBED,
    "bounced": Collection.BOUNCED,
    "complained": Collection.MARKED_AS_SPAM,
}
OTHER_TYPES = ["converted", "failed", "resubscribed", "user_created", "user_updated"]

# Each property and the fields that it comes from. The first field that is not blank counts.
PROPERTIES = {
    "email_id": ["message_id", "campaign.message_id"],
    "email_subject": ["campaign.subject", "campaign.email_subject"],
    "campaign_id": ["campaign.id"],
    "campaign_name": ["campaign.name", "campaign.campaign_title"],
    "campaign_type": ["campaign.type"],
    "campaign_group": ["campaign.group"],
    "campaign_series": ["campaign.series_title"],
    "trigger_event": ["campaign.trigger-event"],
    "variation": ["campaign.variation", "campaign.variation_name"],
    "template": ["campaign.template"],
    "locale": ["campaign.locale"],
    "tags": ["campaign.tags"],
    "bounce_type": ["bounce_type"],
    "bounce_code": ["bounce_code"],
    "bounce_message": ["bounce_message"],
}
FIELDS = [(place, name) for name, places in PROPERTIES.items() for place in places]
PAIRS = [(name, places) for name, places in PROPERTIES.items() if len(places) == 2]

OPENED: Mapping[str, Any] = {
    "type": "opened",
    "opened_at": EPOCH,
    "message_id": "20260228233000.7.4F2A@mail.example.com",
    "user_agent": " Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101",
    "user": {"id": 4711, "email": " Ada@example.com"},
    "campaign": {
        "id": 88,
        "name": "Basket reminder ",
        "channel": "email",
        "trigger-event": "left basket",
        "sent_to": "ada.l@example.com",
    },
}
UNSUBSCRIBED: Mapping[str, Any] = {
    "type": "unsubscribed",
    "unsubscribed_at": EPOCH,
    "user": {"id": None, "email": "ada@example.com"},
    "campaign": {"campaign_title": "Basket reminder", "email_subject": "Still thinking about it?"},
}
BARE: Mapping[str, Any] = {"type": "bounced", "user": {"id": 4711}}
SAMPLE_USER = {"id": 123, "email": "steve@getvero.com"}

SECRET = "first-secret-0123456789"
VERO = Vero(VeroSettings.model_validate({"secret": SECRET}))


def changed(document: Mapping[str, Any], place: str, value: object) -> dict[str, Any]:
    """Return the document with the value in one place, for example `campaign.name`."""
    outer, _, inner = place.rpartition(".")
    if outer:
        return {**document, outer: {**document.get(outer, {}), inner: value}}
    return {**document, inner: value}


def read(document: object, received_at: datetime = NOON) -> ParseResult:
    return VERO.parse(json.dumps(document).encode(), received_at)


def event(document: object, received_at: datetime = NOON) -> EmailEvent:
    result = read(document, received_at)
    assert isinstance(result, EmailEvent)
    return result


def reason(result: ParseResult) -> DeadReason:
    assert isinstance(result, Unusable)
    return result.reason


_FIELD = VALUES | st.sampled_from([4711, EPOCH, f"{EPOCH}", "2026-03-01", "ada@example.com", " "])


def _with_some(*fields: str, **known: object) -> st.SearchStrategy[dict[str, Any]]:
    """Generate objects with the known values, and anything in some of the fields."""
    always = {name: st.just(value) for name, value in known.items()}
    return st.fixed_dictionaries(always, optional=dict.fromkeys(fields, _FIELD))


_USER = _with_some("email", id=4711) | _with_some("id", email="ada@example.com")
_CAMPAIGN = _with_some("id", "name", "campaign_title", "message_id", "trigger-event", "sent_to")
_TIMES = [f"{kind}_at" for kind in COLLECTIONS]


class TestVero(SourceContract):
    source_class = Vero
    documents = (
        OPENED,
        UNSUBSCRIBED,
        {**OPENED, "type": "clicked", "clicked_at": EPOCH},
        changed(OPENED, "opened_at", EPOCH + 1),
        changed(OPENED, "opened_at", EPOCH * 1000 + 1),
        changed(OPENED, "opened_at", "1970-01-02"),
        changed(OPENED, "message_id", "20260228233000.8.4F2B@mail.example.com"),
        changed(OPENED, "user.id", 4712),
        changed(OPENED, "user_agent", "Thunderbird"),
        changed(UNSUBSCRIBED, "user.email", "eve@example.com"),
        changed(UNSUBSCRIBED, "campaign.campaign_title", "Welcome"),
        changed(UNSUBSCRIBED, "campaign.id", 89),
    )
    shaped = st.builds(
        lambda *parts: dict(ChainMap(*parts)),
        st.just({}) | _with_some("type", "user", "campaign"),
        st.fixed_dictionaries(
            {"type": st.sampled_from([*COLLECTIONS]), "user": _USER, "campaign": _CAMPAIGN}
        ),
        _with_some("message_id", "user_agent", "bounce_code", *_TIMES),
    )


@pytest.mark.parametrize(("kind", "collection"), COLLECTIONS.items())
def test_each_of_the_seven_types_has_its_collection_and_its_time(
    kind: str, collection: Collection
) -> None:
    result = event({"type": f" {kind}", f"{kind}_at": EPOCH, "user": {"id": 4711}})

    assert (result.collection, result.occurred_at) == (collection, REPORTED_AT)


def test_a_webhook_becomes_an_event() -> None:
    assert event(OPENED) == EmailEvent(
        collection=Collection.OPENED,
        occurred_at=REPORTED_AT,
        reported_at=REPORTED_AT,
        dedupe_key=event(OPENED).dedupe_key,
        user_id="4711",
        email="Ada@example.com",
        user_agent="Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101",
        properties={
            "email_id": "20260228233000.7.4F2A@mail.example.com",
            "campaign_id": "88",
            "campaign_name": "Basket reminder",
            "trigger_event": "left basket",
        },
    )


@pytest.mark.parametrize(("place", "name"), FIELDS)
def test_a_field_becomes_its_property(place: str, name: str) -> None:
    assert event(changed(BARE, place, " Some words\t")).properties == {name: "Some words"}
    assert event(changed(BARE, place, 550)).properties == {name: "550"}


@pytest.mark.parametrize(("place", "name"), FIELDS)
@pytest.mark.parametrize("blank", ["", " \t\n", None, [], ["", None], {}, {"a": "b"}])
def test_a_blank_field_becomes_no_property(place: str, name: str, blank: object) -> None:
    assert name not in event(changed(BARE, place, blank)).properties


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (-7, "-7"),
        (550.0, "550"),
        (5.5, "5.5"),
        (2**80, "1208925819614629174706176"),
        (["spring", " sale ", "", 3], "spring, sale, 3"),
        ("a\0b \u2728", "a\0b \u2728"),
    ],
)
def test_every_property_is_a_string(value: object, expected: str) -> None:
    assert event(changed(BARE, "campaign.tags", value)).properties == {"tags": expected}


@pytest.mark.parametrize(("name", "places"), PAIRS)
def test_of_two_fields_for_a_property_the_first_non_blank_counts(
    name: str, places: list[str]
) -> None:
    both = changed(changed(BARE, places[0], "one"), places[1], "two")

    assert event(both).properties == {name: "one"}
    assert event(changed(both, places[0], " ")).properties == {name: "two"}


@pytest.mark.parametrize("place", ["event", "permalink", "changes", "campaign.permalink", "ip"])
@pytest.mark.parametrize("value", ["https://example.com/?t=1", {"data": {"reset_url": "?t=1"}}])
def test_fields_that_may_carry_secrets_are_left_out(place: str, value: object) -> None:
    assert event(changed(OPENED, place, value)) == event(OPENED)


_SECONDS = [EPOCH, float(EPOCH), f" {EPOCH} ", f"{EPOCH}.0"]
_MILLISECONDS = [EPOCH * 1000, EPOCH * 1000.0, f"{EPOCH}000"]
_ISO = ["2026-03-01T00:00:00Z", "2026-03-01T01:30:00.000+01:30", "2026-03-01 00:00", "2026-03-01"]


_NAMED = ["2026-03-01 00:00:00 UTC", "2026-03-01 00:00:00.000 utc", "2026-03-01T00:00:00 GMT"]
_NAMED += ["2026-03-01 01:30:00 +0130", "2026-02-28 19:00:00 -05:00", "2026-03-01 00:00 Z"]
_RFC_2822 = ["Sun, 01 Mar 2026 00:00:00 +0000", "Sun, 1 Mar 2026 01:30:00 +0130 (IST)"]
_RFC_2822 += [
    "1 Mar 2026 00:00 GMT",
    " Sat, 28 Feb 2026 19:00:00 -0500 ",
    "01 Mar 2026 00:00:00 UT",
]
_RFC_2822 += ["Sun, 01 Mar 2026 00:00:00 -0000"]


@pytest.mark.parametrize("value", [*_SECONDS, *_MILLISECONDS, *_ISO, *_NAMED, *_RFC_2822])
def test_every_time_format_gives_the_same_time_and_dedupe_key(value: object) -> None:
    result = event(changed(OPENED, "opened_at", value))

    assert (result.occurred_at, result.dedupe_key) == (REPORTED_AT, event(OPENED).dedupe_key)


@pytest.mark.parametrize("value", [EPOCH + 0.25, f"{EPOCH}.25", EPOCH * 1000 + 250])
def test_fractions_of_a_second_are_kept(value: object) -> None:
    occurred_at = event(changed(OPENED, "opened_at", value)).occurred_at

    assert occurred_at == REPORTED_AT + timedelta(seconds=0.25)


_NO_TIMES = [None, "", "yesterday", "٣", True, [EPOCH], {"at": EPOCH}]
_NO_TIMES += [
    "11/28/2026 05:00",
    "28.11.2026 05:00",
    "28 Nov 2026",
    "05:00",
    "2026-02-30 05:00 UTC",
]
_NO_TIMES += [
    "Sat, 30 Feb 2026 05:00:00 +0000",
    "28 Nov 2026 05:00:00 CET",
    "28 Nov 2026 05:00 +9999",
]
_NO_TIMES += ["28 Nov 26 05:00 GMT", "2026-03-01 00:00:00 CET", "2026-03-01 00:00:00 +9999"]
_TOO_EARLY = [
    0,
    -EPOCH,
    -(2**80),
    f"-{EPOCH}",
    946_684_799,
    "1999-12-31T23:59:59Z",
    "0001-01-01T00+14:00",
]
_TOO_LATE = [NOON.timestamp() + 86_401, "2026-03-02T12:00:00.001Z", "9999-12-31T23:59:59-12:00"]
_TOO_LARGE = [EPOCH * 10**6, 253_402_300_799, 2**80, 1e300, "9" * 400, "1e400", "inf", "nan"]


@pytest.mark.parametrize("value", [*_NO_TIMES, *_TOO_EARLY, *_TOO_LATE, *_TOO_LARGE])
def test_an_impossible_time_is_replaced_by_the_time_of_receipt(value: object) -> None:
    assert event(changed(OPENED, "opened_at", value)).occurred_at == NOON


@pytest.mark.parametrize("value", _NO_TIMES)
def test_an_unreadable_time_gives_no_reported_time(value: object) -> None:
    assert event(changed(OPENED, "opened_at", value)).reported_at is None


def test_different_unreadable_times_give_different_dedupe_keys() -> None:
    unread = ["yesterday", "Yesterday", True, [EPOCH], [EPOCH + 1], {"at": EPOCH}, EPOCH * 10**6]
    unread += ["11/28/2026 05:00", "11/28/2026 06:00", "253402300799000", "28 Nov 2026 05:00 CET"]
    values = ["9999-12-31T23:59:59Z", EPOCH, None, *unread]  # 253402300799000 is the first in ms
    keys = [
        event(changed({**OPENED, "type": "bounced"}, "bounced_at", value)).dedupe_key
        for value in values
    ]

    assert len({*keys}) == len(values)


@pytest.mark.parametrize(
    ("written", "copied"), [("soon", " soon\n"), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
)
def test_a_copy_with_an_unreadable_time_has_the_same_dedupe_key(
    written: object, copied: object
) -> None:
    first, copy = (event(changed(OPENED, "opened_at", value)) for value in (written, copied))

    assert first.dedupe_key is not None
    assert first.dedupe_key == copy.dedupe_key


@pytest.mark.parametrize("blank", [None, "", " ", [], {}])
@pytest.mark.parametrize("kind", COLLECTIONS)
def test_without_a_time_opens_and_clicks_have_no_dedupe_key(kind: str, blank: object) -> None:
    timeless = event(changed({**OPENED, "type": kind}, f"{kind}_at", blank))

    assert (timeless.dedupe_key is None) is (kind in {"opened", "clicked"})


def test_the_time_field_of_another_type_is_not_read() -> None:
    assert event({**BARE, "sent_at": EPOCH}).occurred_at == NOON


@pytest.mark.parametrize("edge", [datetime(2000, 1, 1, tzinfo=UTC), NOON + DAY])
def test_the_earliest_and_the_latest_possible_time_are_accepted(edge: datetime) -> None:
    assert event(changed(OPENED, "opened_at", edge.timestamp())).occurred_at == edge
    assert event(changed(OPENED, "opened_at", edge.isoformat())).occurred_at == edge


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        (0, "0"),
        (2**80, "1208925819614629174706176"),
        (4711.0, "4711"),
        (" production_4711\n", "production_4711"),
        ("ada@example.com", "ada@example.com"),
        *((blank, None) for blank in ("", " ", None, True, False, {"id": 1}, [1, 2])),
    ],
)
def test_a_user_id_is_a_string_or_absent(user_id: object, expected: str | None) -> None:
    assert event(changed(OPENED, "user.id", user_id)).user_id == expected


@pytest.mark.parametrize(
    ("email", "sent_to", "expected"),
    [
        (" Ada@example.com ", "eve@example.com", "Ada@example.com"),
        ("", "eve@example.com", "eve@example.com"),
        (None, " eve@example.com ", "eve@example.com"),
        (None, "+43 660 123", None),
        (None, "ada and eve@example.com", None),
        (None, {"to": "eve@example.com"}, None),
    ],
)
def test_the_address_is_the_users_or_else_the_campaigns_sent_to(
    email: object, sent_to: object, expected: str | None
) -> None:
    document = changed(changed(OPENED, "user.email", email), "campaign.sent_to", sent_to)

    assert event(document).email == expected


@pytest.mark.parametrize("email", [True, False, ["ada@example.com"], {"to": "ada@example.com"}])
def test_an_address_that_is_not_a_string_is_skipped(email: object) -> None:
    assert event(changed(OPENED, "user.email", email)).email == OPENED["campaign"]["sent_to"]


def test_a_time_before_the_epoch_gives_no_reported_time() -> None:
    assert event(changed(OPENED, "opened_at", "0001-01-01")).reported_at is None


@pytest.mark.parametrize("user", [None, {}, {"id": " ", "email": ""}, {"id": True}, "ada", [4711]])
def test_an_event_without_a_recipient_is_a_dead_letter(user: object) -> None:
    result = read({"type": "opened", "user": user, "campaign": {"sent_to": "+43 660 123"}})

    assert reason(result) is DeadReason.NO_RECIPIENT


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_known_types_outside_the_seven_collections_are_ignored(kind: str) -> None:
    assert read({"type": kind, "user": SAMPLE_USER}) == Ignored(kind)
    assert read({"action": f" {kind}", "id": "4711", "changes": {"_tags": {}}}) == Ignored(kind)


@pytest.mark.parametrize("channel", ["email", " Email", "EMAIL", "", None])
def test_an_event_without_a_channel_is_an_email_event(channel: object) -> None:
    assert event(changed(OPENED, "campaign.channel", channel)) == event(OPENED)


@pytest.mark.parametrize("channel", ["push", "sms"])
def test_other_channels_are_ignored(channel: str) -> None:
    assert read(changed(OPENED, "campaign.channel", channel)) == Ignored("other_channel")


@pytest.mark.parametrize("user_id", [123, "123", " 123 "])
@pytest.mark.parametrize("kind", COLLECTIONS)
def test_veros_sample_is_ignored_unless_tests_are_forwarded(kind: str, user_id: object) -> None:
    sample = {"type": kind, "user": {"id": user_id, "email": " steve@getvero.com"}}
    forwarding = Vero(VeroSettings(tests="forward")).parse(json.dumps(sample).encode(), NOON)

    assert read(sample) == Ignored("test_sample", "RELAY_VERO_TESTS")
    assert isinstance(forwarding, EmailEvent)


@pytest.mark.parametrize("almost", [{"id": 1234}, {"id": None}, {"email": "ada@example.com"}])
def test_a_user_that_only_resembles_the_sample_is_forwarded(almost: dict[str, object]) -> None:
    assert event({"type": "opened", "user": SAMPLE_USER | almost})


@pytest.mark.parametrize("kind", ["exploded", "sms_sent"])
def test_a_dead_letter_names_the_unknown_type(kind: str) -> None:
    result = read({**OPENED, "type": kind})

    assert reason(result) is DeadReason.UNKNOWN_TYPE
    assert kind in repr(result)


@pytest.mark.parametrize("kind", ["ada@example.com", "x" * 41, "+43660123", 43660123, "a b"])
def test_a_value_that_does_not_look_like_a_type_is_not_repeated(kind: object) -> None:
    result = read({**OPENED, "type": kind})

    assert reason(result) is DeadReason.UNKNOWN_TYPE
    assert str(kind) not in repr(result)


@pytest.mark.parametrize(
    "document", [{}, {"type": None}, {"type": " "}, {"type": {}}, {"user": {}}]
)
def test_a_missing_type_is_an_unknown_type(document: object) -> None:
    assert reason(read(document)) is DeadReason.UNKNOWN_TYPE


_NO_OBJECT = [b"", b" ", b"null", b"[]", b"1", b'"sent"']
_NO_JSON = [b"type=sent", b'{"type":"sent"', b"{}{}", b"{'a':1}", b'{"a":NaN}', b'{"a":1e400}']
_NO_TEXT = [b'{"a":"\xed\xa0\x80"}', b'{"a":"\xff"}', b'{"a":"b\0"}', b"\xff"]
_NO_UTF_8 = ['{"type":"sent","user":{"id":1}}'.encode(code) for code in ("utf-16", "utf-32")]
_TOO_DEEP = [b'{"a":' * 51 + b"1" + b"}" * 51, b'{"a":' + b"[" * 50 + b"]" * 50 + b"}"]
_FAR_TOO_DEEP = [b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 100_000]
_TOO_LONG = [b'{"a":' + b"9" * 5_000 + b"}"]
_UNREADABLE = [
    *_NO_OBJECT,
    *_NO_JSON,
    *_NO_TEXT,
    *_NO_UTF_8,
    *_TOO_DEEP,
    *_FAR_TOO_DEEP,
    *_TOO_LONG,
]


@pytest.mark.parametrize("body", _UNREADABLE, ids=range(len(_UNREADABLE)))
def test_anything_but_a_valid_json_object_is_unreadable(body: bytes) -> None:
    assert reason(VERO.parse(body, NOON)) is DeadReason.UNREADABLE


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"type":"opened","user":{"id":1}}',
        b' \r\n{"type":"opened","user":{"id":1}}\n',
        b'{"type":"sent","type":"opened","user":{"id":2},"user":{"id":1}}',
        b'{"type":"opened","user":{"id":1},"a":' + b"[" * 49 + b"]" * 49 + b"}",
        b'{"type":"opened","user":{"id":1},"a":[' + b"{}," * 60 + b"{}]}",
        rb'{"type":"opened","user":{"id":1},"a":"\ud83d"}',
    ],
    ids=[
        *("byte order mark", "blanks around", "repeated keys", "50 levels", "many brackets"),
        "half an emoji",
    ],
)
def test_unusual_but_valid_json_is_read(body: bytes) -> None:
    result = VERO.parse(body, NOON)

    assert isinstance(result, EmailEvent)
    assert (result.collection, result.user_id) == (Collection.OPENED, "1")


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (r"a\ud83d", "a\ufffd"),
        (r"\uDE00b", "\ufffdb"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00\ude00", "\ufffd\U0001f600\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\\ud83d\ud83d", "\\ud83d\ufffd"),
        (r"\\\ud83d", "\\\ufffd"),
        (r"a\n\ud83d\u0041\ud83dx", "a\n\ufffdA\ufffdx"),
    ],
)
def test_half_a_surrogate_pair_is_read_as_the_replacement_character(
    written: str, read_as: str
) -> None:
    body = json.dumps(changed(BARE, "campaign.subject", "@")).replace("@", written)
    result = VERO.parse(body.encode(), NOON)

    assert isinstance(result, EmailEvent)
    assert result.properties["email_subject"] == read_as


_WRONG_TOO = [b"NaN", b"1e400", b"9" * 5_000, b'"\xed\xa0\x80"', b'"\xff"', b'"\n"', rb'"\ud8"']
_WRONG_TOO += [rb'"\x"', b"'a'", b"1,", b"[" * 60 + b"]" * 60]


@pytest.mark.parametrize("also", _WRONG_TOO, ids=range(len(_WRONG_TOO)))
def test_half_a_surrogate_pair_beside_another_fault_is_unreadable(also: bytes) -> None:
    body = rb'{"type":"opened","user":{"id":1},"a":"\ud83d","b":%b}' % also

    assert reason(VERO.parse(body, NOON)) is DeadReason.UNREADABLE


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("user.id", " 4711 "),
        ("user.email", "ada.new@example.com"),
        ("campaign.subject", "Corrected since"),
        ("permalink", "https://example.com/"),
    ],
)
def test_fields_that_a_copy_may_change_are_not_in_the_dedupe_key(place: str, value: object) -> None:
    assert event(changed(OPENED, place, value)).dedupe_key == event(OPENED).dedupe_key


@pytest.mark.parametrize("value", [None, EPOCH, 0, "2031-01-01"])
def test_the_time_of_receipt_is_not_in_the_dedupe_key(value: object) -> None:
    document = changed(OPENED, "opened_at", value)

    assert event(document, NOON + DAY).dedupe_key == event(document).dedupe_key


def test_neither_time_nor_email_id_means_no_dedupe_key() -> None:
    assert event(changed(UNSUBSCRIBED, "unsubscribed_at", None)).dedupe_key is None
    assert event(changed(changed(OPENED, "opened_at", "?"), "message_id", " ")).dedupe_key is None


@pytest.mark.parametrize(
    ("document", "message_id"),
    [
        (OPENED, "vero-69a381802a542a6d509a40e9298bdba1"),
        (UNSUBSCRIBED, "vero-69a38180c5e652c3a660d7d5cc27b762"),
        ({**OPENED, "type": "sent"}, "vero-00000000ea7af1d95fbbf961d316da6a"),
        ({**OPENED, "type": "bounced"}, "vero-00000000f8b569b7a89325e7fed02add"),
        (
            changed(OPENED, "opened_at", "2026-03-01T00:00:00.250Z"),
            "vero-69a38180eafc36282fe79818a6554d61",
        ),
    ],
)
def test_message_ids_never_change(document: object, message_id: str) -> None:
    """Segment counts an event twice if it comes again under another id."""
    segment = segment_at("https://example.com", "write-key")
    result = event(document)

    assert segment.message_id("vero", result.dedupe_key, result.reported_at) == message_id


def _authorized(authorization: str) -> Webhook:
    return Webhook(None, [(b"authorization", authorization.encode("latin-1"))], b"", NOON)


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


_RIGHT = [_basic(f":{SECRET}"), _basic(f"é:{SECRET}"), _basic(f"a:{SECRET}").replace("B", "b", 1)]
_RIGHT += [f"Bearer {SECRET}", f"bEARER  {SECRET} "]
_WRONG = ["", "Basic", "Basic ", "Basic é", "Basic =====", f"Basic {SECRET}", _basic(SECRET)]
_WRONG += [_basic(f"{SECRET}:"), _basic(f"a:{SECRET}:"), _basic(f"a:{SECRET[:-1]}"), _basic(":")]
_WRONG += ["Bearer", "Bearer ", "Bearer é", f"Bearer {SECRET}0", f"Digest {SECRET}", SECRET]
_WRONG += [_RIGHT[0] + "!"]


@pytest.mark.parametrize("authorization", _RIGHT)
def test_the_secret_is_accepted_as_password_or_token(authorization: str) -> None:
    assert VERO.authenticate(_authorized(authorization))


@pytest.mark.parametrize("authorization", _WRONG)
def test_a_wrong_password_or_token_is_refused(authorization: str) -> None:
    assert not VERO.authenticate(_authorized(authorization))


def test_a_right_header_does_not_excuse_a_wrong_secret_in_the_path() -> None:
    assert not VERO.authenticate(
        Webhook("", [(b"authorization", f"Bearer {SECRET}".encode())], b"", NOON)
    )


@pytest.mark.parametrize(("loop", "integrations"), [("block", {"Vero": False}), ("allow", {})])
def test_segments_own_vero_destination_is_switched_off_unless_allowed(
    loop: str, integrations: dict[str, bool]
) -> None:
    assert Vero(VeroSettings.model_validate({"loop": loop})).integrations == integrations

import hmac
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.errors import TooManyEventsError, UnreadableError
from relay.events import Call, CallType, DeadReason, Ignored, Unusable
from relay.sources import Webhook, source_classes
from relay.sources.segment import (
    CALL_TYPES,
    Coverage,
    KeyKind,
    SegmentSource,
    calls_in,
    calls_in_webhook,
    write_keys_in,
)
from relay.sources.segment.bodies import MAX_CALLS, MAX_MERGED_BYTES, calls_in_line
from relay.sources.segment.calls import RELAYED
from tests.contracts.source import SourceContract
from tests.harness.calls import CALLS, IDENTIFY, NOON, TRACK, call, parsed, segment_source

SECRET = "first-secret-0123456789"
OTHER = "second-secret-0123456789"


def header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode()


def signature(body: bytes, secret: str = SECRET) -> tuple[bytes, bytes]:
    return header("x-signature", hmac.new(secret.encode(), body, "sha1").hexdigest())


def webhook(body: bytes, *headers: tuple[bytes, bytes], path: str | None = None) -> Webhook:
    return Webhook(path, headers, body, NOON)


class TestSegment(SourceContract):
    source_class = SegmentSource
    credential = "shared_secret"
    documents = (
        IDENTIFY,
        TRACK,
        {"type": "alias", "messageId": "call-3", "previousId": "ann@example.com", "userId": "42"},
        {"type": "group", "messageId": "call-4", "userId": "42", "groupId": "acme"},
        {"type": "page", "messageId": "call-5", "anonymousId": "visitor-1", "name": "Pricing"},
        {"type": "screen", "messageId": "call-6", "userId": "42", "name": "Settings"},
    )
    shaped = CALLS


def test_a_call_is_read_field_by_field() -> None:
    read = call(
        {
            "type": "track",
            "messageId": "call-7",
            "timestamp": "2026-03-01T10:00:00.250Z",
            "userId": " 42 ",
            "anonymousId": "visitor-1",
            "event": " Seeds Ordered ",
            "properties": {"price": 3.5},
            "context": {"traits": {"email": " Ann@Example.com "}},
            "integrations": {"Vero": {"tags": {"action": "add", "values": ["x"]}}},
        }
    )

    assert read == Call(
        type=CallType.TRACK,
        occurred_at=datetime(2026, 3, 1, 10, 0, 0, 250_000, UTC),
        reported_at=datetime(2026, 3, 1, 10, 0, 0, 250_000, UTC),
        dedupe_key=("call-7",),
        user_id="42",
        anonymous_id="visitor-1",
        email="Ann@Example.com",
        event="Seeds Ordered",
        properties={"price": 3.5},
        context={"traits": {"email": " Ann@Example.com "}},
        integrations={"Vero": {"tags": {"action": "add", "values": ["x"]}}},
    )


@pytest.mark.parametrize(
    ("value", "user_id"),
    [
        ("42", "42"),
        (" 42\n", "42"),
        (42, "42"),
        (12345678901234567890123, "12345678901234567890123"),
        ("", None),
        (None, None),
        (True, None),
        (False, None),
        ({"id": 42}, None),
        ([42], None),
    ],
)
def test_an_id_is_a_text_or_a_number(value: object, user_id: str | None) -> None:
    assert call({**IDENTIFY, "userId": value}).user_id == user_id


@pytest.mark.parametrize(
    ("kind", "name"),
    [("track", "Ordered"), ("page", "Pricing"), ("screen", "Pricing"), ("identify", None)],
)
def test_the_name_of_what_a_person_did_or_saw(kind: str, name: str | None) -> None:
    document = {"type": kind, "userId": "42", "event": "Ordered", "name": "Pricing"}

    assert call(document).event == name


def test_the_keys_with_blanks_in_segments_sample_of_an_alias_are_understood() -> None:
    read = call({"type": "alias", "Previous ID": "39239-239239", "User ID": "1268"})

    assert (read.previous_id, read.user_id) == ("39239-239239", "1268")


@pytest.mark.parametrize(
    ("kind", "traits", "context_traits", "email"),
    [
        ("identify", {"email": "a@example.com"}, {"email": "b@example.com"}, "a@example.com"),
        ("identify", {"email": "no address"}, {"email": "b@example.com"}, "b@example.com"),
        ("identify", {"email": "ann@localhost"}, {}, None),
        ("identify", {"email": f"{'a' * 243}@example.com"}, {}, None),
        ("identify", {"email": f"{'a' * 242}@example.com"}, {}, f"{'a' * 242}@example.com"),
        ("group", {"email": "office@example.com"}, {}, None),
        ("group", {"email": "office@example.com"}, {"email": "b@example.com"}, "b@example.com"),
        ("track", {"email": "a@example.com"}, {"email": "b@example.com"}, "b@example.com"),
    ],
)
def test_the_address_is_the_persons(
    kind: str, traits: object, context_traits: object, email: str | None
) -> None:
    document = {"type": kind, "event": "x", "traits": traits, "context": {"traits": context_traits}}

    assert call(document).email == email


@pytest.mark.parametrize(
    ("times", "occurred_at"),
    [
        ({"timestamp": "2026-02-28T00:00:00.5Z"}, datetime(2026, 2, 28, 0, 0, 0, 500_000, UTC)),
        (
            {"originalTimestamp": "2026-02-28T00:00:00.123456789Z"},
            datetime(2026, 2, 28, 0, 0, 0, 123_456, UTC),
        ),
        (
            {"timestamp": "x", "originalTimestamp": "2026-02-28T00:00:00Z"},
            datetime(2026, 2, 28, tzinfo=UTC),
        ),
        (
            {"timestamp": "1970-01-01T00:00:00Z", "originalTimestamp": "2026-02-28T00:00:00Z"},
            datetime(2026, 2, 28, tzinfo=UTC),
        ),
        ({"timestamp": "2014"}, NOON),
        ({"timestamp": "1999-12-31T23:59:59Z"}, NOON),
        ({"timestamp": "2026-03-02T12:00:01Z"}, NOON),
        ({"sentAt": "2026-02-28T00:00:00Z"}, NOON),
        ({}, NOON),
    ],
)
def test_a_call_without_a_plausible_time_happened_when_it_was_received(
    times: Mapping[str, str], occurred_at: datetime
) -> None:
    assert call({"type": "identify", "userId": "42", **times}).occurred_at == occurred_at


def test_an_impossible_time_is_still_part_of_the_report() -> None:
    read = call({**IDENTIFY, "timestamp": "1999-12-31T23:59:59Z"})

    assert read.reported_at == datetime(1999, 12, 31, 23, 59, 59, tzinfo=UTC)


@pytest.mark.parametrize("value", [None, "", {"a": 1}, True])
def test_a_call_without_a_message_id_is_never_a_duplicate(value: object) -> None:
    assert call({**IDENTIFY, "messageId": value}).dedupe_key is None


@pytest.mark.parametrize("kind", [None, "", "Track", "identity", 7, {"type": "track"}, []])
def test_no_type_is_guessed(kind: object) -> None:
    result = parsed({**TRACK, "type": kind})

    assert isinstance(result, Unusable)
    assert result.reason is DeadReason.UNKNOWN_TYPE


def test_a_deletion_is_a_call() -> None:
    read = call({"type": "delete", "userId": "42", "timestamp": "2026-03-01T10:00:00Z"})

    assert (read.type, read.user_id) == (CallType.DELETE, "42")


@pytest.mark.parametrize(
    ("integrations", "is_excluded"),
    [
        ({}, False),
        ({"Vero": True}, False),
        ({"Vero": {"tags": {}}}, False),
        ({"Vero": False}, True),
        ({"vero": False}, True),
        ({"VERO": False, "All": True}, True),
        ({"All": False}, True),
        ({"all": False}, True),
        ({"All": False, "Webhooks": True}, True),
        ({"All": False, "Vero": None}, True),
        ({"All": False, "Vero": True}, False),
        ({"All": False, "vero": {"tags": {}}}, False),
        ({"Vero": None}, False),
        ({"Mixpanel": False}, False),
        (False, False),
    ],
)
def test_the_integrations_say_whether_a_call_is_for_vero(
    integrations: object, *, is_excluded: bool
) -> None:
    result = parsed({**TRACK, "integrations": integrations})

    assert (result == Ignored("excluded")) == is_excluded
    assert isinstance(result, Call) != is_excluded


@pytest.mark.parametrize(
    "own",
    [
        {"messageId": "vero-69a3f1c4" + "0" * 24},
        {"messageId": "customerio-" + "0123456789abcdef" * 2},
        {
            "messageId": "another",
            "context": {"integration": {"name": "vero"}, "library": {"name": "analytics-python"}},
        },
    ],
)
def test_what_relay_sent_to_segment_is_ignored(own: Mapping[str, Any]) -> None:
    assert parsed({**TRACK, **own}) == Ignored("loop")


@pytest.mark.parametrize(
    "other",
    [
        {"messageId": "ajs-" + "0" * 32},
        {"messageId": "node-next-1795847389730-6c1784ea-5dbe-4d0d-a330-ba1223ba0d0c"},
        {"messageId": "vero-1"},
        {"context": {"integration": {"name": "Vero"}, "library": {"name": "analytics-python"}}},
        {"context": {"integration": {"name": "vero"}, "library": {"name": "analytics.js"}}},
        {"context": {"integration": {"name": {}}, "library": []}},
    ],
)
def test_what_others_send_is_no_loop(other: Mapping[str, Any]) -> None:
    assert isinstance(parsed({**TRACK, **other}), Call)


def test_every_source_that_goes_to_segment_is_known_to_make_a_loop() -> None:
    sources = source_classes().values()

    assert sorted(RELAYED) == sorted(s.name for s in sources if s.destination == "segment")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not JSON: "),
        (b"\xff", "not JSON: "),
        (b'{"type":"track","event":"\xff"}', "not UTF-8"),
        (b'{"type":"track","event":1e400}', "not JSON: "),
        (b'{"type":"track","event":NaN}', "not JSON: "),
        (b"[]", "not a JSON object"),
        (b'"track"', "not a JSON object"),
        (b'{"a":' * 51 + b"1" + b"}" * 51, "nested deeper than 50 levels"),
        (b'{"a":' * 100_000, "nested deeper than 50 levels"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_dead_letter(body: bytes, detail: str) -> None:
    result = segment_source().parse(body, NOON)

    assert isinstance(result, Unusable)
    assert result.reason is DeadReason.UNREADABLE
    assert result.detail.startswith(detail)


def test_odd_values_are_read() -> None:
    body = (
        b'{"type":"track","event":"a\\ud83d","userId":"1","userId":"42",'
        b'"properties":{"nul":"\\u0000","big":123456789012345678901234567890,"small":1e-7}}'
    )
    read = segment_source().parse(body, NOON)

    assert isinstance(read, Call)
    assert (read.event, read.user_id) == ("a\ufffd", "42")
    assert read.properties == {"nul": "\0", "big": 123456789012345678901234567890, "small": 1e-7}


# Bodies of the Tracking API.


def split(body: str, path: str = "batch") -> list[str]:
    return [each.decode() for each in calls_in(body.encode(), call_type=CALL_TYPES[path])]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        *((name, name) for name in ("identify", "track", "group", "alias", "page", "screen")),
        *zip("itgaps", ("identify", "track", "group", "alias", "page", "screen"), strict=True),
    ],
)
def test_the_path_gives_a_calls_type(path: str, kind: str) -> None:
    (body,) = split('{"userId":"42","writeKey":"k"}', path)

    assert json.loads(body) == {"type": kind, "userId": "42"}


def test_the_path_decides_where_the_call_names_another_type() -> None:
    (body,) = split('{"type":"delete","userId":"42"}', "identify")

    assert json.loads(body) == {"type": "identify", "userId": "42"}


@pytest.mark.parametrize("path", ["batch", "import", "b"])
def test_a_batch_is_split_in_its_order(path: str) -> None:
    bodies = split('{"batch":[{"type":"a"},{"type":"b"},{"type":"a"}],"writeKey":"k"}', path)

    assert bodies == ['{"type":"a"}', '{"type":"b"}', '{"type":"a"}']


def test_an_empty_batch_has_no_calls() -> None:
    assert split('{"batch":[]}') == []


@pytest.mark.parametrize(
    "body", ['{"type":"track","userId":"42"}', '{"batch":{}}', '{"batch":null}']
)
def test_without_a_batch_there_is_none(body: str) -> None:
    with pytest.raises(UnreadableError, match="no list of calls in `batch`"):
        split(body)


def test_a_body_has_a_limited_number_of_calls() -> None:
    assert len(split(f'{{"batch":[{",".join(["{}"] * MAX_CALLS)}]}}')) == MAX_CALLS
    with pytest.raises(TooManyEventsError, match=f"{MAX_CALLS + 1} calls in one body"):
        split(f'{{"batch":[{",".join(["{}"] * (MAX_CALLS + 1))}]}}')
    with pytest.raises(TooManyEventsError, match=f"{MAX_CALLS + 1} calls in one body"):
        calls_in_webhook(b"[" + b",".join([b"{}"] * (MAX_CALLS + 1)) + b"]")


def test_what_a_batch_has_in_common_is_repeated_within_a_limit() -> None:
    context = f'"context":{{"a":"{"x" * (MAX_MERGED_BYTES // 1_000)}"}}'

    assert sum(map(len, split(f'{{"batch":[{",".join(["{}"] * 990)}],{context}}}')))
    with pytest.raises(TooManyEventsError, match="repeated in each of its 1000 calls"):
        split(f'{{"batch":[{",".join(["{}"] * 1_000)}],{context}}}')


def test_no_write_key_is_stored() -> None:
    bodies = split(
        '{"writeKey":"k","batch":[{"writeKey":"k","type":"track"}],"context":{"ip":"::1"}}'
    )

    assert bodies == ['{"type":"track","context":{"ip":"::1"}}']


def test_a_batchs_context_and_integrations_are_merged_into_each_call() -> None:
    bodies = split(
        '{"context":{"ip":"::1","locale":"en"},"integrations":{"All":false,"vero":true},"batch":['
        '{"userId":"1"},{"userId":"2","context":{"ip":"::2"},"integrations":{"Vero":false}},'
        '{"userId":"3","context":null}]}'
    )

    assert list(map(json.loads, bodies)) == [
        {
            "userId": "1",
            "context": {"ip": "::1", "locale": "en"},
            "integrations": {"All": False, "vero": True},
        },
        {
            "userId": "2",
            "context": {"ip": "::2", "locale": "en"},
            "integrations": {"All": False, "Vero": False},
        },
        {
            "userId": "3",
            "context": {"ip": "::1", "locale": "en"},
            "integrations": {"All": False, "vero": True},
        },
    ]


@pytest.mark.parametrize("shared", ["", ',"context":{"ip":"::1"}', ',"writeKey":"k"'])
@pytest.mark.parametrize("single", [False, True])
def test_values_stay_byte_for_byte(shared: str, *, single: bool) -> None:
    traits = '{ "a": 1e-7, "b":1.50, "c":"\\u00e9\\u0000é", "d":123456789012345678901, "a": 1 }'
    call = f'{{"writeKey":"k", "traits" : {traits}}}'
    (body,) = split(f'{{"batch":[{call}]{shared}}}') if not single else split(call, "identify")

    assert f'"traits":{traits}' in body


def test_a_call_without_anything_to_change_stays_as_it_came() -> None:
    call = '{ "type" : "track", "a":1, "a":2 }'

    assert split(f'{{"batch":[ {call} ,{call}]}}') == [call, call]


@pytest.mark.parametrize("element", ["null", "5", '"track"', "[]", "[{}]", "true"])
def test_an_element_that_is_no_object_is_a_dead_letter_of_its_own(element: str) -> None:
    bodies = split(f'{{"batch":[{{"type":"a"}},{element},{{"type":"b"}}],"context":{{"a":1}}}}')
    result = segment_source().parse(bodies[1].encode(), NOON)

    assert len(bodies) == 3
    assert bodies[1] == element
    assert isinstance(result, Unusable)
    assert result.reason is DeadReason.UNREADABLE


def test_one_call_that_cannot_be_read_does_not_affect_the_others() -> None:
    deep = b'{"a":' * 60 + b"1" + b"}" * 60
    batch = b'{"batch":[%b,{"event":"\xff"},{"event":1e400},%b]}'
    bodies = [*calls_in(batch % (deep, json.dumps(TRACK).encode()))]
    results = [segment_source().parse(body, NOON) for body in bodies]

    assert [type(result) for result in results] == [Unusable, Unusable, Unusable, Call]


def test_half_of_a_surrogate_pair_does_not_affect_a_batch() -> None:
    bodies = split('{"batch":[{"event":"a\\ud83d"},{"event":"\\ud83d\\udce7"}]}')

    assert bodies == ['{"event":"a\\ufffd"}', '{"event":"\\ud83d\\udce7"}']


def test_the_depths_of_one_call_are_blanked_out_and_the_others_stay() -> None:
    depths = b'{"]":[' * 30_000 + b'"\\"}"' + b"]}" * 30_000
    tricky = b'{ "type":"track" , "event":"[{\\"]}\\\\" }'
    deep = b'{"type":"track","properties":%b,"userId":"42"}' % depths
    bodies = [*calls_in_webhook(b"[%b,%b , %b]" % (tricky, deep, tricky))]
    document = json.loads(bodies[1])

    assert bodies[0] == bodies[2] == tricky
    assert len(bodies[1]) == len(deep)
    assert document["userId"] == "42"
    assert document["properties"]["]"][0]["]"][0]
    assert segment_source().parse(bodies[1], NOON) == Unusable(
        DeadReason.UNREADABLE, "nested deeper than 50 levels"
    )


@pytest.mark.parametrize(
    "filler", [b"[]," * 49_000, b'"' + b"\\" * 900_000, b'"' * 900_000, b'"[' + b'\\"' * 450_000]
)
def test_the_depths_of_a_body_are_soon_found(filler: bytes) -> None:
    """Anybody can send such bodies; and one that has too many brackets is not looked through."""
    began_at = time.process_time()
    with pytest.raises(UnreadableError):
        calls_in_webhook(b"[" * 40_000 + filler)
    with pytest.raises(UnreadableError, match="nested deeper"):
        calls_in_webhook(b"[" * 110_000 + filler)

    assert time.process_time() - began_at < 1


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"5", b'{"batch":[}', b'{"batch":[{]}'])
def test_a_body_that_is_no_object_has_no_calls(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        calls_in(body)


@given(st.lists(CALLS, max_size=5), CALLS)
def test_any_batch_has_its_calls(documents: list[dict[str, Any]], shared: dict[str, Any]) -> None:
    parts = {name: shared[name] for name in ("context", "integrations") if name in shared}
    body = json.dumps({"batch": documents, "writeKey": "k", **parts}).encode()
    bodies = [*calls_in(body)]

    assert len(bodies) == len(documents)
    for stored in bodies:
        segment_source().parse(stored, NOON)


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (b'{"writeKey":"k-1","batch":[]}', {b"k-1"}),
        (b'{"batch":[],"writeKey" :\n"k-1"}', {b"k-1"}),
        (b'{"batch":[{"writeKey":"k-2"},{"writeKey":"k-2"}],"writeKey":"k-1"}', {b"k-1", b"k-2"}),
        (b'{"writeKey":"\\u006b\\"\\\\\xc3\xa9"}', {b'k"\\\xc3\xa9'}),
        (b'{"writeKey":"k-1","batch":[', {b"k-1"}),
        (b'{"a":"\\"writeKey\\":\\"k-1\\""}', set()),
        (b'{"writeKey":"\xff"}', set()),
        (b'{"writeKey":"k-1', set()),
        (b'{"writeKey":5}', set()),
        (b'{"writeKey":null}', set()),
        (b"{}", set()),
        (b"x", set()),
    ],
)
def test_a_write_key_may_stand_in_the_body(body: bytes, keys: set[bytes]) -> None:
    """Of a body that is no JSON, too: what it came with may be kept as a dead letter."""
    assert write_keys_in(body) == keys


def test_a_write_key_is_soon_found_or_not() -> None:
    """Nobody knows who sent the body. A parser takes a tenth of a second for some of these."""
    bodies = [
        b" " * 2**20,
        b"\\" * 2**20,
        b'{"writeKey":' * 90_000,
        b'{"writeKey":"' * 80_000,
        b'{"writeKey":"' + b"\\n" * 2**19,
        b'"writeKey"' + b" " * 2**20,
    ]
    began_at = time.process_time()
    for body in bodies:
        write_keys_in(body)

    assert time.process_time() - began_at < len(bodies) * 0.03


def test_all_calls_of_a_batch_may_have_keys() -> None:
    calls = b",".join(b'{"writeKey":"k-%d"}' % number for number in range(MAX_CALLS))

    assert b"k" in write_keys_in(b'{"batch":[%b],"writeKey":"k"}' % calls)


# Bodies of webhooks.


def test_a_line_of_a_file_is_one_call_a_batch_or_an_array() -> None:
    call = b'{"type":"a","integrations":{"All":false}}'

    assert calls_in_line(call) == [call]
    assert calls_in_line(b' {"type":"a","writeKey":"w"} ') == [b'{"type":"a"}']
    assert calls_in_line(b'{"batch":[{"type":"a"},{"type":"b"}],"context":{"ip":"0"}}') == [
        b'{"type":"a","context":{"ip":"0"}}',
        b'{"type":"b","context":{"ip":"0"}}',
    ]
    assert calls_in_line(b"[%b]" % call) == calls_in_webhook(b"[%b]" % call) != [call]
    with pytest.raises(UnreadableError):
        calls_in_line(b'{"type"')


def test_a_webhook_is_one_call_or_an_array_of_them() -> None:
    assert calls_in_webhook(b' { "type": "a" } ') == [b' { "type": "a" } ']
    assert calls_in_webhook(b' [ {"type": "a"} , {"type":"b"},5 ] ') == [
        b'{"type": "a"}',
        b'{"type":"b"}',
        b"5",
    ]
    assert calls_in_webhook(b"[]") == []


@pytest.mark.parametrize("body", [b"", b"x", b"5", b"[{]", b'"track"'])
def test_a_webhook_that_is_neither_has_no_calls(body: bytes) -> None:
    with pytest.raises(UnreadableError):
        calls_in_webhook(body)


@pytest.mark.parametrize(
    ("integrations", "is_excluded"),
    [
        ({"All": False, "Webhooks": True}, False),
        ({"all": False, "Actions Webhook": {}}, False),
        ({"All": False, "Vero": None}, False),
        ({"All": False, "Vero": False, "Webhooks": True}, True),
        ({"vero": False}, True),
        ({"All": True}, False),
    ],
)
def test_a_webhook_is_excluded_by_vero_false_only(
    integrations: object, *, is_excluded: bool
) -> None:
    """Engage names the Webhooks destination and turns off all others."""
    body = json.dumps({**IDENTIFY, "integrations": integrations}).encode()
    (stored,) = segment_source().split(body)
    result = segment_source().parse(stored, NOON)

    assert (result == Ignored("excluded")) == is_excluded
    assert isinstance(result, Call) != is_excluded


def test_a_webhook_that_names_vero_keeps_what_it_says() -> None:
    tags = {"tags": {"action": "add", "values": ["x"]}}
    body = json.dumps({"type": "identify", "integrations": {"All": False, "vero": tags}}).encode()

    assert calls_in_webhook(body) == [body]


# Credentials of webhooks.


def test_a_signature_covers_one_call() -> None:
    body = b'{"type":"track","a":1e-7}'
    source = segment_source(shared_secret=SECRET)

    assert source.coverage(webhook(body, signature(body))) is Coverage.ALL
    assert source.coverage(webhook(body + b" ", signature(body))) is Coverage.NOTHING
    assert source.coverage(webhook(body, signature(body, OTHER))) is Coverage.NOTHING


@pytest.mark.parametrize(
    "first",
    [
        b"{}",
        b'{"a":[1,{"b":"]"}],"c":"},{"}',
        b'{"a":"\\"]\\\\","b":"\\ud83d \\u2028","c":1e-7,"d":"\xc3\xa9"}',
        b'{"event":"\\ud83d"}',
        b"5",
        b'"]"',
    ],
)
@pytest.mark.parametrize("blanks", [b"", b" ", b"\n\t "])
@pytest.mark.parametrize("others", [b"", b',{"type":"evil"}', b',[],"x"'])
def test_the_signature_of_an_array_covers_its_first_element(
    first: bytes, blanks: bytes, others: bytes
) -> None:
    body = blanks + b"[" + blanks + first + blanks + others + blanks + b"]"
    source = segment_source(shared_secret=f"{OTHER},{SECRET}")
    signed = webhook(body, signature(first))

    assert source.coverage(signed) is (Coverage.FIRST if others else Coverage.ALL)
    assert source.authenticate(signed) == (not others)
    assert source.coverage(webhook(body, signature(body))) is Coverage.NOTHING


@pytest.mark.parametrize("body", [b"[]", b"[", b"[x]", b"[{}", b"", b"[" * 100_000])
def test_without_a_first_element_no_signature_covers_an_array(body: bytes) -> None:
    source = segment_source(shared_secret=SECRET)

    assert source.coverage(webhook(body, signature(b"{}"))) is Coverage.NOTHING


BEARER = header("authorization", f"Bearer {SECRET}")
BODY = b'[{"type":"a"},{"type":"b"}]'
RIGHT = signature(b'{"type":"a"}')
WRONG = signature(b'{"type":"b"}')


@pytest.mark.parametrize(
    ("headers", "path", "coverage"),
    [
        ((), SECRET, Coverage.ALL),
        ((BEARER,), None, Coverage.ALL),
        ((RIGHT,), None, Coverage.FIRST),
        ((RIGHT, BEARER), None, Coverage.ALL),
        ((RIGHT,), SECRET, Coverage.ALL),
        ((RIGHT,), OTHER, Coverage.FIRST),
        ((RIGHT, header("authorization", "Bearer of.a.gateway")), None, Coverage.FIRST),
        ((WRONG,), None, Coverage.NOTHING),
        ((WRONG, BEARER), None, Coverage.NOTHING),
        ((WRONG,), SECRET, Coverage.NOTHING),
        ((header("x-signature", "x"), BEARER), None, Coverage.NOTHING),
        ((), OTHER, Coverage.NOTHING),
        ((header("authorization", f"Basic {SECRET}"),), None, Coverage.NOTHING),
        ((), None, Coverage.NOTHING),
    ],
)
def test_the_credentials_say_how_much_of_an_array_is_to_be_trusted(
    headers: tuple[tuple[bytes, bytes], ...], path: str | None, coverage: Coverage
) -> None:
    source = segment_source(shared_secret=SECRET)
    request = webhook(BODY, *headers, path=path)
    verifier = source.verifier(webhook(b"", *headers, path=path))
    if verifier is not None:
        for byte in BODY:
            verifier.update(bytes([byte]))

    assert source.coverage(request) is coverage
    assert source.authenticate(request) == (coverage is Coverage.ALL)
    assert (verifier is not None and verifier.fault() is None) == (coverage is Coverage.ALL)


# Settings and write keys.

KEY, BROWSER_KEY = "server-key-0123456789", "browser-key-0123456789"


def test_a_write_key_is_the_servers_or_the_browsers() -> None:
    source = segment_source(write_key=f"{KEY},{OTHER}", browser_write_key=BROWSER_KEY)

    assert source.key_kind(KEY.encode()) is KeyKind.SERVER
    assert source.key_kind(OTHER.encode()) is KeyKind.SERVER
    assert source.key_kind(BROWSER_KEY.encode()) is KeyKind.BROWSER
    assert source.key_kind(b"") is None
    assert source.key_kind(KEY[:-1].encode()) is None


@pytest.mark.parametrize(
    ("settings", "takes_calls", "takes_webhooks"),
    [
        ({}, False, False),
        ({"write_key": KEY}, True, False),
        ({"browser_write_key": BROWSER_KEY}, True, False),
        ({"shared_secret": SECRET}, False, True),
    ],
)
def test_any_credential_opens_its_own_door(
    settings: Mapping[str, str], *, takes_calls: bool, takes_webhooks: bool
) -> None:
    source = segment_source(**settings)

    assert (source.takes_calls, source.takes_webhooks) == (takes_calls, takes_webhooks)
    assert source.configured == (takes_calls or takes_webhooks)


def test_a_browser_is_restricted_unless_a_setting_allows_all() -> None:
    assert segment_source().restricts_browsers
    assert not segment_source(browser_may="ALL").restricts_browsers


def test_a_browsers_key_is_not_the_servers() -> None:
    with pytest.raises(ValidationError, match="must differ from RELAY_SEGMENT_WRITE_KEY"):
        segment_source(write_key=KEY, browser_write_key=f"{BROWSER_KEY},{KEY}")


def test_origins_are_those_of_browsers() -> None:
    source = segment_source(origins="https://App.example.com, http://localhost:3000,https://[::1]")

    assert source.origins == {
        "https://app.example.com",
        "http://localhost:3000",
        "https://[::1]",
    }


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/shop",
        "app.example.com",
        "null",
        "https://",
        "https://a.example.com,",
        "https://user@app.example.com",
        "ftp://app.example.com",
    ],
)
def test_an_origin_that_no_browser_sends_is_a_fault(origin: str) -> None:
    with pytest.raises(ValidationError, match="each should be like"):
        segment_source(origins=origin)

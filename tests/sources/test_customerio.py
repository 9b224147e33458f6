import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from relay.events import Collection, DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.sources import Webhook
from relay.sources.customerio import Customerio, CustomerioSettings
from tests.contracts.outbox import NOON
from tests.contracts.source import VALUES, SourceContract
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.routes import segment_at

KEY = "0f3c5a7e9b1d2f4a6c8e0b2d4f6a8c0e"
EPOCH = 1_772_323_200
SENT_AT = b"1772366400"

COLLECTIONS = {
    "sent": Collection.SENT,
    "delivered": Collection.DELIVERED,
    "opened": Collection.OPENED,
    "clicked": Collection.LINK_CLICKED,
    "unsubscribed": Collection.UNSUBSCRIBED,
    "bounced": Collection.BOUNCED,
    "spammed": Collection.MARKED_AS_SPAM,
}
CLICKED: Mapping[str, Any] = {
    "object_type": "email",
    "metric": "clicked",
    "event_id": "01KE2Y5Q8WJ4N6T7R9A3B5C7D9",
    "timestamp": EPOCH,
    "data": {
        "campaign_id": 7,
        "action_id": 96,
        "journey_id": "01KE2Y5Q8WJ4N6T7R9A3B5C7DA",
        "delivery_id": "ZAIAAVTJVG0QcCok0ZKj6yiQ",
        "customer_id": "0200000001",
        "identifiers": {"id": "42", "email": "ada@example.com", "cio_id": "d9c106000001"},
        "recipient": "ada.l@example.com",
        "subject": " Basket reminder",
        "link_id": 3,
        "href": "https://example.com/garden",
    },
}
LEGACY: Mapping[str, Any] = {
    "event_type": "email_opened",
    "event_id": "5b68360d2bf711479352",
    "timestamp": EPOCH,
    "data": {
        "customer_id": "568",
        "email_address": "Ada L. <ada@example.com>",
        "email_id": "34",
        "subject": "Basket reminder",
        "campaign_id": "33",
        "campaign_name": "Baskets",
        "variables": {"customer": {"email": "ada@example.com", "vat": "XX999"}},
    },
}
BARE: Mapping[str, Any] = {
    "object_type": "email",
    "metric": "sent",
    "event_id": "01KE2Y5Q8WJ4N6T7R9A3B5C7DB",
    "data": {"identifiers": {"email": "ada@example.com"}},
}


def changed(document: Mapping[str, Any], **data: object) -> dict[str, Any]:
    """Return the document with these values in its data."""
    return {**document, "data": {**document["data"], **data}}


def customerio(**settings: object) -> Customerio:
    return Customerio(CustomerioSettings.model_validate({"signing_key": KEY, **settings}))


def read(document: object, **settings: object) -> ParseResult:
    return customerio(**settings).parse(json.dumps(document).encode(), NOON)


def event(document: object, **settings: object) -> EmailEvent:
    result = read(document, **settings)
    assert isinstance(result, EmailEvent)
    return result


def signature(key: str, body: bytes, sent_at: bytes = SENT_AT) -> bytes:
    """Return the signature that Customer.io sends for the body."""
    return hmac.new(key.encode(), b"v0:%b:%b" % (sent_at, body), "sha256").hexdigest().encode()


def signed(key: str, body: bytes = b"{}", sent_at: bytes = SENT_AT) -> Webhook:
    headers = [(b"x-cio-timestamp", sent_at), (b"x-cio-signature", signature(key, body, sent_at))]
    return Webhook(None, headers, body, NOON)


class TestCustomerio(SourceContract):
    source_class = Customerio
    credential = "signing_key"
    documents = (CLICKED, LEGACY, BARE, {**CLICKED, "event_id": "another"})
    shaped = st.fixed_dictionaries(
        {
            "object_type": st.just("email") | VALUES,
            "metric": st.sampled_from([*COLLECTIONS]) | VALUES,
            "data": st.fixed_dictionaries(
                {},
                optional={
                    "identifiers": st.fixed_dictionaries(
                        {}, optional={"id": VALUES, "email": VALUES}
                    )
                    | VALUES,
                    **dict.fromkeys(
                        ("customer_id", "email_address", "recipient", "delivery_id", "campaign_id"),
                        VALUES,
                    ),
                    **dict.fromkeys(("href", "subject", "machine", "failure_message"), VALUES),
                },
            ),
        },
        optional={"event_id": VALUES, "timestamp": VALUES, "event_type": VALUES},
    )

    def webhook(self, secret: str) -> Webhook:
        return signed(secret)


def test_the_signature_covers_the_timestamp_and_the_exact_body() -> None:
    body = json.dumps(CLICKED, ensure_ascii=False).encode()
    good = signed(KEY, body)
    timestamp, mac = good.headers
    forged = [
        Webhook(None, good.headers, body + b" ", NOON),
        Webhook(None, [(b"x-cio-timestamp", b"1772366401"), mac], body, NOON),
        Webhook(None, [timestamp], body, NOON),
        Webhook(None, [mac], body, NOON),
        Webhook(None, [timestamp, (mac[0], mac[1].upper())], body, NOON),
        Webhook(None, [timestamp, (mac[0], hmac.digest(KEY.encode(), body, "sha256"))], body, NOON),
        Webhook(KEY, good.headers, body, NOON),
    ]

    assert customerio().authenticate(good)
    assert not any(customerio().authenticate(webhook) for webhook in forged)


def test_a_signature_is_valid_for_one_split_into_timestamp_and_body() -> None:
    """The signed text has more colons than the one between timestamp and body."""
    whole = SENT_AT + b":" + json.dumps(CLICKED).encode()
    mac = signature(KEY, *reversed(whole.split(b":", 1)))
    parts = whole.split(b":")
    splits = [(b":".join(parts[:n]), b":".join(parts[n:])) for n in range(1, len(parts))]
    webhooks = [
        Webhook(None, [(b"x-cio-timestamp", timestamp), (b"x-cio-signature", mac)], body, NOON)
        for timestamp, body in splits
    ]

    assert len(webhooks) > 9
    assert [customerio().authenticate(webhook) for webhook in webhooks] == [
        True,
        *[False] * (len(webhooks) - 1),
    ]


_NOT_DIGITS = [b"", b" ", b"soon", b" 1772366400", b"1772366400\n", b"+1772366400", b"1772366400.0"]
_NOT_DIGITS += [b"1e9", b"1_000", "\u0661".encode(), b"\xb2", b"1:{", b"0" * 21]


@pytest.mark.parametrize("tolerance", [0, 10**9])
@pytest.mark.parametrize("sent_at", _NOT_DIGITS)
def test_a_timestamp_with_anything_but_digits_is_refused(sent_at: bytes, tolerance: int) -> None:
    assert not customerio(tolerance=tolerance).authenticate(signed(KEY, b"{}", sent_at))


@pytest.mark.parametrize("sent_at", [SENT_AT, b"00" + SENT_AT, SENT_AT + b"000", b"0", b"9" * 20])
def test_without_a_tolerance_any_digits_are_a_valid_timestamp(sent_at: bytes) -> None:
    assert customerio().authenticate(signed(KEY, b"{}", sent_at))


@pytest.mark.parametrize(("tolerance", "accepted"), [(0, True), (299, False), (300, True)])
def test_the_tolerance_limits_the_age_of_a_signature(tolerance: int, accepted: bool) -> None:  # noqa: FBT001 (drawn)
    for seconds in (-300, 300):
        sent_at = str(int((NOON + timedelta(seconds=seconds)).timestamp())).encode()

        assert customerio(tolerance=tolerance).authenticate(signed(KEY, b"{}", sent_at)) is accepted
    assert customerio(tolerance=1).authenticate(signed(KEY, b"{}", b"soon")) is False


@pytest.mark.parametrize("metric", COLLECTIONS)
def test_each_of_the_seven_email_metrics_has_its_collection(metric: str) -> None:
    new = event({**CLICKED, "metric": metric})
    old = event({**LEGACY, "event_type": f"email_{metric}"})

    assert new.collection is old.collection is COLLECTIONS[metric]


def test_the_current_and_the_legacy_format_become_events() -> None:
    current, legacy = event(CLICKED), event(LEGACY)

    assert current.occurred_at == datetime.fromtimestamp(EPOCH, UTC)
    assert (current.user_id, current.email) == ("42", "ada@example.com")
    assert current.properties == {
        "email_id": "ZAIAAVTJVG0QcCok0ZKj6yiQ",
        "email_subject": "Basket reminder",
        "campaign_id": "7",
        "campaign_type": "campaign",
        "link_id": "3",
        "link_url": "https://example.com/garden",
        "action_id": "96",
        "journey_id": "01KE2Y5Q8WJ4N6T7R9A3B5C7DA",
    }
    assert (legacy.user_id, legacy.email) == ("568", "ada@example.com")
    assert legacy.properties == {
        "email_id": "34",
        "email_subject": "Basket reminder",
        "campaign_id": "33",
        "campaign_type": "campaign",
        "campaign_name": "Baskets",
    }


@pytest.mark.parametrize(
    ("data", "user_id", "email"),
    [
        ({}, "42", "ada@example.com"),
        ({"identifiers": {"id": "42"}}, "42", "ada.l@example.com"),
        (
            {"identifiers": {"id": None, "email": "ada@example.com"}},
            "0200000001",
            "ada@example.com",
        ),
        ({"identifiers": {"id": ""}, "customer_id": " "}, None, "ada.l@example.com"),
        ({"identifiers": None, "customer_id": 5}, "5", "ada.l@example.com"),
        ({"identifiers": {}, "email_address": "ada@example.com"}, "0200000001", "ada@example.com"),
        ({"identifiers": {}, "recipient": "#signups"}, "0200000001", None),
    ],
)
def test_user_id_and_address_come_from_the_first_usable_field(
    data: dict[str, Any], user_id: str | None, email: str | None
) -> None:
    parsed = event(changed(CLICKED, **data))

    assert (parsed.user_id, parsed.email) == (user_id, email)


def test_an_event_without_a_recipient_is_a_dead_letter() -> None:
    nobody = changed(CLICKED, identifiers={"id": None}, customer_id="", recipient="#signups")
    result = read(nobody)

    assert isinstance(result, Unusable)
    assert result.reason is DeadReason.NO_RECIPIENT


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("campaign_id", "campaign"),
        ("broadcast_id", "broadcast"),
        ("newsletter_id", "newsletter"),
        ("transactional_message_id", "transactional"),
    ],
)
def test_the_campaign_type_follows_from_the_id_field(field: str, kind: str) -> None:
    properties = event(changed(CLICKED, **{"campaign_id": None, field: 12})).properties

    assert (properties["campaign_id"], properties["campaign_type"]) == ("12", kind)


def test_a_bounce_carries_its_failure_message() -> None:
    bounced = {**changed(CLICKED, failure_message="550 no such mailbox"), "metric": "bounced"}

    assert event(bounced).properties["bounce_message"] == "550 no such mailbox"


@pytest.mark.parametrize(
    ("metric", "flag", "name"),
    [
        ("clicked", "machine", "machine_click"),
        ("opened", "proxied", "machine_open"),
        ("opened", "prefetched", "machine_open"),
        ("opened", "synthetic", "machine_open"),
        ("opened", "machine", "machine_open"),
    ],
)
def test_machine_opens_and_clicks_are_marked_or_ignored(metric: str, flag: str, name: str) -> None:
    by_machine = {**changed(CLICKED, **{flag: True}), "metric": metric}
    by_hand = {**changed(CLICKED, **{flag: False}), "metric": metric}

    assert event(by_machine).properties[name] == "true"
    assert name not in event(by_hand).properties
    assert read(by_machine, machine="drop") == Ignored("machine", "RELAY_CUSTOMERIO_MACHINE")
    assert isinstance(read(by_hand, machine="drop"), EmailEvent)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"object_type": "push", "metric": "opened"}, "other_channel"),
        ({"object_type": "sms", "metric": "replied"}, "other_channel"),
        ({"event_type": "in_app_clicked"}, "other_channel"),
        ({"metric": "converted"}, "other_metric"),
        ({"event_type": "email_drafted"}, "other_metric"),
        ({"object_type": "customer", "metric": "unsubscribed"}, "of_a_person"),
        ({"metric": "subscribed"}, "of_a_person"),
        ({"metric": "cio_subscription_preferences_changed"}, "of_a_person"),
        ({"event_type": "customer_unsubscribed"}, "of_a_person"),
        ({"object_type": "pigeon", "metric": "subscribed"}, "of_a_person"),
        ({"event_type": "pigeon_subscribed"}, "of_a_person"),
        ({"object_type": "whatsapp", "metric": "snoozed"}, "other_channel"),
        ({"event_type": "whatsapp_snoozed"}, "other_channel"),
        ({"object_type": None, "metric": "converted"}, "other_metric"),
        ({"metric": "unsubscribed", "data": {"customer_id": "42"}}, "of_a_person"),
    ],
)
def test_known_events_outside_the_seven_collections_are_ignored(
    kind: dict[str, Any], reason: str
) -> None:
    assert read({**CLICKED, **kind}) == Ignored(reason)


@pytest.mark.parametrize(
    "kind",
    [
        {"metric": "snoozed"},
        {"metric": None},
        {"object_type": "pigeon"},
        {"object_type": "pigeon", "metric": "snoozed"},
        {"object_type": None, "metric": "snoozed"},
        {"object_type": None, "data": {**CLICKED["data"], "recipient": "+43 660 123"}},
        {"object_type": None, "data": {**CLICKED["data"], "delivery_id": None}},
        {"event_type": "email_"},
        {"event_type": "email_snoozed"},
        {"event_type": "pigeon_opened"},
        {"event_type": "pigeon_snoozed"},
        {"event_type": "opened"},
    ],
)
def test_an_unknown_type_is_a_dead_letter(kind: dict[str, Any]) -> None:
    result = read({**CLICKED, **kind})

    assert isinstance(result, Unusable)
    assert result.reason is DeadReason.UNKNOWN_TYPE


@pytest.mark.parametrize("kind", ["pigeon", "email_snoozed", "pigeon_opened"])
def test_an_unknown_type_gives_the_same_result_in_both_formats(kind: str) -> None:
    channel, _, metric = kind.partition("_")
    new, old = (
        read({**CLICKED, "object_type": channel, "metric": metric}),
        read({"event_type": kind}),
    )

    assert new == old


@pytest.mark.parametrize("metric", COLLECTIONS)
@pytest.mark.parametrize("blank", [None, "", " "])
def test_an_email_event_needs_no_object_type(metric: str, blank: object) -> None:
    named, unnamed = ({**CLICKED, "metric": metric, "object_type": t} for t in ("email", blank))

    assert event(unnamed) == event(named)


WITHOUT_ID: Mapping[str, Any] = {name: CLICKED[name] for name in CLICKED if name != "event_id"}


def test_retries_of_one_event_have_the_same_dedupe_key() -> None:
    retry = {**changed(CLICKED, subject="another"), "timestamp": EPOCH + 60}

    assert event(retry).dedupe_key == event(CLICKED).dedupe_key
    assert event(WITHOUT_ID).dedupe_key == event(changed(WITHOUT_ID, subject="another")).dedupe_key
    assert event(changed(WITHOUT_ID, delivery_id=None)).dedupe_key is None


def test_without_an_event_id_each_differing_field_gives_another_dedupe_key() -> None:
    documents = [
        WITHOUT_ID,
        {**WITHOUT_ID, "metric": "opened"},
        changed(WITHOUT_ID, link_id=4),
        changed(WITHOUT_ID, href="https://example.com/terrace"),
        changed(WITHOUT_ID, link_id=None, href=None),
        changed(WITHOUT_ID, delivery_id="another"),
        changed(WITHOUT_ID, identifiers={"id": "43"}),
        *(
            {**WITHOUT_ID, "timestamp": time}
            for time in (EPOCH + 1, "soon", "sooner", [EPOCH], True)
        ),
    ]
    keys = [event(document).dedupe_key for document in documents]

    assert None not in keys
    assert len({*keys}) == len(documents)


@pytest.mark.parametrize("metric", COLLECTIONS)
def test_without_event_id_and_time_opens_and_clicks_have_no_dedupe_key(
    metric: str,
) -> None:
    timeless = event({**WITHOUT_ID, "metric": metric, "timestamp": None})

    assert (timeless.dedupe_key is None) is (metric in {"opened", "clicked"})


@pytest.mark.parametrize(
    ("document", "message_id"),
    [
        (CLICKED, "customerio-69a38180864d0b889b87e178e1550044"),
        (
            {**changed(WITHOUT_ID, link_id=None, href=None), "metric": "opened"},
            "customerio-69a381804540f87cbc3be316d9536fec",
        ),
    ],
)
def test_message_ids_never_change(document: object, message_id: str) -> None:
    """Segment counts an event twice if it comes again under another id."""
    segment = segment_at("https://example.com", "write-key")
    result = event(document)

    assert segment.message_id("customerio", result.dedupe_key, result.reported_at) == message_id


def test_an_unreadable_webhook_is_stored_and_answered_200(tmp_path: Path) -> None:
    """After an error Customer.io sends nothing for an hour."""
    answers = {}
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "r.db", segment.url, RELAY_CUSTOMERIO_SIGNING_KEY=KEY) as relay,
    ):
        for body in (b"{", b"[]", b'{"object_type":"email","metric":"snoozed"}', b"{}"):
            mac = signature(KEY, body).decode()
            headers = {"X-CIO-Timestamp": SENT_AT.decode(), "X-CIO-Signature": mac}
            reply = relay.ask("POST", "/webhooks/customerio", body, headers)
            answers[body] = reply.status, reply.content["status"]

    assert set(answers.values()) == {(200, "dead")}


def test_a_401_says_whether_signature_or_secret_is_wrong(tmp_path: Path) -> None:
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "r.db", segment.url, RELAY_CUSTOMERIO_SIGNING_KEY=KEY) as relay,
    ):
        signed_wrongly = relay.ask("POST", "/webhooks/customerio", b"{}")
        without_secret = relay.ask("POST", "/webhooks/vero/wrong", b"{}")
        relay.ask("POST", "/webhooks/customerio", b"{}", {"Authorization": "Bearer x"})

        def causes() -> list[object]:
            return [line["why"] for line in relay.log() if line["event"] == "webhook.refused"]

        assert within(5, lambda: len(causes()) == 2)

    assert causes() == [
        "the headers hold no well-formed signature",
        "the secret in the path is wrong",
    ]
    assert (signed_wrongly.status, without_secret.status) == (401, 401)
    assert signed_wrongly.content["error"] == "wrong or missing signature"
    assert without_secret.content["error"] == "wrong or missing secret"


def test_one_relay_receives_and_forwards_both_sources(tmp_path: Path) -> None:
    body = json.dumps(CLICKED).encode()
    headers = {
        "X-CIO-Timestamp": SENT_AT.decode(),
        "X-CIO-Signature": signature(KEY, body).decode(),
    }
    opened = b'{"type":"opened","message_id":"mail-1","user":{"id":7}}'
    path = "/webhooks/customerio"
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "r.db", segment.url, RELAY_CUSTOMERIO_SIGNING_KEY=KEY) as relay,
    ):
        replies = [relay.ask("POST", path, body, headers), relay.ask("POST", path, body, headers)]
        vero = relay.post(opened)
        refused = [
            relay.ask("POST", path, body + b" ", headers).status,
            relay.ask("POST", path, body).status,
            relay.ask("POST", f"{path}/{KEY}", body).status,
            relay.ask("GET", path).status,
            relay.ask("POST", path, bytes(2**20 + 1), headers).status,
            relay.ask("POST", path, bytes(2**23 + 1), headers).status,
        ]
        within(20, lambda: len(segment.accepted) == 2)
        log = json.dumps(relay.log())
    messages = {message["messageId"]: message for message in segment.accepted}
    message_id = replies[0].content["message_id"]

    assert [reply.content["status"] for reply in replies] == ["accepted", "duplicate"]
    assert [reply.status for reply in replies] == [200, 200]
    assert refused == [401, 401, 401, 405, 401, 413]
    assert message_id.startswith("customerio-")
    assert {*messages} == {message_id, vero.content["message_id"]}
    assert messages[message_id]["integrations"] == {"Customer.io": False}
    assert messages[message_id]["context"]["integration"]["name"] == "customerio"
    assert messages[message_id]["userId"] == "42"
    assert KEY not in log

"""Bodies that are too large, packed, or of senders that an error would hold back."""

import gzip
import hmac
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from relay.events import DeadReason, Unusable
from relay.receiver.body import MAX_BODY_BYTES, MAX_TRUNCATED_BYTES
from relay.routes import Rendered
from relay.sources.customerio import Customerio, CustomerioSettings
from relay.truncation import KEPT_BYTES, cut
from tests.harness.processes import RelayProcess, Reply, within
from tests.harness.routes import route
from tests.harness.stores import run_sql, stored
from tests.harness.webhooks import opened

NOBODY = "http://127.0.0.1:1"
KEY = "a-signing-key-for-the-tests"
DOOR = "/webhooks/customerio"
SENT = "1772366400"


def event(event_id: str = "event-1", **data: object) -> bytes:
    webhook = {
        "object_type": "email",
        "metric": "sent",
        "event_id": event_id,
        "timestamp": 1_772_366_400,
        "data": {"delivery_id": "mail-1", "identifiers": {"id": "42"}, **data},
    }
    return json.dumps(webhook).encode()


def signed(body: bytes, key: str = KEY) -> dict[str, str]:
    signature = hmac.new(key.encode(), b"v0:%b:%b" % (SENT.encode(), body), "sha256").hexdigest()
    return {"X-CIO-Timestamp": SENT, "X-CIO-Signature": signature}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    outbox = tmp_path_factory.mktemp("large") / "relay.db"
    with RelayProcess(outbox, NOBODY, RELAY_CUSTOMERIO_SIGNING_KEY=KEY) as relay:
        yield relay
        relay.end()


@pytest.fixture
def relay(shared: RelayProcess) -> RelayProcess:
    run_sql(shared.outbox, "DELETE FROM entries")
    return shared


def ack(relay: RelayProcess, body: bytes, **headers: str) -> Reply:
    """As Customer.io does."""
    return relay.ask("POST", DOOR, body, signed(body) | headers)


def test_the_beginning_of_a_large_body_is_kept_for_a_source_that_an_error_blocks(
    relay: RelayProcess,
) -> None:
    body = event(content="x" * MAX_BODY_BYTES)
    first, again = ack(relay, body), ack(relay, body)
    other = ack(relay, event("event-2", content="x" * MAX_BODY_BYTES))
    entry, second = stored(relay.outbox)

    assert first.status == again.status == other.status == 200
    assert first.content == {"status": "dead", "reason": "oversized", "error": entry.detail}
    assert (entry.state, entry.reason) == ("dead", "oversized")
    assert entry.detail == (
        f"the webhook has {len(body)} bytes, of which the first {KEPT_BYTES} are kept"
    )
    assert entry.body[:KEPT_BYTES] == body[:KEPT_BYTES]
    assert len(entry.body) < KEPT_BYTES + 100
    assert second.message_id != entry.message_id
    assert within(5, lambda: "webhook.truncated" in {line["event"] for line in relay.log()})


@dataclass
class Entry:
    """See `Stored`."""

    body: bytes
    source: str = "customerio"
    destination: str = "segment"
    message_id: str = "customerio-1"
    received_at: datetime = datetime(2026, 3, 1, tzinfo=UTC)


def test_a_truncated_body_is_never_taken_for_the_whole() -> None:
    """Not even where the beginning that is kept would do as a webhook: a replay changes nothing."""
    customerio = route(Customerio(CustomerioSettings()))
    body = event().ljust(MAX_BODY_BYTES + 1)
    whole, part = customerio.render(Entry(event())), customerio.render(Entry(cut(body, len(body))))

    assert isinstance(whole, Rendered)
    assert part == Unusable(
        DeadReason.OVERSIZED,
        f"the webhook has {len(body)} bytes, of which the first {KEPT_BYTES} are kept",
    )


@pytest.mark.parametrize("key", ["another-key-for-the-tests", ""])
def test_a_large_body_without_a_signature_is_not_stored(relay: RelayProcess, key: str) -> None:
    body = event(content="x" * MAX_BODY_BYTES)
    reply = relay.ask("POST", DOOR, body, signed(body, key) if key else {})

    assert reply.status == 401
    assert not stored(relay.outbox)


@pytest.mark.parametrize("packed", [False, True])
def test_a_body_beyond_what_is_read_is_refused(relay: RelayProcess, packed: bool) -> None:  # noqa: FBT001 (a parameter)
    body = event(content="x" * MAX_TRUNCATED_BYTES)
    if packed:
        reply = ack(relay, gzip.compress(body), **{"Content-Encoding": "gzip"})
    else:
        reply = ack(relay, body)

    assert reply.status == 413
    assert not stored(relay.outbox)
    assert within(5, lambda: "webhook.refused" in {line["event"] for line in relay.log()})


def test_a_gzipped_body_is_decompressed(relay: RelayProcess) -> None:
    first = ack(relay, gzip.compress(event()), **{"Content-Encoding": "gzip"})
    again = ack(relay, event())
    vero = relay.post(gzip.compress(opened()), {"Content-Encoding": "X-GZIP"})

    assert first.content["status"] == vero.content["status"] == "accepted"
    assert again.content["status"] == "duplicate"
    assert [entry.body for entry in stored(relay.outbox)] == [event(), opened()]


def test_a_gzipped_body_that_is_too_large_is_treated_like_any_other(relay: RelayProcess) -> None:
    body = event(content="x" * MAX_BODY_BYTES)
    kept = ack(relay, gzip.compress(body), **{"Content-Encoding": "gzip"})
    refused = relay.post(gzip.compress(body), {"Content-Encoding": "gzip"})
    (entry,) = stored(relay.outbox)

    assert (kept.status, kept.content["reason"]) == (200, "oversized")
    assert refused.status == 413
    assert entry.body[:KEPT_BYTES] == body[:KEPT_BYTES]


PARTS = gzip.compress(opened()[:20]) + gzip.compress(opened()[20:])
BROKEN = {
    "cut off": gzip.compress(opened())[:-4],
    "changed": gzip.compress(os.urandom(100))[:50] + b"x" * 60,
    "only its first bytes": b"\x1f\x8b",
    "something else behind": gzip.compress(opened()) + b"x",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_a_body_that_cannot_be_decompressed_is_kept_unchanged(
    relay: RelayProcess, body: bytes
) -> None:
    reply = relay.post(body, {"Content-Encoding": "gzip"})
    (entry,) = stored(relay.outbox)

    assert (reply.status, reply.content["reason"]) == (400, "unreadable")
    assert entry.body == body


@pytest.mark.parametrize("body", [opened(), PARTS], ids=["not packed", "in two members"])
def test_a_body_marked_as_gzip_may_be_plain_or_have_several_members(
    relay: RelayProcess, body: bytes
) -> None:
    reply = relay.post(body, {"Content-Encoding": "gzip"})
    (entry,) = stored(relay.outbox)

    assert reply.content["status"] == "accepted"
    assert entry.body == opened()


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "gzip, br", "zstd"])
def test_another_content_encoding_is_refused(relay: RelayProcess, coding: str) -> None:
    body = zlib.compress(opened())
    vero = relay.post(body, {"Content-Encoding": coding})
    customerio = ack(relay, body, **{"Content-Encoding": coding})
    (entry,) = stored(relay.outbox)

    assert (vero.status, vero.headers["accept-encoding"]) == (415, "gzip")
    assert (customerio.status, customerio.content["reason"]) == (200, "unreadable")
    assert (entry.source, entry.body) == ("customerio", body)


@pytest.mark.parametrize("coding", ["identity", "", " , "])
def test_an_identity_content_encoding_is_accepted(relay: RelayProcess, coding: str) -> None:
    assert relay.post(opened(), {"Content-Encoding": coding}).content["status"] == "accepted"

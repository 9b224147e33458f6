"""Segment's Webhooks destinations, at `/webhooks/segment`."""

import hmac
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from relay.sources.protocol import WRONG_SIGNATURE
from relay.sources.segment.bodies import MAX_CALLS
from tests.harness.processes import RelayProcess, Reply, WholeConnection, within
from tests.harness.stores import run_sql, stored
from tests.receiver.calls import BREAK, MEND, SHARED_SECRET, WRONG, relay_for_calls

PATH = "/webhooks/segment"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with relay_for_calls(tmp_path_factory.mktemp("webhooks") / "relay.db") as relay:
        yield relay
        relay.end()


@pytest.fixture(params=[WholeConnection, HTTPConnection], ids=["whole", "in pieces"])
def relay(shared: RelayProcess, request: pytest.FixtureRequest) -> RelayProcess:
    """The shared one, with nothing stored, sent requests whole and with the body after the head."""
    run_sql(shared.outbox, "DELETE FROM entries")
    shared.connection = request.param
    return shared


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RelayProcess]:
    """One for a test that breaks it."""
    with relay_for_calls(tmp_path / "relay.db") as relay:
        yield relay


def identify(number: object = 1, **members: object) -> bytes:
    """Return a call."""
    call = {"type": "identify", "messageId": f"call-{number}", "userId": "42", **members}
    return json.dumps(call).encode()


def array(*calls: bytes) -> bytes:
    """Return the body for several calls."""
    return b"[" + b",".join(calls) + b"]"


def signed(body: bytes, secret: str = SHARED_SECRET) -> dict[str, str]:
    """Return the header with the signature of the body."""
    return {"X-Signature": hmac.new(secret.encode(), body, "sha1").hexdigest()}


NO_SIGNATURE = "and the headers hold no well-formed signature"
FIRST_ONLY = "the signature covers only the first of several calls"
BEARER = {"Authorization": f"Bearer {SHARED_SECRET}"}
CALLS = (identify("z"), identify("y"), identify("x"))


def post(relay: RelayProcess, body: bytes, headers: dict[str, str], *, secret: str = "") -> Reply:
    """Post a webhook; return the answer."""
    return relay.ask("POST", f"{PATH}/{secret}" if secret else PATH, body, headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_signed_call_is_stored_as_it_came(relay: RelayProcess, method: str) -> None:
    body = b' { "type":"identify", "userId" : 42, "messageId":"1", "traits":{"a":1e-7} } '
    reply = relay.ask(method, PATH, body, signed(body))
    (entry,) = stored(relay.outbox)

    assert reply.status == 200
    assert reply.content == {"status": "accepted", "message_id": entry.message_id}
    assert (entry.state, entry.body, entry.source) == ("pending", body, "segment")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(relay: RelayProcess, method: str) -> None:
    reply = relay.ask(method, PATH, None, BEARER)

    assert (reply.status, reply.headers["allow"]) == (405, "POST, PUT, PATCH")


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        (signed(CALLS[0]) | BEARER, ""),
        (signed(CALLS[0]), SHARED_SECRET),
        (BEARER, ""),
        ({}, SHARED_SECRET),
    ],
)
def test_with_the_shared_secret_all_calls_of_an_array_are_stored_in_their_order(
    relay: RelayProcess, headers: dict[str, str], secret: str
) -> None:
    first = post(relay, array(*CALLS), headers, secret=secret)
    again = post(relay, array(*CALLS), headers, secret=secret)

    assert (first.status, again.status) == (200, 200)
    assert first.content == {"accepted": 3, "duplicate": 0, "ignored": 0, "dead": 0}
    assert again.content == {"accepted": 0, "duplicate": 3, "ignored": 0, "dead": 0}
    assert [entry.body for entry in stored(relay.outbox)] == [*CALLS]


@pytest.mark.parametrize(
    ("headers", "secret"),
    [
        (signed(CALLS[0]), ""),
        (signed(CALLS[0]), WRONG),
        (signed(CALLS[0]) | {"Authorization": f"Bearer {WRONG}"}, ""),
        (signed(array(*CALLS)), ""),
        (signed(CALLS[0], WRONG), ""),
        (signed(CALLS[1]), SHARED_SECRET),
        (signed(CALLS[1]) | BEARER, ""),
        ({"X-Signature": "x"}, ""),
        ({}, WRONG),
        ({}, ""),
    ],
)
def test_otherwise_an_array_is_refused_whole(
    relay: RelayProcess, headers: dict[str, str], secret: str
) -> None:
    """If its first call were taken, nobody would miss the others."""
    reply = post(relay, array(*CALLS), headers, secret=secret)

    assert (reply.status, reply.content["status"]) == (401, "refused")
    assert reply.content["error"] == "wrong or missing signature or secret"
    assert not stored(relay.outbox)


def test_the_log_says_how_to_have_all_of_an_array_accepted(fragile: RelayProcess) -> None:
    post(fragile, array(*CALLS), signed(CALLS[0]))

    def refusals() -> list[dict[str, object]]:
        return [line for line in fragile.log() if line["event"] == "webhook.refused"]

    assert within(5, lambda: len(refusals()) == 1)
    (line,) = refusals()
    assert (line["source"], line["status"]) == ("segment", 401)
    assert line["why"] == (
        "the signature covers only the first of several calls: in Segment, add the header"
        " `Authorization: Bearer <the shared secret>` as well, or turn off batching"
    )
    assert SHARED_SECRET not in str(fragile.log())


@pytest.mark.parametrize(
    ("headers", "secret", "why"),
    [
        ({}, "", f"neither the path nor an Authorization header holds a secret, {NO_SIGNATURE}"),
        (
            {"X-Signature": "x"},
            "",
            f"neither the path nor an Authorization header holds a secret, {NO_SIGNATURE}",
        ),
        ({}, WRONG, f"the secret in the path is wrong, {NO_SIGNATURE}"),
        (
            {},
            SHARED_SECRET + "/",
            (
                "the secret in the path has an additional slash or blank before or after it,"
                f" {NO_SIGNATURE}"
            ),
        ),
        (
            {"Authorization": f"Bearer {WRONG}"},
            "",
            f"the Authorization header holds no valid secret, {NO_SIGNATURE}",
        ),
        (signed(CALLS[0], WRONG), SHARED_SECRET, WRONG_SIGNATURE),
        (signed(CALLS[0]), WRONG, f"{FIRST_ONLY}, and the secret beside it is wrong"),
        (
            signed(CALLS[0]) | {"Authorization": f"Bearer {WRONG}"},
            "",
            f"{FIRST_ONLY}, and the secret beside it is wrong",
        ),
    ],
)
def test_the_log_says_why_credentials_were_refused(
    fragile: RelayProcess, headers: dict[str, str], secret: str, why: str
) -> None:
    post(fragile, array(*CALLS), headers, secret=secret)

    def causes() -> list[object]:
        return [line["why"] for line in fragile.log() if line["event"] == "webhook.refused"]

    assert within(5, lambda: causes() == [why])
    assert not [each for each in (SHARED_SECRET, WRONG) if each in str(fragile.log())]


@pytest.mark.parametrize("blank", [b"", b" \n"])
def test_an_array_of_one_call_is_answered_as_the_call(relay: RelayProcess, blank: bytes) -> None:
    body = blank + array(blank + CALLS[0] + blank) + blank
    reply = post(relay, body, signed(CALLS[0]))
    (entry,) = stored(relay.outbox)

    assert reply.content == {"status": "accepted", "message_id": entry.message_id}
    assert entry.body == CALLS[0]


def test_an_empty_array_has_no_calls(relay: RelayProcess) -> None:
    reply = post(relay, b"[]", BEARER)

    assert (reply.status, set(reply.content.values())) == (200, {0})


def test_one_bad_call_of_an_array_does_not_affect_the_others(relay: RelayProcess) -> None:
    bad = (b"5", b'{"type":"unheard of"}', identify(integrations={"Vero": False}))
    reply = post(relay, array(CALLS[0], *bad, CALLS[1]), BEARER)

    assert reply.status == 200
    assert reply.content == {"accepted": 2, "duplicate": 0, "ignored": 1, "dead": 2}
    assert [entry.state for entry in stored(relay.outbox)] == ["pending", "dead", "dead", "pending"]


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[{}", b"5", b"[" * 100_000])
def test_an_unreadable_body_is_refused_and_kept_once(relay: RelayProcess, body: bytes) -> None:
    first, again = (post(relay, body, BEARER) for _ in range(2))
    (entry,) = stored(relay.outbox)

    assert first.status == again.status == 400
    assert first.content == {"status": "dead", "reason": "unreadable", "error": entry.detail}
    assert (entry.state, entry.body) == ("dead", body)


@pytest.mark.parametrize(
    "headers", [{}, BEARER], ids=["by its signature", "signed, with the secret"]
)
def test_a_call_that_is_nested_too_deeply_does_not_affect_the_others(
    relay: RelayProcess, headers: dict[str, str]
) -> None:
    deep = identify(traits=None).replace(b"null", b'{"a":' * 30_000 + b"1" + b"}" * 30_000)
    calls = (deep, CALLS[0]) if headers else (deep,)
    reply = post(relay, array(*calls), signed(deep) | headers)
    first, *others = stored(relay.outbox)

    assert reply.status == (200 if headers else 400)
    assert (first.state, first.detail) == ("dead", "nested deeper than 50 levels")
    assert [entry.body for entry in others] == [*calls[1:]]


def test_too_many_calls_at_once_are_refused(relay: RelayProcess) -> None:
    reply = post(relay, array(*[b"5"] * (MAX_CALLS + 1)), BEARER)

    assert reply.status == 413
    assert not stored(relay.outbox)


def test_engage_names_its_destinations_and_not_vero(relay: RelayProcess) -> None:
    """Segment's rule for `All` would leave out every audience."""
    body = identify(integrations={"All": False, "Webhooks": True})
    reply = post(relay, body, signed(body))

    assert reply.content["status"] == "accepted"


def test_what_cannot_be_stored_is_to_be_sent_again(fragile: RelayProcess) -> None:
    run_sql(fragile.outbox, BREAK)
    broken = post(fragile, array(*CALLS), BEARER)
    run_sql(fragile.outbox, MEND)
    mended = post(fragile, array(*CALLS), BEARER)

    assert (broken.status, broken.content["status"]) == (503, "unavailable")
    assert int(broken.headers["retry-after"]) > 0
    assert mended.content["accepted"] == 3


@pytest.mark.parametrize("path", [PATH, f"{PATH}/{SHARED_SECRET}"])
def test_without_a_shared_secret_configured_there_are_no_webhooks(
    tmp_path: Path, path: str
) -> None:
    with relay_for_calls(tmp_path / "relay.db", RELAY_SEGMENT_SHARED_SECRET="") as relay:
        assert relay.ask("POST", path, CALLS[0], signed(CALLS[0])).status == 404
        assert relay.ask("POST", f"{PATH}/", CALLS[0], BEARER).status == 404
        (started,) = [line for line in relay.log() if line["event"] == "serve.started"]

    assert not [url for url in started["webhooks"] if "segment" in url]
    assert started["calls"].endswith("/v1")

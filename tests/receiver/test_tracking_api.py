"""Segment's HTTP Tracking API, served by relay itself."""

import gzip
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from relay.receiver.body import MAX_BODY_BYTES
from relay.sources.segment.bodies import CALL_TYPES, MAX_CALLS
from tests.harness.processes import RelayProcess, Reply, WholeConnection, read_reply, within
from tests.harness.stores import run_sql, stored
from tests.receiver.calls import (
    BREAK,
    MEND,
    OTHER_WRITE_KEY,
    WRITE_KEY,
    WRONG,
    basic,
    relay_for_calls,
)

PYTHON = {"User-Agent": "analytics-python/2.4.0"}
NODE = {"User-Agent": "analytics-node-next/latest"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with relay_for_calls(tmp_path_factory.mktemp("calls") / "relay.db") as relay:
        yield relay
        relay.end()


@pytest.fixture
def relay(shared: RelayProcess) -> RelayProcess:
    """The shared one, with nothing stored, for a test that breaks nothing."""
    run_sql(shared.outbox, "DELETE FROM entries")
    return shared


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RelayProcess]:
    """One for a test that breaks it."""
    with relay_for_calls(tmp_path / "relay.db") as relay:
        yield relay


def track(number: object = 1, **members: object) -> dict[str, Any]:
    """Return a call."""
    return {
        "type": "track",
        "messageId": f"call-{number}",
        "userId": "42",
        "event": "Seeds Ordered",
        **members,
    }


def batch(*calls: object, **members: object) -> bytes:
    """Return the body of a batch."""
    return json.dumps({"batch": calls, **members}).encode()


def post(relay: RelayProcess, body: bytes, path: str = "/v1/batch", **headers: str) -> Reply:
    """Post a body with the write key; return the answer."""
    return relay.ask("POST", path, body, basic(WRITE_KEY) | headers)


def documents(relay: RelayProcess) -> list[dict[str, Any]]:
    """Return the calls that are stored."""
    return [json.loads(entry.body) for entry in stored(relay.outbox)]


def raw(body: bytes, *headers: str) -> bytes:
    """Return a whole request."""
    lines = ["POST /v1/batch HTTP/1.1", "Host: relay", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer_to(sender: socket.socket) -> Reply:
    response = HTTPResponse(sender)
    response.begin()
    return read_reply(response)


@pytest.mark.parametrize("name", [name for name, type_ in CALL_TYPES.items() if type_])
@pytest.mark.parametrize("shape", ["/v1/{}", "/v1/{}/", "//v1//{}", "/v1/{}?writeKey=k"])
def test_each_path_of_one_call_stores_it(relay: RelayProcess, name: str, shape: str) -> None:
    call = {"messageId": "1", "userId": "42", "event": "x", "previousId": "7", "groupId": "g"}
    reply = post(relay, json.dumps(call).encode(), shape.format(name))

    assert (reply.status, reply.content) == (200, {"success": True})
    # A screen is nothing for Vero, unless a setting says so.
    assert documents(relay) == (
        [] if name in {"s", "screen"} else [{**call, "type": CALL_TYPES[name]}]
    )


@pytest.mark.parametrize("name", [name for name, type_ in CALL_TYPES.items() if type_ is None])
def test_each_path_of_a_batch_stores_its_calls_in_their_order(
    relay: RelayProcess, name: str
) -> None:
    calls = [track(number) for number in ("z", "y", "a", "b")]
    reply = post(relay, batch(*calls, sentAt="2026-03-01T12:00:00Z"), f"/v1/{name}")

    assert (reply.status, reply.content) == (200, {"success": True})
    assert documents(relay) == calls


def test_the_same_call_again_is_stored_once(relay: RelayProcess) -> None:
    replies = [post(relay, batch(track(), track())) for _ in range(2)]

    assert [reply.status for reply in replies] == [200, 200]
    assert documents(relay) == [track()]


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "?"]
)
def test_the_content_type_does_not_matter(relay: RelayProcess, content_type: str) -> None:
    assert post(relay, batch(track()), **{"Content-Type": content_type}).status == 200
    assert documents(relay) == [track()]


@pytest.mark.parametrize(
    ("headers", "members"),
    [
        (basic(WRITE_KEY), {}),
        (basic(OTHER_WRITE_KEY), {}),
        ({}, {"writeKey": WRITE_KEY}),
        (basic(WRITE_KEY), {"writeKey": WRITE_KEY}),
        (basic(""), {"writeKey": WRITE_KEY}),
        ({"Authorization": "Basic ?"}, {"writeKey": WRITE_KEY}),
        ({"Authorization": "Bearer of-oauth"}, {"writeKey": WRITE_KEY}),
        (basic(WRITE_KEY), {"writeKey": WRONG}),
    ],
)
def test_the_write_key_is_a_user_name_or_in_the_body(
    relay: RelayProcess, headers: dict[str, str], members: dict[str, str]
) -> None:
    reply = relay.ask("POST", "/v1/batch", batch(track(), **members), headers)

    assert reply.status == 200
    assert documents(relay) == [track()]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, batch(track())),
        (basic(WRONG), batch(track())),
        (basic(WRONG), batch(track(), writeKey=WRITE_KEY)),
        (basic(WRITE_KEY[:-1]), batch(track())),
        ({}, batch(track(), writeKey=WRONG)),
        ({}, batch(track(), writeKey=[WRITE_KEY])),
        ({"Authorization": f"Bearer {WRITE_KEY}"}, batch(track())),
        ({}, b""),
        ({}, b"not JSON"),
        ({}, WRITE_KEY.encode()),
        ({}, b"[" * 100_000),
    ],
)
def test_without_a_right_write_key_nothing_is_stored(
    relay: RelayProcess, headers: dict[str, str], body: bytes
) -> None:
    reply = relay.ask("POST", "/v1/batch", body, headers)

    assert (reply.status, reply.content["status"]) == (401, "refused")
    assert not reply.headers["www-authenticate"].lower().startswith("basic")
    assert not stored(relay.outbox)


def test_a_wrong_write_key_in_a_header_is_refused_before_the_body_comes(
    relay: RelayProcess,
) -> None:
    credentials = "Authorization: " + basic(WRONG)["Authorization"]
    with relay.connect() as sender:
        sender.sendall(raw(bytes(1000), credentials).removesuffix(bytes(1000)))
        reply = answer_to(sender)

    assert reply.status == 401


@pytest.mark.parametrize("name", ["gzip", "x-gzip"])
def test_a_compressed_body_is_accepted(relay: RelayProcess, name: str) -> None:
    body = gzip.compress(batch(track(), writeKey=WRITE_KEY))
    reply = relay.ask("POST", "/v1/batch", body, {"Content-Encoding": name})

    assert reply.status == 200
    assert documents(relay) == [track()]


def test_a_batch_of_a_mebibyte_is_accepted_and_one_more_byte_is_not(relay: RelayProcess) -> None:
    body = batch(track()).ljust(MAX_BODY_BYTES)
    largest, larger = post(relay, body), post(relay, body + b" ")
    packed = post(relay, gzip.compress(body + b" "), **{"Content-Encoding": "gzip"})

    assert [largest.status, larger.status, packed.status] == [200, 413, 413]
    assert documents(relay) == [track()]


@pytest.mark.parametrize("call", [b"5,", b"{},", b'{"type":"track"},'])
def test_too_many_calls_at_once_are_refused(relay: RelayProcess, call: bytes) -> None:
    reply = post(relay, b'{"batch":[%b]}' % (call * (MAX_CALLS + 1))[:-1])

    assert reply.status == 413
    assert not stored(relay.outbox)


def test_what_a_batch_has_in_common_is_not_repeated_without_limit(relay: RelayProcess) -> None:
    calls = [track(number) for number in range(1_000)]
    reply = post(relay, batch(*calls, context={"a": "x" * 100_000}))

    assert reply.status == 413
    assert not stored(relay.outbox)


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("batch", b"", "not JSON: "),
        ("batch", b'{"batch":[' + b"{}," * 10, "not JSON: "),
        ("batch", b"[]", "not JSON: Expected `object`, got "),
        ("batch", b"{}", "no list of calls in `batch`"),
        ("import", b'{"batch":{"a":1}}', "no list of calls in `batch`"),
        ("b", json.dumps(track()).encode(), "no list of calls in `batch`"),
        ("batch", b'{"batch":' + b"[" * 100_000, "nested deeper than 50 levels"),
        ("track", b"not JSON", "not JSON: "),
        ("t", b'"track"', "not JSON: Expected `object`, got "),
        ("track", b'{"properties":' * 60 + b"1" + b"}" * 60, "nested deeper than 50 levels"),
    ],
)
def test_a_body_without_calls_is_refused_and_kept_once(
    relay: RelayProcess, path: str, body: bytes, detail: str
) -> None:
    first, again = (post(relay, body, f"/v1/{path}") for _ in range(2))
    (entry,) = stored(relay.outbox)

    assert first.status == again.status == 400
    assert first.content == {"status": "dead", "reason": "unreadable", "error": entry.detail}
    assert (entry.state, entry.reason) == ("dead", "unreadable")
    assert entry.detail is not None
    assert entry.detail.startswith(detail)


def test_a_body_that_is_kept_has_no_write_key(relay: RelayProcess) -> None:
    reply = post(relay, f'{{"batch":[{{}}],"writeKey":"{WRITE_KEY}"'.encode())
    (entry,) = stored(relay.outbox)

    assert reply.status == 400
    assert entry.body == b'{"batch":[{}],"writeKey":"***"'


@pytest.mark.parametrize(
    "bad",
    [
        "5",
        "null",
        "[]",
        "{}",
        '{"type":"unheard of"}',
        '{"type":"track","userId":"42"}',
        '{"type":"track","properties":' + '{"a":' * 60 + "1" + "}" * 61,
        '{"type":"track","properties":' + '{"]":' * 30_000 + "1" + "}" * 30_001,
        '{"type":"track","event":1e999}',
    ],
)
def test_one_bad_call_does_not_affect_the_others(relay: RelayProcess, bad: str) -> None:
    first, last = json.dumps(track(1)), json.dumps(track(2))
    reply = post(relay, f'{{"batch":[{first},{bad},{last}]}}'.encode())

    assert (reply.status, reply.content) == (200, {"success": True})
    assert [entry.state for entry in stored(relay.outbox)] == ["pending", "dead", "pending"]


def test_a_batch_of_bad_calls_is_not_refused(relay: RelayProcess) -> None:
    assert post(relay, b'{"batch":[5]}').status == 200
    assert [entry.reason for entry in stored(relay.outbox)] == ["unreadable"]


def test_an_empty_batch_is_no_fault(relay: RelayProcess) -> None:
    assert post(relay, b'{"batch":[]}').content == {"success": True}
    assert not stored(relay.outbox)


def test_batches_of_many_clients_keep_their_orders(relay: RelayProcess) -> None:
    def send(client: int) -> None:
        with closing(WholeConnection("127.0.0.1", relay.port, timeout=30)) as connection:
            for number in range(5):
                calls = [track(f"{client}-{number}-{place:03}") for place in range(40)]
                connection.request("POST", "/v1/batch", batch(*calls), basic(WRITE_KEY))
                assert read_reply(connection.getresponse()).status == 200

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(send, range(8)))
    names = [document["messageId"] for document in documents(relay)]

    assert len(names) == 8 * 5 * 40
    for client in range(8):
        own = [name for name in names if name.startswith(f"call-{client}-")]
        assert own == sorted(own)


@pytest.mark.parametrize("body", [batch(track()), batch(5, track()), b"unreadable"])
@pytest.mark.parametrize(
    ("headers", "status", "retry_after"), [(PYTHON, 503, None), (NODE, 429, "5"), ({}, 429, "5")]
)
def test_what_cannot_be_stored_is_answered_so_that_the_client_keeps_its_order(
    fragile: RelayProcess,
    body: bytes,
    headers: dict[str, str],
    status: int,
    retry_after: str | None,
) -> None:
    run_sql(fragile.outbox, BREAK)
    broken = post(fragile, body, **headers)
    run_sql(fragile.outbox, MEND)
    mended = post(fragile, body, **headers)

    assert (broken.status, broken.content["status"]) == (status, "unavailable")
    assert broken.headers.get("retry-after") == retry_after
    assert mended.status in {200, 400}
    assert stored(fragile.outbox)


@pytest.mark.parametrize(
    ("headers", "status", "retry_after"), [(PYTHON, 503, None), (NODE, 429, "5")]
)
def test_bodies_of_unknown_senders_take_little_memory(
    relay: RelayProcess, headers: dict[str, str], status: int, retry_after: str | None
) -> None:
    """The sender that has held bytes the longest is told to come again."""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    request = raw(bytes(2**20), *lines)[:-1]
    senders = [relay.connect() for _ in range(17)]
    for sender in senders:
        sender.sendall(request)
        relay.ask("GET", "/healthz")
    reply = answer_to(senders[0])
    for sender in senders:
        sender.close()

    assert (reply.status, reply.content["status"]) == (status, "unavailable")
    assert reply.headers.get("retry-after") == retry_after
    assert reply.headers["connection"] == "close"


@pytest.mark.slow
def test_a_slow_body_is_refused(relay: RelayProcess) -> None:
    with relay.connect() as sender:
        sender.sendall(raw(bytes(100), "Authorization: " + basic(WRITE_KEY)["Authorization"])[:-1])
        reply = answer_to(sender)

    assert reply.status == 408
    assert not stored(relay.outbox)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/batch", "/v1/i/"])
def test_methods_other_than_post_are_not_allowed(
    relay: RelayProcess, method: str, path: str
) -> None:
    reply = relay.ask(method, path, None, basic(WRITE_KEY))

    assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v1/", "/v1/nothing", "/v1/batch/1", "/v1/Batch", "/v1/m"])
def test_other_paths_are_not_found(relay: RelayProcess, method: str, path: str) -> None:
    reply = relay.ask(method, path, None, basic(WRITE_KEY))

    assert (reply.status, reply.content["status"]) == (404, "refused")


def test_analytics_js_is_told_to_bring_its_settings(relay: RelayProcess) -> None:
    reply = relay.ask("GET", f"/v1/projects/{WRITE_KEY}/settings")

    assert reply.status == 404
    assert "cdnSettings" in reply.content["error"]
    assert "apiKey" in reply.content["error"]  # without it, analytics.js sends no key
    assert WRITE_KEY not in str((reply.content, relay.log()))


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_without_a_write_key_configured_there_is_no_api(tmp_path: Path, method: str) -> None:
    with relay_for_calls(
        tmp_path / "relay.db",
        RELAY_SEGMENT_WRITE_KEY="",
        RELAY_SEGMENT_BROWSER_WRITE_KEY="",
    ) as relay:
        reply = relay.ask(method, "/v1/batch", batch(track()), basic(WRITE_KEY))

        assert reply.status == 404
        assert "RELAY_SEGMENT_WRITE_KEY" in reply.content["error"]


def test_pipelined_requests_are_answered_in_order(relay: RelayProcess) -> None:
    key = "Authorization: " + basic(WRITE_KEY)["Authorization"]
    last = raw(batch(track(2)), key, "Connection: close")
    with relay.connect() as sender:
        sender.sendall(raw(batch(track(1)), key) + raw(b"{", key) + last)
        answers = b"".join(iter(lambda: sender.recv(65_536), b""))

    statuses = [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400", b"200"], answers
    assert len(stored(relay.outbox)) == 3


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5",),
        ("Transfer-Encoding: chunked",),
        ("Content-Length: +2",),
    ],
)
def test_a_request_whose_length_is_ambiguous_is_refused(
    relay: RelayProcess, lines: tuple[str, ...]
) -> None:
    with relay.connect() as sender:
        sender.sendall(raw(batch(track()), *lines))
        response = HTTPResponse(sender)
        response.begin()

    assert response.status == 400
    assert not stored(relay.outbox)


def page(relay: RelayProcess) -> str:
    """Return the metrics."""
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def test_each_call_is_counted(fragile: RelayProcess) -> None:
    post(fragile, batch(track(1), track(2), track(2), 5, {"type": "screen", "userId": "42"}))
    post(fragile, b"not JSON")
    fragile.ask("POST", "/v1/batch", batch(track(1)), basic(WRONG))
    run_sql(fragile.outbox, BREAK)
    post(fragile, batch(track(3), track(4)))
    run_sql(fragile.outbox, MEND)
    lines = [
        line.removeprefix("relay_webhooks_total")
        for line in page(fragile).splitlines()
        if line.startswith("relay_webhooks_total") and 'source="segment"' in line
    ]

    assert sorted(lines) == [
        '{outcome="accepted",source="segment",what="track"} 2.0',
        '{outcome="dead",source="segment",what="unreadable"} 2.0',
        '{outcome="duplicate",source="segment",what="track"} 1.0',
        '{outcome="ignored",source="segment",what="screen"} 1.0',
        '{outcome="refused",source="segment",what="401"} 1.0',
        '{outcome="unavailable",source="segment",what="outbox"} 2.0',
    ]


@pytest.mark.parametrize(
    ("headers", "body", "why"),
    [
        (
            basic(WRONG),
            batch(track()),
            "the user name in the Authorization header is wrong",
        ),
        ({}, batch(track(), writeKey=WRONG), "the write key in the body is wrong"),
        ({}, batch(track()), "neither an Authorization header nor the body holds a write key"),
    ],
)
def test_the_log_says_why_a_write_key_was_refused(
    fragile: RelayProcess, headers: dict[str, str], body: bytes, why: str
) -> None:
    for _ in range(3):
        fragile.ask("POST", "/v1/batch", body, headers)

    def refusals() -> list[dict[str, object]]:
        return [line for line in fragile.log() if line["event"] == "webhook.refused"]

    assert within(5, lambda: len(refusals()) == 1)
    (line,) = refusals()
    assert (line["source"], line["status"], line["why"]) == ("segment", 401, why)


def test_the_log_has_no_write_key_no_id_and_no_address(tmp_path: Path) -> None:
    with relay_for_calls(tmp_path / "relay.db", RELAY_LOG_LEVEL="debug") as relay:
        private = track("of-ann", userId="ann-42", context={"traits": {"email": "ann@example.com"}})
        post(relay, batch(private, 5, writeKey=OTHER_WRITE_KEY))
        relay.ask("POST", "/v1/t", json.dumps(private).encode(), basic(WRONG))
        run_sql(relay.outbox, BREAK)
        post(relay, batch(private))
        run_sql(relay.outbox, MEND)
        relay.end()
        log = json.dumps(relay.log())

    assert "webhook.accepted" in log
    assert "webhook.not_stored" in log
    for secret in (WRITE_KEY, OTHER_WRITE_KEY, WRONG, "ann"):
        assert secret not in log


@pytest.mark.slow
def test_a_batch_is_stored_whole_or_not_at_all_when_relay_is_killed(tmp_path: Path) -> None:
    calls = [track(number) for number in range(2_500)]
    with relay_for_calls(tmp_path / "relay.db") as relay, relay.connect() as sender:
        key = "Authorization: " + basic(WRITE_KEY)["Authorization"]
        sender.sendall(raw(batch(*calls), key))
        within(20, lambda: bool(stored(relay.outbox)))
        relay.kill()

        assert len(stored(relay.outbox)) in {0, 2_500}


def test_webhooks_are_answered_while_a_large_batch_is_accepted(relay: RelayProcess) -> None:
    body = batch(*(track(number) for number in range(4_000)))
    with ThreadPoolExecutor(2) as senders:
        posting = senders.submit(post, relay, body)
        answered = 0
        while not posting.done():
            answered += relay.ask("GET", "/healthz").status == 200

    assert posting.result().status == 200
    assert answered > 5

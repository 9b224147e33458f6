"""Calls of web pages, whose write key every visitor can read."""

import json
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from relay.receiver.cors import Cors
from tests.harness.processes import RelayProcess, Reply, within
from tests.harness.stores import run_sql, stored
from tests.receiver.calls import (
    BREAK,
    BROWSER_KEY,
    MEND,
    ORIGIN,
    OTHER_ORIGIN,
    WRITE_KEY,
    WRONG,
    basic,
    relay_for_calls,
)

FORBIDDEN_ORIGINS = [
    "https://evil.example.com",
    f"{ORIGIN}.evil.com",
    "http://shop.example.com",
    f"{ORIGIN}/",
    f"{ORIGIN}:8443",
    "null",
    "*",
    f"{ORIGIN},{OTHER_ORIGIN}",
]
TRACK: dict[str, object] = {
    "type": "track",
    "messageId": "call-1",
    "userId": "42",
    "event": "Seeds Ordered",
}
PRIVILEGED: list[tuple[dict[str, object], str]] = [
    ({"type": "alias", "previousId": "ann@example.com"}, "alias"),
    ({"type": "delete"}, "delete"),
    ({"event": "Unsubscribe"}, "unsubscribe"),
    ({"event": "Resubscribe"}, "resubscribe"),
    ({"event": "Unsubscribe", "properties": {"id": "7"}}, "unsubscribe"),
    (
        {"integrations": {"Vero": {"tags": {"id": "7", "action": "add", "values": ["x"]}}}},
        "another_id",
    ),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with relay_for_calls(tmp_path_factory.mktemp("browsers") / "relay.db") as relay:
        yield relay
        relay.end()


@pytest.fixture
def relay(shared: RelayProcess) -> RelayProcess:
    """The shared one, with nothing stored."""
    run_sql(shared.outbox, "DELETE FROM entries")
    return shared


def post(
    relay: RelayProcess, *calls: object, key: str = BROWSER_KEY, origin: str | None = ORIGIN
) -> Reply:
    """Post calls as analytics.js does."""
    headers = {
        "Content-Type": "text/plain",
        **basic(key),
    }
    if origin is not None:
        headers["Origin"] = origin
    body = json.dumps({"batch": calls, "writeKey": key}).encode()
    return relay.ask("POST", "/v1/b", body, headers)


def preflight(relay: RelayProcess, origin: str | None) -> tuple[int, dict[str, str], bytes]:
    """Ask whether a page may call; return the status, the headers and the body of the answer."""
    headers = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    if origin is not None:
        headers["Origin"] = origin
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("OPTIONS", "/v1/t", headers=headers)
        response = connection.getresponse()
        values = {name.lower(): value for name, value in response.headers.items()}
        return response.status, values, response.read()


@pytest.mark.parametrize("origin", [ORIGIN, OTHER_ORIGIN])
def test_a_page_of_a_named_origin_may_call(relay: RelayProcess, origin: str) -> None:
    status, headers, body = preflight(relay, origin)

    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == origin
    assert headers["access-control-allow-methods"] == "POST"
    assert headers["access-control-allow-headers"] == "authorization, content-type, x-retry-count"
    assert int(headers["access-control-max-age"]) > 0
    assert headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", FORBIDDEN_ORIGINS)
@pytest.mark.parametrize("key", [WRITE_KEY, BROWSER_KEY])
def test_no_other_page_may(relay: RelayProcess, origin: str, key: str) -> None:
    status, headers, _ = preflight(relay, origin)
    reply = post(relay, TRACK, key=key, origin=origin)

    assert status == reply.status == 403
    assert not [name for name in (*headers, *reply.headers) if name.startswith("access-control")]
    assert headers["vary"] == reply.headers["vary"] == "origin"
    assert not stored(relay.outbox)


def test_a_page_can_read_every_answer(relay: RelayProcess) -> None:
    """Otherwise analytics.js takes each for a failure of the network."""
    run_sql(relay.outbox, BREAK)
    unavailable = post(relay, TRACK)
    run_sql(relay.outbox, MEND)
    replies = [
        unavailable,
        post(relay, TRACK),
        post(relay, TRACK, key=WRONG),
        relay.ask("GET", "/v1/t", None, {"Origin": ORIGIN}),
        relay.ask("GET", "/v1/projects/x/settings", None, {"Origin": ORIGIN}),
    ]

    assert [reply.status for reply in replies] == [429, 200, 401, 405, 404]
    assert {reply.headers["access-control-allow-origin"] for reply in replies} == {ORIGIN}
    assert {reply.headers["access-control-expose-headers"] for reply in replies} == {"retry-after"}


@pytest.mark.parametrize("origin", [ORIGIN, None])
def test_without_origins_configured_there_is_no_word_of_cors(
    tmp_path: Path, origin: str | None
) -> None:
    with relay_for_calls(tmp_path / "relay.db", RELAY_SEGMENT_ORIGINS="") as relay:
        status, headers, _ = preflight(relay, origin)
        reply = post(relay, TRACK, origin=origin)

        assert status == (403 if origin else 204)
        assert reply.status == (403 if origin else 200)
        assert not [
            name
            for name in (*headers, *reply.headers)
            if name == "vary" or name.startswith("access-control")
        ]


def test_a_program_without_an_origin_may_call(relay: RelayProcess) -> None:
    assert post(relay, TRACK, origin=None).status == 200
    assert len(stored(relay.outbox)) == 1


@pytest.mark.parametrize(("members", "privilege"), PRIVILEGED)
def test_a_call_that_needs_a_privilege_becomes_a_dead_letter(
    relay: RelayProcess, members: dict[str, object], privilege: str
) -> None:
    first, last = ({**TRACK, "messageId": name} for name in ("first", "last"))
    reply = post(relay, first, {**TRACK, **members}, last)
    entries = stored(relay.outbox)

    assert (reply.status, reply.content) == (200, {"success": True})
    assert [entry.reason for entry in entries] == [None, "forbidden", None]
    assert [entry.state for entry in entries] == ["pending", "dead", "pending"]
    assert entries[1].detail == f"a browser's write key may not do this: {privilege}"


@pytest.mark.parametrize(("members", "_privilege"), PRIVILEGED)
def test_a_server_may_make_the_same_call(
    relay: RelayProcess, members: dict[str, object], _privilege: str
) -> None:
    post(relay, {**TRACK, **members}, key=WRITE_KEY, origin=None)
    (entry,) = stored(relay.outbox)

    assert entry.reason != "forbidden"


def test_a_setting_lets_browsers_do_all(tmp_path: Path) -> None:
    with relay_for_calls(
        tmp_path / "relay.db", RELAY_SEGMENT_BROWSER_MAY="all", VERO_DELETE="1"
    ) as relay:
        for number, (members, _) in enumerate(PRIVILEGED):
            post(relay, {**TRACK, **members, "messageId": str(number)})

        assert [entry.state for entry in stored(relay.outbox)] == ["pending"] * len(PRIVILEGED)


def test_what_is_nothing_for_vero_needs_no_privilege(relay: RelayProcess) -> None:
    post(relay, TRACK | {"type": "alias", "previousId": "42"}, TRACK | {"type": "screen"})

    assert not stored(relay.outbox)


@pytest.mark.parametrize("may", ["write", "all"])
def test_no_visitor_can_take_the_message_id_of_a_servers_call(tmp_path: Path, may: str) -> None:
    """It may be guessed, like the number of an order. The server's call would be a duplicate."""
    paid = TRACK | {"messageId": "order-7", "event": "Order Paid"}
    with relay_for_calls(tmp_path / "relay.db", RELAY_SEGMENT_BROWSER_MAY=may) as relay:
        post(relay, TRACK | {"messageId": "order-7"})
        post(relay, TRACK | {"messageId": "order-7"})
        post(relay, paid, key=WRITE_KEY, origin=None)
        events = [json.loads(entry.body)["event"] for entry in stored(relay.outbox)]

    assert events == ["Seeds Ordered", "Order Paid"]


def test_a_servers_key_in_a_page_is_accepted_with_a_warning(tmp_path: Path) -> None:
    """A gateway of the customer's own may add the key to what a page has sent."""
    with relay_for_calls(tmp_path / "relay.db") as relay:
        replies = [post(relay, TRACK, key=WRITE_KEY) for _ in range(3)]

        def warnings() -> list[dict[str, object]]:
            return [line for line in relay.log() if line["event"] == "segment.write_key_published"]

        assert {reply.status for reply in replies} == {200}
        assert within(5, lambda: len(warnings()) == 1)
        assert warnings()[0]["level"] == "warning"
        assert WRITE_KEY not in str(relay.log())


def test_an_origin_is_compared_whole() -> None:
    cors = Cors([ORIGIN])

    assert cors.allows(ORIGIN.encode())
    assert not any(cors.allows(origin.encode()) for origin in FORBIDDEN_ORIGINS)

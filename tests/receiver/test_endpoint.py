import asyncio
import gzip
import json
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from starlette.types import Message

from relay.events import ParseResult
from relay.outbox.sqlite.store import SqliteOutbox
from relay.receiver.body import MAX_BODY_BYTES
from relay.receiver.committer import Committer
from relay.receiver.endpoint import Webhooks
from relay.receiver.server import base_url, listen
from relay.sources.vero import Vero, VeroSettings
from tests.harness.calls import accepted, routes_both_ways
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import (
    PATH,
    SECRET,
    RelayProcess,
    Reply,
    WholeConnection,
    ask,
    closed_port,
    read_reply,
    within,
)
from tests.harness.routes import routes
from tests.harness.stores import run_sql, stored
from tests.harness.webhooks import opened

OTHER_SECRET = "another-secret-for-the-tests"
WRONG_SECRET = "wrong-secret-for-the-tests"
NOBODY = "http://127.0.0.1:1"
BREAK = "ALTER TABLE entries RENAME TO away"
MEND = "ALTER TABLE away RENAME TO entries"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    outbox = tmp_path_factory.mktemp("receiver") / "relay.db"
    secrets = f"{SECRET},{OTHER_SECRET}"
    with RelayProcess(outbox, NOBODY, RELAY_VERO_SECRET=secrets) as relay:
        yield relay
        relay.end()


@pytest.fixture
def emptied(shared: RelayProcess) -> RelayProcess:
    """The shared one, with nothing stored, for a test that breaks nothing."""
    run_sql(shared.outbox, "DELETE FROM entries")
    return shared


@pytest.fixture(params=[WholeConnection, HTTPConnection], ids=["whole", "in pieces"])
def relay(emptied: RelayProcess, request: pytest.FixtureRequest) -> RelayProcess:
    """The same, sent requests in one piece, and with the body after the head."""
    emptied.connection = request.param
    return emptied


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[RelayProcess]:
    """One for a test that breaks it."""
    with RelayProcess(tmp_path / "relay.db", NOBODY) as relay:
        yield relay


def basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def begin(sender: socket.socket, *headers: str) -> None:
    """Send the head of a webhook."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: relay", *headers, "", ""]
    sender.sendall("\r\n".join(lines).encode())


def raw(body: bytes, *headers: str) -> bytes:
    """A whole request."""
    lines = [f"POST {PATH} HTTP/1.1", "Host: relay", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer_to(sender: socket.socket) -> Reply:
    response = HTTPResponse(sender)
    response.begin()
    return read_reply(response)


def test_an_event_is_stored_unchanged_before_it_is_accepted(relay: RelayProcess) -> None:
    body = b"\n " + opened() + b"\n"
    reply = relay.post(body)
    (entry,) = stored(relay.outbox)

    assert reply.status == 200
    assert reply.content == {"status": "accepted", "message_id": entry.message_id}
    assert (entry.state, entry.body, entry.source) == ("pending", body, "vero")


def test_the_same_event_again_is_a_duplicate(relay: RelayProcess) -> None:
    first, again = relay.post(opened()), relay.post(opened())

    assert again.status == 200
    assert again.content == first.content | {"status": "duplicate"}
    assert len(stored(relay.outbox)) == 1


def test_of_many_copies_at_once_one_is_accepted(relay: RelayProcess) -> None:
    with ThreadPoolExecutor(16) as senders:
        replies = list(senders.map(relay.post, [opened()] * 64))
    outcomes = [reply.content["status"] for reply in replies]

    assert sorted(outcomes) == ["accepted"] + ["duplicate"] * 63
    assert len({reply.content["message_id"] for reply in replies}) == 1
    assert len(stored(relay.outbox)) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (opened(type="converted"), "converted"),
        (opened(campaign={"channel": "sms"}), "other_channel"),
    ],
)
def test_an_event_outside_the_seven_collections_is_ignored(
    relay: RelayProcess, body: bytes, reason: str
) -> None:
    reply = relay.post(body)

    assert (reply.status, reply.content) == (200, {"status": "ignored", "reason": reason})
    assert not stored(relay.outbox)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (opened(type="snoozed"), "unknown_type"),
        (opened(user={}), "no_recipient"),
    ],
)
def test_a_webhook_that_is_no_event_becomes_a_dead_letter_and_is_not_sent_again(
    relay: RelayProcess, body: bytes, reason: str
) -> None:
    reply = relay.post(body)
    (entry,) = stored(relay.outbox)

    assert reply.status == 200
    assert reply.content == {"status": "dead", "reason": reason, "error": entry.detail}
    assert (entry.state, entry.reason, entry.body) == ("dead", reason, body)


class FaultyVero(Vero):
    def parse(self, body: bytes, received_at: datetime) -> ParseResult:
        raise KeyError(body, received_at)


def test_a_body_on_which_the_mapping_fails_becomes_a_dead_letter(tmp_path: Path) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": opened()}

    async def send(message: Message) -> None:
        sent.append(message)

    async def post() -> None:
        committer.start()
        vero = FaultyVero(VeroSettings.model_validate({"secret": SECRET}))
        webhooks = Webhooks(routes([vero]), committer)
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}
        await webhooks(scope, receive, send)
        await committer.close()

    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        committer = Committer(outbox)
        asyncio.run(post())
        (entry,) = stored(tmp_path / "relay.db")
    head, body = sent

    assert head["status"] == 200
    assert json.loads(body["body"]) == {
        "status": "dead",
        "reason": "poison",
        "error": "the mapping failed: KeyError",
    }
    assert (entry.state, entry.reason, entry.body) == ("dead", "poison", opened())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"type=opened", id="form"),
        pytest.param(opened()[:-1], id="cut off"),
        pytest.param(b"[]", id="no object"),
        pytest.param(opened(bounce_code=float("nan")), id="NaN"),
        pytest.param(b'{"type": 1e999}', id="infinite"),
        pytest.param(b'{"type": ' + b"9" * 5_000 + b"}", id="huge integer"),
        pytest.param(b'{"type": "\x00"}', id="raw NUL"),
        pytest.param(b'{"type": "\xe9"}', id="latin-1"),
        pytest.param(opened().decode().encode("utf-16"), id="UTF-16"),
        pytest.param(gzip.compress(opened()), id="gzip"),
        pytest.param(b'{"a":' * 51 + b"1" + b"}" * 51, id="51 levels"),
        pytest.param(b'{"a":' * 100_000, id="100,000 levels"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="100,000 lists"),
    ],
)
def test_an_unreadable_body_is_refused_and_kept_once(relay: RelayProcess, body: bytes) -> None:
    first, again = relay.post(body), relay.post(body)
    (entry,) = stored(relay.outbox)

    assert first.status == again.status == 400
    assert first.content == {"status": "dead", "reason": "unreadable", "error": entry.detail}
    assert again.content == first.content
    assert (entry.state, entry.reason, entry.body) == ("dead", "unreadable", body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xef\xbb\xbf" + opened(), id="byte order mark"),
        pytest.param(b'{"type": "sent",' + opened()[1:], id="repeated key"),
        pytest.param(opened(message_id="a\x00b"), id="escaped NUL"),
        pytest.param(opened(message_id="\ud800"), id="lone surrogate"),
        pytest.param(opened(user={"id": 10**400}), id="large integer"),
        pytest.param(opened(opened_at=-(10**18)), id="impossible time"),
        pytest.param(
            opened(user="ann", message_id=[[], {}], campaign={"sent_to": "a@b"}), id="types"
        ),
    ],
)
def test_an_odd_but_readable_body_is_accepted(relay: RelayProcess, body: bytes) -> None:
    reply = relay.post(body)
    (entry,) = stored(relay.outbox)

    assert reply.content == {"status": "accepted", "message_id": entry.message_id}
    assert entry.state == "pending"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", "?"]
)
def test_the_content_type_does_not_matter(relay: RelayProcess, content_type: str) -> None:
    reply = relay.post(opened(), {"Content-Type": content_type, "Content-Encoding": "gzip"})

    assert reply.content["status"] == "accepted"


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (PATH, {}),
        (f"/webhooks/vero/{OTHER_SECRET}", {}),
        (f"/webhooks/vero/%61{SECRET[1:]}?source=vero", {}),
        ("/webhooks/vero", {"Authorization": f"Bearer {SECRET}"}),
        ("/webhooks/vero", {"Authorization": f"bearer {OTHER_SECRET}"}),
        ("/webhooks/vero", {"Authorization": basic("", SECRET)}),
        ("/webhooks/vero", {"Authorization": basic("anyone", OTHER_SECRET)}),
    ],
)
def test_a_secret_is_accepted_in_each_place_that_can_hold_it(
    relay: RelayProcess, path: str, headers: dict[str, str]
) -> None:
    assert relay.ask("POST", path, opened(), headers).status == 200


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/webhooks/vero", {}),
        ("/webhooks/vero/", {}),
        ("/webhooks/vero/wrong-secret-for-the-tests", {}),
        (f"/webhooks/vero/{SECRET[:-1]}", {}),
        (f"/webhooks/vero/{SECRET},{OTHER_SECRET}", {}),
        (f"/webhooks/vero/{SECRET}/", {}),
        ("/webhooks/vero/%FF%00", {"Authorization": f"Bearer {SECRET}"}),
        (f"/webhooks/vero?secret={SECRET}", {}),
        ("/webhooks/vero", {"Authorization": SECRET}),
        ("/webhooks/vero", {"Authorization": "Bearer "}),
        ("/webhooks/vero", {"Authorization": "Basic ?"}),
        ("/webhooks/vero", {"Authorization": basic(SECRET, "")}),
    ],
)
def test_without_the_secret_nothing_is_stored(
    relay: RelayProcess, path: str, headers: dict[str, str]
) -> None:
    reply = relay.ask("POST", path, opened(), headers)

    assert (reply.status, reply.content["status"]) == (401, "refused")
    assert not stored(relay.outbox)


@pytest.mark.parametrize(
    "path", ["/webhooks/nobody", f"/webhooks/nobody/{SECRET}", "/webhooks/", "/webhooks", "/"]
)
def test_an_unknown_source_is_not_found(relay: RelayProcess, path: str) -> None:
    reply = relay.ask("POST", path, opened(), {"Authorization": f"Bearer {SECRET}"})

    assert (reply.status, reply.content["status"]) == (404, "refused")


@pytest.mark.parametrize("path", ["/webhooks/vero", "/webhooks/vero/"])
def test_without_a_secret_configured_there_is_no_route(tmp_path: Path, path: str) -> None:
    outbox, port = tmp_path / "relay.db", closed_port()
    with RelayProcess(outbox, NOBODY, port=port, RELAY_VERO_SECRET="") as relay:
        assert relay.ask("POST", path, opened()).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", [PATH, "/webhooks/vero"])
def test_methods_other_than_post_are_not_allowed(
    relay: RelayProcess, method: str, path: str
) -> None:
    reply = relay.ask(method, path, None if method in {"GET", "HEAD"} else opened())

    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    assert not stored(relay.outbox)


def test_a_body_of_a_mebibyte_is_accepted_and_one_more_byte_is_not(relay: RelayProcess) -> None:
    body = opened().ljust(MAX_BODY_BYTES)
    largest, larger = relay.post(body), relay.post(body + b" ")

    assert largest.content["status"] == "accepted"
    assert larger.status == 413
    assert len(stored(relay.outbox)) == 1


@pytest.mark.parametrize("secret", [SECRET, "wrong-secret-for-the-tests"])
def test_a_sender_that_reads_nothing_until_it_has_sent_all_sees_the_refusal(
    relay: RelayProcess, secret: str
) -> None:
    """Closing the connection on it would reset it, and the answer would be lost."""
    reply = relay.ask("POST", f"/webhooks/vero/{secret}", b"x" * 16 * 2**20)

    assert reply.status == (413 if secret == SECRET else 401)


@pytest.mark.parametrize(
    ("header", "first", "rest"),
    [
        ("Content-Length: 3000000", b"", b"x" * 3_000_000),
        ("Content-Length: 3000000\r\nExpect: 100-continue", b"", b"x" * 3_000_000),
        (
            "Transfer-Encoding: chunked",
            b"100001\r\n" + b"x" * 0x100001,
            b"\r\n1\r\nx\r\n0\r\n\r\n",
        ),
    ],
)
def test_a_body_too_large_is_refused_while_it_is_being_sent(
    emptied: RelayProcess, header: str, first: bytes, rest: bytes
) -> None:
    with emptied.connect() as sender:
        begin(sender, header)
        sender.sendall(first)
        reply = answer_to(sender)
        sender.sendall(rest)
        after = sender.recv(1)

    assert reply.status == 413
    assert after == b""
    assert not stored(emptied.outbox)


@pytest.mark.slow
def test_a_slow_body_is_refused(emptied: RelayProcess) -> None:
    with emptied.connect() as sender:
        begin(sender, "Content-Length: 100")
        sender.sendall(b"{")
        reply = answer_to(sender)

    assert reply.status == 408
    assert not stored(emptied.outbox)


@pytest.mark.slow
def test_a_slow_head_ends_the_connection(emptied: RelayProcess) -> None:
    with ExitStack() as connections:
        senders = []
        for begun in (b"", b"P", b"POST /webhooks/ver", b"POST / HTTP/1.1\r\nHost: re", raw(b"{}")):
            sender = connections.enter_context(emptied.connect())
            sender.sendall(begun)
            senders.append(sender)
        answer_to(senders[-1])
        senders[-1].sendall(b"POST /")
        afterwards = [sender.recv(1) for sender in senders]

    assert afterwards == [b""] * 5


@pytest.mark.parametrize("line", [b"X: 1\r\n", b"x"], ids=["lines", "one line"])
def test_an_endless_head_is_refused(emptied: RelayProcess, line: bytes) -> None:
    with emptied.connect() as sender:
        sender.sendall(f"POST {PATH} HTTP/1.1\r\n".encode())
        answers = []
        with suppress(ConnectionError):
            for _ in range(100):
                sender.sendall(line * 20_000)
            answers.append(sender.recv(100))

    assert all(answer.startswith(b"HTTP/1.1 400 ") for answer in answers)
    assert emptied.ask("GET", "/healthz").status == 200


def test_a_sender_that_goes_away_leaves_nothing_behind(emptied: RelayProcess) -> None:
    with emptied.connect() as sender:
        begin(sender, "Content-Length: 1000")
        sender.sendall(opened())
    emptied.post(opened(message_id="mail-2"))

    assert len(stored(emptied.outbox)) == 1


@pytest.mark.parametrize("cut", [1, 40, -len(opened()), -1])
def test_a_webhook_may_come_in_several_pieces(emptied: RelayProcess, cut: int) -> None:
    request = raw(opened())
    with emptied.connect() as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sender.sendall(request[:cut])
        emptied.ask("GET", "/healthz")  # by now the first piece has been seen
        sender.sendall(request[cut:])
        reply = answer_to(sender)

    assert reply.content["status"] == "accepted"


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("cut", [None, 40], ids=["whole", "in pieces"])
def test_a_sender_that_closes_its_sending_half_gets_its_answer(
    emptied: RelayProcess, ahead: int, cut: int | None
) -> None:
    healthz = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
    request = healthz * ahead + raw(opened())
    with emptied.connect() as sender:
        sender.sendall(request[:cut])
        emptied.ask("GET", "/healthz")  # by now the first piece has been seen
        sender.sendall(request[len(request[:cut]) :])
        sender.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: sender.recv(65_536), b""))
    outcomes = re.findall(rb'{"status":"(\w+)"', answers)

    assert outcomes == [b"alive"] * ahead + [b"accepted"]


def test_pipelined_requests_are_answered_in_order(emptied: RelayProcess) -> None:
    first, second = opened(message_id="mail-1"), opened(message_id="mail-2")
    healthz = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
    last = raw(first, "Connection: close")
    with emptied.connect() as sender:
        sender.sendall(raw(first) + raw(b"{") + healthz + raw(second) + healthz + last)
        answers = b"".join(iter(lambda: sender.recv(65_536), b""))
    outcomes = re.findall(rb'{"status":"(\w+)"', answers)

    expected = [b"accepted", b"dead", b"alive", b"accepted", b"alive", b"duplicate"]
    assert outcomes == expected, answers


def test_the_next_head_may_begin_right_behind_a_large_body(emptied: RelayProcess) -> None:
    large = raw(opened().ljust(90_000))
    with emptied.connect() as sender:
        sender.sendall(large + b"POST ")
        first = answer_to(sender)
        sender.sendall(raw(opened(), "Connection: close").removeprefix(b"POST "))
        second = answer_to(sender)

    assert (first.content["status"], second.content["status"]) == ("accepted", "duplicate")


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
def test_the_connection_is_closed_after_the_answer_if_the_request_asks_for_it(
    emptied: RelayProcess, version: str
) -> None:
    with emptied.connect() as sender:
        sender.sendall(raw(opened(), "Connection: close").replace(b"HTTP/1.1", version.encode()))
        reply = answer_to(sender)
        after = sender.recv(1)

    assert reply.content["status"] == "accepted"
    assert reply.headers["connection"] == "close"
    assert after == b""


def test_a_chunked_webhook_is_accepted(emptied: RelayProcess) -> None:
    with emptied.connect() as sender:
        begin(sender, "Transfer-Encoding: chunked")
        sender.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in opened()) + b"0\r\n\r\n")
        reply = answer_to(sender)

    assert reply.content["status"] == "accepted"


def test_bytes_that_are_not_http_are_refused_and_store_nothing(emptied: RelayProcess) -> None:
    with emptied.connect() as sender:
        head = f"POST {PATH} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n"
        sender.sendall(head.encode() + b"5\r\n{....no chunk\r\n0\r\n\r\n")
        response = HTTPResponse(sender)
        response.begin()

    assert response.status == 400
    assert not stored(emptied.outbox)


def test_a_sender_that_does_not_wait_for_the_answer_is_stored(emptied: RelayProcess) -> None:
    with emptied.connect() as sender:
        sender.sendall(raw(opened()))

    assert within(20, lambda: len(stored(emptied.outbox)) == 1)
    assert emptied.ask("GET", "/healthz").content == {"status": "alive"}


@pytest.mark.parametrize("body", [opened(), opened(user={}), b"unreadable"])
def test_what_cannot_be_stored_is_never_answered_200(fragile: RelayProcess, body: bytes) -> None:
    run_sql(fragile.outbox, BREAK)
    broken = fragile.post(body)
    run_sql(fragile.outbox, MEND)
    mended = fragile.post(body)

    assert broken.status == 503
    assert broken.content == {"status": "unavailable", "error": "not stored; send it again"}
    assert int(broken.headers["retry-after"]) > 0
    assert mended.content["status"] in {"accepted", "dead"}
    assert len(stored(fragile.outbox)) == 1


def test_the_process_is_alive_and_ready(emptied: RelayProcess) -> None:
    assert emptied.ask("GET", "/healthz").content == {"status": "alive"}
    assert emptied.ask("GET", "/readyz").content == {"status": "ready"}


def test_relay_is_not_ready_while_the_outbox_takes_no_writes(fragile: RelayProcess) -> None:
    # A forwarder that finds the table missing at its start would be another reason.
    begun = "SELECT 1 FROM throttles"
    started = within(20, lambda: bool(run_sql(fragile.outbox, begun)))
    run_sql(fragile.outbox, "ALTER TABLE status RENAME TO away")

    def takes_no_writes() -> bool:
        answer = fragile.ask("GET", "/readyz")
        reasons = answer.content.get("reasons", [])
        is_only_reason = len(reasons) == 1 and reasons[0].startswith("the outbox takes no writes: ")
        return answer.status == 503 and is_only_reason

    unready = within(20, takes_no_writes)
    run_sql(fragile.outbox, "ALTER TABLE away RENAME TO status")

    assert started
    assert unready
    assert fragile.ask("GET", "/healthz").content == {"status": "alive"}
    assert within(20, lambda: fragile.ask("GET", "/readyz").content == {"status": "ready"})


def test_relay_is_not_ready_while_forwarding_is_on_hold(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        server.judge = lambda _batch: Answer(401)
        relay.post(opened())
        held = within(20, lambda: relay.ask("GET", "/readyz").status == 503)
        reasons = relay.ask("GET", "/readyz").content["reasons"]

    assert held
    assert reasons == ["forwarding is on hold: Segment answered 401 Unauthorized"]


def test_readiness_names_what_waits_for_a_destination_that_is_not_configured(
    tmp_path: Path,
) -> None:
    """Webhooks are stored and forwarded as before, so that relay is ready."""
    waiting = accepted(routes_both_ways(), {"type": "identify", "userId": "42"})
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add(waiting)
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        ready = relay.ask("GET", "/readyz")

    warning = "1 entry waits for vero, which is not configured: set VERO_AUTH_TOKEN"
    assert (ready.status, ready.content) == (200, {"status": "ready", "warnings": [warning]})


def test_webhooks_are_counted_by_outcome(emptied: RelayProcess) -> None:
    emptied.post(opened())
    emptied.ask("POST", "/webhooks/vero/wrong-secret-for-the-tests", opened())
    with closing(HTTPConnection("127.0.0.1", emptied.port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()

    assert 'relay_webhooks_total{outcome="accepted",source="vero",what="Email Opened"}' in page
    assert 'relay_webhooks_total{outcome="refused",source="vero",what="401"}' in page
    assert SECRET not in page


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/healthz", 405), ("GET", "/nowhere", 404)]
)
def test_errors_of_the_other_pages_are_json_too(
    emptied: RelayProcess, method: str, path: str, status: int
) -> None:
    reply = emptied.ask(method, path)

    assert (reply.status, reply.content["status"]) == (status, "refused")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_a_request_to_upgrade_is_ignored(relay: RelayProcess, protocol: str) -> None:
    """Java's client has it in every request over plain HTTP."""
    upgrade = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": protocol,
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
        replies = [ask(connection, "POST", PATH, opened(), upgrade) for _ in range(3)]
    (entry,) = stored(relay.outbox)

    assert [reply.content["status"] for reply in replies] == ["accepted"] + ["duplicate"] * 2
    assert (entry.state, entry.body) == ("pending", opened())


@pytest.mark.parametrize(
    ("path", "headers", "why"),
    [
        (
            "/webhooks/vero",
            {},
            "neither the path nor an Authorization header holds a secret",
        ),
        (
            "/webhooks/vero",
            {"Authorization": f"Bearer {WRONG_SECRET}"},
            "the Authorization header holds no valid secret",
        ),
        (f"/webhooks/vero/{WRONG_SECRET}", {}, "the secret in the path is wrong"),
        *(
            (path, {}, "the secret in the path has an additional slash or blank before or after it")
            for path in (f"{PATH}/", f"{PATH}%20", f"{PATH}%0A", f"/webhooks/vero//{SECRET}")
        ),
    ],
)
def test_the_log_says_why_credentials_were_refused(
    fragile: RelayProcess, path: str, headers: dict[str, str], why: str
) -> None:
    replies = [fragile.ask("POST", path, opened(), headers) for _ in range(5)]

    def refusals() -> list[dict[str, object]]:
        return [line for line in fragile.log() if line["event"] == "webhook.refused"]

    assert {reply.status for reply in replies} == {401}
    assert within(5, lambda: len(refusals()) == 1)
    (line,) = refusals()
    assert (line["level"], line["source"], line["status"]) == ("info", "vero", 401)
    assert line["why"] == why
    assert not [secret for secret in (SECRET, WRONG_SECRET) if secret in str(fragile.log())]


@pytest.mark.parametrize("path", [f"/{PATH}", PATH.replace("/vero", "//vero"), f"/%20{PATH}"])
def test_additional_slashes_and_blanks_before_the_secret_are_ignored(
    relay: RelayProcess, path: str
) -> None:
    assert relay.ask("POST", path, opened()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "size", "status"),
    [
        ("POST", "/webhooks/nobody/and-a-secret", 2, 404),
        *(
            ("POST", path, 2, 404)
            for path in ("/webhook/vero/and-a-secret", "/Webhooks/Vero/and-a-secret", "/vero", "/")
        ),
        ("GET", PATH, 0, 405),
        ("POST", PATH, MAX_BODY_BYTES + 1, 413),
    ],
)
def test_other_refusals_are_logged_too(
    fragile: RelayProcess, method: str, path: str, size: int, status: int
) -> None:
    fragile.ask(method, path, b"x" * size)
    fragile.ask(method, path, b"x" * size)

    def statuses() -> list[int]:
        return [line["status"] for line in fragile.log() if line["event"] == "webhook.refused"]

    assert within(5, lambda: statuses() == [status])
    assert "and-a-secret" not in str(fragile.log())


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_are_those_of_ipv4_and_ipv6() -> None:
    with closing(listen("::", 0)) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=5).close()
        url = base_url(listener)

    assert url == f"http://[::1]:{port}"

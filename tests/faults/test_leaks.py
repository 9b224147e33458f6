"""Nothing private leaves relay but towards Segment, and nobody else speaks in its log."""

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, unquote

import pytest
from psycopg import sql

from tests.faults.fuzz import DOCUMENT
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Message
from tests.harness.postgres import PASSWORD, PostgresServer, database_of
from tests.harness.processes import PATH, SECRET, WRITE_KEY, RelayProcess, within
from tests.harness.stores import PostgresStore, Store, pending

ADDRESS = "canary@example.com"
PRIVATE = ["canary", SECRET, WRITE_KEY, PASSWORD]
FORGED = '{"event":"forged","level":"error","timestamp":"2026-03-01T12:00:00Z"}'
BREAKS = ["\n", "\r\n", "\r", "\x1b[2K\x1b[1A", "\0", "\u2028", "\x85", "\x0b", "\x0c", '"}\n', " "]


def everywhere(text: str, **changed: Any) -> bytes:  # noqa: ANN401 (any JSON)
    """An event with the text wherever there may be text, but for its type and its channel."""
    campaign = {**dict.fromkeys(DOCUMENT["campaign"], text), "channel": "email"}
    user = {"id": text, "email": text, text: text}
    known = {"type": "bounced", "bounced_at": 1_772_366_400, "user": user, "campaign": campaign}
    return json.dumps({**dict.fromkeys([*DOCUMENT, text], text), **known, **changed}).encode()


def repeating(batch: list[Message]) -> Answer:
    """Repeats what it was sent and more that it knows; refuses some of it."""
    body = json.dumps({"key": WRITE_KEY, "secret": SECRET, "batch": batch}).encode()
    refused = any(message["properties"]["email_id"] == "refused" for message in batch)
    return Answer(400 if refused else 200, body=body)


def page(relay: RelayProcess, path: str) -> str:
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


def cut_off(postgres: PostgresServer, url: str) -> None:
    """Let nobody stay in the database, nor come in again."""
    name = database_of(url)
    close = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name))
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {}"
    postgres.administer(close)
    postgres.administer(sql.SQL(end).format(sql.Literal(name)))


def _read(text: str) -> str:
    """The text without its escapes, however often it is escaped."""
    while (plain := unquote(text)) != text:
        text = plain
    return text


@pytest.mark.parametrize("user_id", [42, None, ADDRESS])
def test_an_address_that_is_omitted_does_not_leave_relay(store: Store, user_id: object) -> None:
    places = [
        ADDRESS,
        ADDRESS.upper(),
        f"https://example.com/?to={quote(ADDRESS)}&a=1",
        f"<{ADDRESS}>",
    ]
    bodies = [everywhere(text, user={"id": user_id, "email": ADDRESS}) for text in places]
    with (
        SegmentServer() as segment,
        RelayProcess(
            store, segment.url, RELAY_ANONYMOUS_ID="sha256", RELAY_TRAITS_EMAIL="omit"
        ) as relay,
    ):
        answers = [relay.post(body).content["status"] for body in bodies]
        arrived = within(30, lambda: not pending(store))

    assert {*answers} == {"accepted"}
    assert arrived
    assert len(segment.accepted) == len(bodies)
    assert "canary" not in _read(json.dumps(segment.accepted)).lower()


def test_neither_an_address_nor_a_secret_is_shown_to_anyone(
    store: Store, request: pytest.FixtureRequest
) -> None:
    key = {"Authorization": f"Bearer {SECRET}x", "User-Agent": ADDRESS, "X-Key": WRITE_KEY}
    bodies = [
        everywhere(ADDRESS),
        everywhere(ADDRESS, message_id="refused"),
        everywhere(ADDRESS, bounce_message=ADDRESS * 2_000, message_id="oversized"),
        everywhere(ADDRESS, type=ADDRESS),
        everywhere(ADDRESS, type="converted"),
        everywhere(ADDRESS, user=None, campaign=None),
        everywhere(ADDRESS)[:-1],
        ADDRESS.encode() * 50_000,
        f"{SECRET} {WRITE_KEY} {PASSWORD}".encode(),
    ]
    with (
        SegmentServer() as server,
        RelayProcess(store, server.url, RELAY_LOG_LEVEL="debug") as relay,
    ):
        server.judge = repeating
        texts = [str(relay.post(body, key)) for body in bodies * 2]
        texts += [str(relay.ask("POST", path, b"", key)) for path in (f"{PATH}x", f"/{SECRET}")]
        settled = within(20, lambda: pending(store) == 0)
        server.judge = lambda _: Answer(401, body=everywhere(ADDRESS))
        relay.post(everywhere(ADDRESS, message_id="held"))
        held = within(20, lambda: "on hold" in page(relay, "/readyz"))
        for table in ("entries", "status"):
            store.run_sql(f"ALTER TABLE {table} RENAME TO {table}_away")
        texts += [str(relay.post(body, key)) for body in bodies]
        if isinstance(store, PostgresStore):
            cut_off(request.getfixturevalue("postgres"), store.url)
            texts.append(str(relay.post(bodies[0], key)))
        away = within(20, lambda: "no writes" in page(relay, "/readyz"))
        texts += [page(relay, "/readyz"), page(relay, "/metrics"), json.dumps(relay.log())]
        events = {line["event"] for line in relay.log()}

    assert settled
    assert held
    assert away
    assert {"webhook.accepted", "webhook.dead", "webhook.not_stored", "forward.held"} <= events
    assert {"forward.sent", "forward.rejected", "forward.dead_letter"} <= events
    assert not [text for text in texts for private in PRIVATE if private in text]


def test_nobody_else_writes_a_line_of_the_log(store: Store) -> None:
    texts = [f"{text}{FORGED}{text}" for text in BREAKS]
    with (
        SegmentServer() as server,
        RelayProcess(store, server.url, RELAY_LOG_LEVEL="debug") as relay,
    ):
        server.judge = lambda batch: Answer(400 if len(batch) > 1 else 200, body=FORGED.encode())
        for number, text in enumerate(texts):
            relay.post(everywhere(text, message_id=f"{text}{number}"))
            relay.post(everywhere(text, type=text))
            relay.post(everywhere(text, user=None, campaign=None))
            relay.post(text.encode())
            for name in ("Host", "User-Agent", "Authorization", "Content-Type", text):
                for path in (PATH, f"{PATH}{quote(text)}?{quote(text)}", f"/{quote(text)}"):
                    head = f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n{name}: {text}\r\n\r\n"
                    with relay.connect() as sender:
                        sender.sendall(head.encode() + b"{}")
                        sender.recv(1)
        forwarded = within(20, lambda: pending(store) == 0)
    (log,) = [path.read_bytes().decode() for path in store.logs.glob("relay.*.log")]
    lines = log.removesuffix("\n").split("\n")

    assert forwarded
    assert len(server.accepted) == len(texts)
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert {json.loads(line)["level"] for line in lines} == {"debug", "info", "warning"}
    assert "forged" not in log

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.faults.fuzz import DOCUMENT
from tests.harness.fakes import SegmentServer
from tests.harness.processes import PATH, SECRET, RelayProcess, Reply, ask, within
from tests.harness.stores import PostgresStore, SqliteStore, Store, pending
from tests.harness.webhooks import opened

WRONG = "/webhooks/vero/a-guess-at-the-secret"
TOO_LARGE = b" " * (2**20 + 1)
CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.fixture(scope="module", params=["SQLite", "PostgreSQL"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    directory = tmp_path_factory.mktemp("bad-input")
    if request.param == "SQLite":
        yield SqliteStore(directory / "relay.db")
        return
    postgres = request.getfixturevalue("postgres")
    url = postgres.create_database()
    yield PostgresStore(url, directory)
    postgres.drop_database(url)


@pytest.fixture(scope="module")
def segment() -> Iterator[SegmentServer]:
    with SegmentServer() as server:
        yield server


@pytest.fixture(scope="module")
def relay(store: Store, segment: SegmentServer) -> Iterator[RelayProcess]:
    with RelayProcess(store, segment.url, RELAY_LOG_LEVEL="debug") as relay:
        yield relay
        relay.end()


def counts(relay: RelayProcess) -> Counter[tuple[str, ...]]:
    """Return the number of webhooks by outcome, source and what they were, as in /metrics."""
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    line = r'relay_webhooks_total{outcome="(.*)",source="(.*)",what="(.*)"} (.*)\n'
    return Counter({tuple(labels): int(float(n)) for *labels, n in re.findall(line, page)})


def kept(store: Store, body: bytes) -> list[str]:
    """Return for each entry with this body why it is a dead letter, or that it is none."""
    return [entry.reason or "event" for entry in store.stored() if entry.body == body]


def assert_forwarded(relay: RelayProcess, segment: SegmentServer, accepted: set[str]) -> None:
    """Check that everything accepted has arrived, except what is too large for Segment."""
    assert within(60, lambda: pending(relay.store) == 0)
    arrived = {message["messageId"] for message in segment.accepted}
    oversized = {e.message_id for e in relay.store.stored() if e.reason == "oversized"}

    assert accepted
    assert accepted <= arrived | oversized


@dataclass(frozen=True)
class Row:
    """A row of the table of answers in docs/operate.md.

    Attributes:
        counted: outcome, source and what.
        kept: what became of it in the outbox.
        copies: how often it is posted; the last one counts.
    """

    body: bytes
    status: int
    content: Mapping[str, str]
    counted: tuple[str, str, str]
    kept: list[str] = field(default_factory=list)
    method: str = "POST"
    path: str = PATH
    headers: Mapping[str, str] = field(default_factory=dict)
    copies: int = 1


def refused(status: int, body: bytes, source: str = "vero", **how: Any) -> Row:  # noqa: ANN401 (of Row)
    return Row(body, status, {"status": "refused"}, ("refused", source, str(status)), **how)


def dead(status: int, body: bytes, reason: str, copies: int = 1) -> Row:
    content = {"status": "dead", "reason": reason}
    return Row(body, status, content, ("dead", "vero", reason), [reason], copies=copies)


EVENT = "Email Opened"
OVER = b"100001\r\n" + TOO_LARGE + b"\r\n0\r\n\r\n"
ROWS = {
    "unknown source": refused(404, opened("r1"), "unknown", path=f"/webhooks/nobody/{SECRET}"),
    "wrong secret": refused(401, opened("r2"), path=WRONG),
    "no secret": refused(401, opened("r3"), path="/webhooks/vero"),
    "not posted": refused(405, opened("r4"), method="PUT"),
    "too large": refused(413, TOO_LARGE),
    "too large, in chunks": refused(413, OVER, headers=CHUNKED),
    "not JSON": dead(400, b"r5", "unreadable", copies=2),
    "not UTF-8": dead(400, b'{"type": "\xe9"}', "unreadable", copies=2),
    "no object": dead(400, b"[]", "unreadable", copies=2),
    "51 levels": dead(400, b'{"a":' * 51 + b"1" + b"}" * 51, "unreadable", copies=2),
    "unknown type": dead(200, opened("r6", type="snoozed"), "unknown_type", copies=2),
    "nobody": dead(200, opened("r7", user={}), "no_recipient", copies=2),
    "new": Row(opened("r8"), 200, {"status": "accepted"}, ("accepted", "vero", EVENT), ["event"]),
    "seen before": Row(
        *(opened("r9"), 200, {"status": "duplicate"}, ("duplicate", "vero", EVENT), ["event"]),
        copies=2,
    ),
    "none of the seven": Row(
        *(opened("r10", type="converted"), 200, {"status": "ignored", "reason": "converted"}),
        ("ignored", "vero", "converted"),
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_webhook_is_answered_counted_and_kept_as_the_table_says(
    relay: RelayProcess, row: Row
) -> None:
    for _ in range(row.copies):
        before = counts(relay)
        reply = relay.ask(row.method, row.path, row.body, row.headers)

    assert reply.status == row.status
    assert row.content.items() <= reply.content.items()
    assert counts(relay) - before == {row.counted: 1}
    assert kept(relay.store, row.body) == row.kept
    assert reply.headers.get("allow") == ("POST" if row.status == 405 else None)


@pytest.mark.parametrize(
    "body", [opened("s1"), opened("s2", user={}), b"s3"], ids=["event", "nobody", "not JSON"]
)
def test_what_the_store_refuses_is_answered_503_with_retry_after(
    relay: RelayProcess, body: bytes
) -> None:
    relay.store.run_sql("ALTER TABLE entries RENAME TO away")
    before = counts(relay)
    broken = relay.post(body)
    counted = counts(relay) - before
    relay.store.run_sql("ALTER TABLE away RENAME TO entries")
    mended = relay.post(body)

    assert (broken.status, broken.content["status"]) == (503, "unavailable")
    assert int(broken.headers["retry-after"]) > 0
    assert counted == {("unavailable", "vero", "outbox"): 1}
    assert mended.content["status"] in {"accepted", "dead"}
    assert len(kept(relay.store, body)) == 1


def deep(*openings: bytes) -> bytes:
    return b"".join(openings) * (100_000 // len(openings))


def among(value: bytes) -> bytes:
    """Return an event with the value in a field that relay does not read."""
    return b'{"type":"opened","user":{"id":1},"more":' + value + b"}"


def read(value: bytes) -> bytes:
    """Return an event with the value in a field that relay reads."""
    return b'{"type":"opened","user":{"id":1},"campaign":{"tags":' + value + b"}}"


MANY_KEYS = b",".join(b'"%d":0' % key for key in range(90_000))
ACCEPTED, UNREADABLE = (200, "accepted"), (400, "unreadable")
BODIES = {
    "100,000 lists": (deep(b"["), UNREADABLE),
    "100,000 objects": (deep(b'{"a":'), UNREADABLE),
    "100,000 of both": (deep(b'{"a":', b"["), UNREADABLE),
    "100,000 of both, closed": (deep(b'[{"a":') + b"0" + deep(b"}]"), UNREADABLE),
    "as many lists as fit": (among(b"[" + b"[]," * 340_000 + b"0]"), ACCEPTED),
    "as many lists as fit, read": (read(b"[" + b"[1]," * 250_000 + b"0]"), ACCEPTED),
    "as many keys as fit": (among(b"{" + MANY_KEYS + b"}"), ACCEPTED),
    "a million keys": (among(b"{" + b'"a":0,' * 1_000_000 + b'"b":0}'), (413, "refused")),
    "a key of a megabyte": (among(b'{"' + b"k" * 1_000_000 + b'":0}'), ACCEPTED),
    "100,000 digits": (among(b"9" * 100_000), UNREADABLE),
    "100,000 decimals": (among(b"0." + b"9" * 100_000), ACCEPTED),
    "as many large numbers as fit, read": (
        read(b"[" + b"9" * 4_300 + b",0" * 500_000 + b"]"),
        ACCEPTED,
    ),
    "1e400": (among(b"1e400"), UNREADABLE),
    "1e308, read": (read(b"1e308"), ACCEPTED),
    "an exponent of 100,000 digits": (among(b"1e" + b"9" * 100_000), UNREADABLE),
    "the last of repeated keys": (b'{"type":"sent",' + opened("b1")[1:], ACCEPTED),
    "60,000 repeated keys": (b"{" + b'"type":"sent",' * 60_000 + opened("b2")[1:], ACCEPTED),
    "byte order mark": (b"\xef\xbb\xbf" + opened("b3"), ACCEPTED),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + opened("b4"), UNREADABLE),
    "UTF-16": (opened("b5").decode().encode("utf-16"), UNREADABLE),
    "UTF-32": (opened("b6").decode().encode("utf-32-be"), UNREADABLE),
    "a lone surrogate": (read(rb'"\ud800"'), ACCEPTED),
    "surrogates the wrong way round": (read(rb'"\udc00\ud800"'), ACCEPTED),
    "a surrogate in UTF-8": (read(b'"\xed\xa0\x80"'), UNREADABLE),
    "a pair of surrogates": (read(rb'"\ud83d\ude00"'), ACCEPTED),
    "nothing but NUL": (bytes(1_000_000), UNREADABLE),
    "two documents": (opened("b7") * 2, UNREADABLE),
}


def outcome(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.content.get("reason") or reply.content["status"]


def test_hostile_bodies_do_no_harm(relay: RelayProcess, segment: SegmentServer) -> None:
    outcomes, unwell, accepted = {}, [], set()
    for number, (name, (body, _)) in enumerate(BODIES.items()):
        reply, well = relay.post(body), relay.post(opened(f"well {number}"))
        outcomes[name] = outcome(reply)
        unwell += [] if outcome(well) == ACCEPTED else [name]
        accepted |= {r.content["message_id"] for r in (reply, well) if outcome(r) == ACCEPTED}

    assert outcomes == {name: expected for name, (_, expected) in BODIES.items()}
    assert not unwell
    assert_forwarded(relay, segment, accepted)


VALUES = [b"null", b"true", b"0", b"-1", b"1.5", b"1e308", b"1e400", b"NaN", b"9" * 400, b"-0.0"]
VALUES += [b'""', b'" "', b'"x"', rb'"\u0000"', rb'"x\u0000y"', rb'"\ud800"', rb'"\u2028"', b"[]"]
VALUES += [b'[" ",null,[[{}]]]', b"{}", b'{"id":{"email":[]},"type":"sent"}', b'"x', b"[" * 60]


def each_replaced(document: Mapping[str, Any], value: object) -> Iterator[dict[str, Any]]:
    """Return the document several times, each with the value in place of another of its own."""
    for key, own in document.items():
        yield {**document, key: value}
        if isinstance(own, dict):
            yield from ({**document, key: inner} for inner in each_replaced(own, value))


def test_any_value_in_any_field_is_answered_and_what_is_accepted_arrives(
    relay: RelayProcess, segment: SegmentServer
) -> None:
    replies = []
    with closing(relay.connection("127.0.0.1", relay.port, timeout=30)) as connection:
        for number, value in enumerate(VALUES):
            for place, changed in enumerate(each_replaced(DOCUMENT, "@")):
                if changed["message_id"] != "@":
                    changed["message_id"] = f"{number} {place}"
                body = json.dumps(changed).encode().replace(b'"@"', value)
                replies.append(ask(connection, "POST", PATH, body))
    accepted = {r.content["message_id"] for r in replies if r.content["status"] == "accepted"}

    assert {reply.status for reply in replies} == {200, 400}
    assert len(accepted) > 100
    assert_forwarded(relay, segment, accepted)
    assert not {entry.reason for entry in relay.store.stored()} & {"poison", "rejected"}

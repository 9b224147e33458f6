import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest

from relay.demo.display import Ledger
from relay.demo.standins import SegmentStandIn
from relay.demo.traffic import Webhook, journeys
from relay.events import Call, Collection, DeadReason, EmailEvent, Ignored, ParseResult, Unusable
from relay.sources.vero import Vero, VeroSettings
from tests.harness.fakes import Clock
from tests.harness.routes import segment_at, track_call

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SEVEN = {"sent", "delivered", "opened", "clicked", "unsubscribed", "bounced", "complained"}


def _webhooks(seed: int = 1) -> list[Webhook]:
    """Return 200 webhooks: enough to hold every journey."""
    webhooks = journeys(Random(seed), clock=NOW.timestamp)  # noqa: S311 (not for secrets)
    return list(islice(webhooks, 200))


def _documents() -> list[dict[str, Any]]:
    return [json.loads(webhook.body) for webhook in _webhooks() if webhook.body.endswith(b"}")]


def _read(body: bytes) -> ParseResult:
    return Vero(VeroSettings()).parse(body, NOW)


def _message(body: bytes, message_id: str = "vero-1") -> dict[str, Any]:
    event = _read(body)
    assert isinstance(event, EmailEvent)
    return track_call(event, segment_at(), message_id=message_id)


def test_the_same_seed_gives_the_same_webhooks() -> None:
    assert _webhooks(seed=7) == _webhooks(seed=7)
    assert _webhooks(seed=7) != _webhooks(seed=8)


QUIRKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "id as a number": lambda d: type(d["user"].get("id")) is int,
    "id as text": lambda d: type(d["user"].get("id")) is str and d["user"]["id"].isdigit(),
    "id is the address": lambda d: "@" in str(d["user"].get("id")),
    "no id": lambda d: "id" not in d["user"],
    "blank id": lambda d: d["user"].get("id") == " ",
    "no address": lambda d: d["user"].get("id") and d["user"]["email"] is None,
    "address in the campaign only": lambda d: (
        not any(d["user"].values()) and "sent_to" in d["campaign"]
    ),
    "padded": lambda d: (d["user"]["email"] or "").startswith(" "),
    "no message_id": lambda d: d.get("type") == "sent" and "message_id" not in d,
    "unsubscribed under other names": lambda d: (
        "campaign_title" in d.get("campaign", {})
        and "message_id" in d["campaign"]
        and "message_id" not in d
    ),
    "unsubscribed alone": lambda d: d.get("type") == "unsubscribed" and "campaign" not in d,
    "bounce_code as a number": lambda d: type(d.get("bounce_code")) is int,
    "bounce_code as text": lambda d: type(d.get("bounce_code")) is str,
    "time in seconds": lambda d: d.get("sent_at") == int(NOW.timestamp()),
    "time as text": lambda d: type(d.get("sent_at")) is str,
    "time in milliseconds": lambda d: d.get("sent_at") == int(NOW.timestamp()) * 1000,
    "no time": lambda d: d.get("type") == "sent" and "sent_at" not in d,
    "action for type": lambda d: "type" not in d and d["action"] == "user_updated",
    "sender_ip": lambda d: "sender_ip" in d,
    "campaign id as text": lambda d: type(d.get("campaign", {}).get("id")) is str,
    "tags": lambda d: "tags" in d.get("campaign", {}),
    "event of the customer's own": lambda d: "data" in d.get("event", {}),
}


@pytest.mark.parametrize("quirk", QUIRKS)
def test_the_traffic_has_every_quirk_of_vero(quirk: str) -> None:
    assert any(map(QUIRKS[quirk], _documents()))


def test_the_traffic_has_every_kind_of_result() -> None:
    results = [_read(webhook.body) for webhook in _webhooks()]
    events = [result for result in results if isinstance(result, EmailEvent)]
    keys = Counter(event.dedupe_key for event in events)

    assert {event.collection for event in events} == set(Collection)
    assert keys.pop(None)
    assert max(keys.values()) > 1
    assert {result.reason for result in results if isinstance(result, Ignored)} == {
        *("converted", "failed", "resubscribed", "user_created", "user_updated"),
        *("other_channel", "test_sample"),
    }
    assert {result.reason for result in results if isinstance(result, Unusable)} == {
        *(DeadReason.UNREADABLE, DeadReason.UNKNOWN_TYPE, DeadReason.NO_RECIPIENT),
    }


def test_each_webhook_becomes_an_event_exactly_if_it_should() -> None:
    """The expected result is worked out from the webhook alone, not from the generator."""
    for document in _documents():
        user, campaign = document["user"], document.get("campaign", {})
        user_id = str(user.get("id") or "").strip()
        email = (user["email"] or campaign.get("sent_to") or "").strip()
        expected = (
            document.get("type") in SEVEN
            and campaign.get("channel") != "push"
            and email != "steve@getvero.com"
            and bool(user_id or email)
        )

        result = _read(json.dumps(document).encode())

        assert isinstance(result, EmailEvent) == expected
        if isinstance(result, EmailEvent):
            assert (result.user_id or "", result.email or "") == (user_id, email)
            assert result.occurred_at == NOW


SENT = Webhook(
    "sent",
    "ida@example.com",
    b'{"type": "sent", "user": {"id": 7, "email": "ida@example.com"}, "message_id": "a1@m"}',
)


def _answering(**answer: str) -> Callable[[bytes], dict[str, str]]:
    return lambda _body: answer


class Screen:
    """The lines that a ledger has written, without colours, and its clock."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.clock = Clock()
        self.ledger = Ledger(write=self._write, clock=self.clock.monotonic)

    def _write(self, line: str) -> None:
        self.lines.append(click.unstyle(line))


def test_an_accepted_webhook_is_shown_when_it_arrives_at_segment() -> None:
    screen = Screen()

    screen.ledger.send(SENT, _answering(status="accepted", message_id="vero-1"))
    before = list(screen.lines)
    screen.clock.sleep(0.25)
    screen.ledger.arrived([_message(SENT.body)], after_outage=False)

    assert before == []
    assert [" ".join(line.split()[1:]) for line in screen.lines] == [
        "sent ida@example.com accepted Email Sent userId 7 a1 0.25 s"
    ]


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"status": "duplicate", "message_id": "vero-1"}, "duplicate"),
        ({"status": "ignored", "reason": "converted"}, "ignored: converted"),
        ({"status": "dead", "reason": "unreadable", "error": "no"}, "dead: unreadable (no)"),
        ({"status": "unavailable", "error": "not stored"}, "unavailable (not stored)"),
    ],
)
def test_a_webhook_that_is_not_accepted_is_shown_at_once(
    answer: dict[str, str], shown: str
) -> None:
    screen = Screen()

    screen.ledger.send(SENT, _answering(**answer))

    assert re.split(r" {2,}", screen.lines[0])[-1].endswith(shown)


def test_a_webhook_posted_by_the_user_is_shown_as_yours() -> None:
    screen = Screen()
    body = b'{"type": "complained", "user": {"email": "me@example.com"}}'

    screen.ledger.arrived([_message(body)], after_outage=False)

    assert screen.lines[0].split()[1:3] == ["complained", "me@example.com"]
    assert "Email Marked as Spam anonymousId me@exam" in screen.lines[0]
    assert screen.lines[0].endswith("yours")


def test_no_line_is_wider_than_110_columns() -> None:
    screen = Screen()
    webhooks = [*_webhooks(), Webhook("sent", "x" * 200, SENT.body.replace(b"ida", b"i" * 200))]

    for number, webhook in enumerate(webhooks):
        result, message_id = _read(webhook.body), f"vero-{number}"
        if isinstance(result, EmailEvent):
            screen.ledger.send(webhook, _answering(status="accepted", message_id=message_id))
            screen.clock.sleep(999)
            screen.ledger.arrived([_message(webhook.body, message_id)], after_outage=False)
        elif not isinstance(result, Call):
            error = result.detail if isinstance(result, Unusable) else "e" * 200
            answer = _answering(status="dead", reason=result.reason, error=error)
            screen.ledger.send(webhook, answer)

    assert len(screen.lines) == len(webhooks)
    assert max(map(len, screen.lines)) <= 110


def test_control_characters_are_not_printed() -> None:
    screen = Screen()
    body = json.dumps({"type": "sent", "user": {"id": "7\r\x078"}}).encode()

    screen.ledger.arrived([_message(body)], after_outage=False)

    assert screen.lines[0].isprintable()


def test_the_summary_counts_webhooks_by_result_and_deliveries() -> None:
    screen = Screen()
    for status in ("accepted", "accepted", "duplicate", "ignored", "ignored", "ignored", "dead"):
        screen.ledger.send(SENT, _answering(status=status, message_id="vero-1"))
    screen.ledger.arrived([_message(SENT.body), _message(SENT.body, "own")], after_outage=False)

    summary = screen.ledger.summary(waiting=1)

    assert summary.startswith(
        "8 webhooks sent: 3 accepted, 1 duplicate, 3 ignored, 1 dead."
        " Delivered to Segment: 2; still waiting: 1."
    )


def _post(stand_in: SegmentStandIn, body: bytes) -> int:
    batch = gzip.compress(json.dumps({"batch": [_message(body)]}).encode())
    with closing(HTTPConnection(stand_in.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("POST", "/v1/batch", batch, {"Content-Encoding": "gzip"})
        return connection.getresponse().status


def test_an_event_refused_while_the_stand_in_is_down_arrives_afterwards() -> None:
    screen = Screen()

    with SegmentStandIn(screen.ledger).running() as stand_in:
        stand_in.down = True
        refused = _post(stand_in, SENT.body)
        stand_in.down = False
        accepted = [_post(stand_in, SENT.body), _post(stand_in, SENT.body)]

    assert (refused, accepted) == (503, [200, 200])
    assert "Segment is back: 1 waiting events arrived" in screen.lines[0]
    assert [("Email Sent" in line) for line in screen.lines] == [False, True, True]


@contextmanager
def _demo(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "relay", "demo", *arguments]
    # The environment names a proxy that does not answer: the demo must not use it.
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HTTP_PROXY": "http://[::1]:9"}
    with subprocess.Popen(  # noqa: S603 (relay itself)
        command,
        cwd=Path(__file__).parents[2],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_the_demo_shows_delivered_events_and_ends_cleanly(tmp_path: Path) -> None:
    with _demo(tmp_path, "--port", "0") as process:
        assert process.stdout
        shown = next((line for line in process.stdout if " accepted Email " in line), "")
        called = next((line for line in process.stdout if "() " in line), "")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate()

    assert re.search(r"accepted Email \w.* userId \d+ .*\d\.\d\d s$", shown)
    assert re.search(r"\w+\(\) +\S+ +accepted \w+/\w+ +id ", called)
    assert "webhooks sent: " in rest
    assert (process.returncode, errors) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_each_link_of_the_demo_signs_in_once_and_a_new_one_follows(tmp_path: Path) -> None:
    link = re.compile(r"(http://127\.0\.0\.1:\d+)(/console/sign-in)#([\w-]{43})$")
    with _demo(tmp_path, "--port", "0") as process:
        assert process.stdout
        found = (link.search(line.rstrip()) for line in process.stdout)
        first = next(match for match in found if match)
        with closing(HTTPConnection(first[1].removeprefix("http://"), timeout=30)) as connection:
            connection.request("POST", first[2], f"link={first[3]}")
            response = connection.getresponse()
        second = next(match for match in found if match)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()

    assert (response.status, errors) == (303, "")
    assert second[3] != first[3]


def test_a_port_that_is_taken_is_reported_in_one_line(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        _demo(tmp_path, "--port", str(taken.getsockname()[1])) as process,
    ):
        shown, errors = process.communicate()

    assert (process.returncode, shown) == (1, "")
    assert re.fullmatch(
        r"Error: cannot listen on 127\.0\.0\.1, port \d+: Address.*--port.*\n", errors
    )
    assert list(tmp_path.iterdir()) == []

"""A source and a destination that relay has never heard of, in two modules of the tests.

Nothing between the door and the wire may know Vero or Segment by name: with these two modules on
its path, the real relay carries the toy's events, beside Vero's to Segment.
"""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import PYTHON, ExecutedRelay, RelayProcess, within
from tests.harness.stores import Store

pytestmark = pytest.mark.slow

TOYS = str(Path(__file__).parent / "toys")
SECRET = "the-secret-of-the-toy"
OPENED = b'{"type":"opened","opened_at":1767225600,"message_id":"mail-%d","user":{"id":%d}}'


class ToyServer:
    """What the toy destination sends to.

    Attributes:
        status: of each answer from now on.
        taken: what was answered 200.
    """

    def __init__(self) -> None:
        self.status = 200
        self.taken: list[list[str]] = []
        toys = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                batch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if toys.status == 200:
                    toys.taken += batch
                self.send_response(toys.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def toys() -> Iterator[ToyServer]:
    toys = ToyServer()
    yield toys
    toys.close()


@pytest.fixture
def relay(store: Store, server: SegmentServer, toys: ToyServer) -> Iterator[RelayProcess]:
    with ExecutedRelay(
        store, server.url, PYTHONPATH=TOYS, RELAY_TOY_SECRET=SECRET, RELAY_TOY_URL=toys.url
    ) as relay:
        yield relay


def play(relay: RelayProcess, *numbers: int) -> list[Any]:
    """Post an event of Vero's and one of the toy's for each number; what they were answered."""
    answers = []
    for number in numbers:
        toy = relay.ask("POST", f"/webhooks/toy/{SECRET}", b"opened mail-%d to ann" % number)
        answers += [relay.post(OPENED % (number, number)).content["status"], toy.content["status"]]
    return answers


def reasons(relay: RelayProcess) -> list[str]:
    """Why relay is not ready."""
    reasons: list[str] = relay.ask("GET", "/readyz").content.get("reasons", [])
    return reasons


def series(relay: RelayProcess, name: str) -> dict[str, float]:
    """The values of a metric by destination."""
    with urlopen(f"http://127.0.0.1:{relay.port}/metrics", timeout=30) as page:
        text = page.read().decode()
    found = re.findall(rf'^{name}{{destination="(\w+)"}} (\S+)$', text, re.MULTILINE)
    return {destination: float(value) for destination, value in found}


def test_one_destination_delivers_while_the_other_is_on_hold(
    relay: RelayProcess, server: SegmentServer, toys: ToyServer
) -> None:
    server.judge = lambda _batch: Answer(401)
    answers = play(relay, 1, 2, 3, 4)
    toys_delivered = within(60, lambda: len(toys.taken) == 4)
    held = within(60, lambda: len(reasons(relay)) == 1)
    why = reasons(relay)
    holds, waiting = series(relay, "relay_hold"), series(relay, "relay_backlog_entries")

    assert answers == ["accepted"] * 8
    assert toys_delivered
    assert sorted(toys.taken) == [
        [f"toy-opened-mail-{n}-ann", "Email Opened", "ann"] for n in (1, 2, 3, 4)
    ]
    assert held
    assert why == ["forwarding is on hold: Segment answered 401 Unauthorized"]
    assert holds == {"segment": 1, "toy": 0}
    assert waiting == {"segment": 4, "toy": 0}


def test_the_other_destination_can_be_the_one_on_hold(
    relay: RelayProcess, server: SegmentServer, toys: ToyServer
) -> None:
    toys.status = 401
    play(relay, 1, 2)
    segment_delivered = within(60, lambda: len(server.accepted) == 2)
    held = within(60, lambda: len(reasons(relay)) == 1)
    why = reasons(relay)
    waiting = series(relay, "relay_backlog_entries")

    assert segment_delivered
    assert held
    assert why == ["forwarding is on hold: The toy answered 401 Unauthorized"]
    assert waiting == {"segment": 0, "toy": 2}


def test_a_toy_that_is_down_gets_all_once_it_is_back(
    relay: RelayProcess, server: SegmentServer, toys: ToyServer
) -> None:
    toys.status = 503
    play(relay, *range(10))
    segment_delivered = within(60, lambda: len(server.accepted) == 10)
    before = len(toys.taken)
    toys.status = 200
    delivered = within(60, lambda: len(toys.taken) == 10)

    assert segment_delivered
    assert before == 0
    assert delivered
    assert within(20, lambda: reasons(relay) == [])


def test_the_commands_know_the_toy(relay: RelayProcess, store: Store, toys: ToyServer) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "SEGMENT_WRITE_KEY": "a-write-key",
        "RELAY_OUTBOX_URL": store.url,
        "RELAY_TOY_URL": toys.url,
        "PYTHONPATH": TOYS,
    }
    play(relay, 1)
    relay.ask("POST", f"/webhooks/toy/{SECRET}", b"unreadable")
    delivered = within(60, lambda: len(toys.taken) == 1)

    def run(*arguments: str) -> str:
        ended = subprocess.run(  # noqa: S603 (its own Python and its own arguments)
            [*PYTHON, *arguments], env=environ, capture_output=True, text=True, check=True
        )
        return ended.stdout

    listed = run("events", "--destination", "toy", "--json")
    events = [json.loads(line) for line in listed.splitlines()]
    settings = run("settings")

    assert delivered
    assert {event["destination"] for event in events} == {"toy"}
    assert {event["state"] for event in events} == {"delivered", "dead"}
    assert "`RELAY_TOY_URL`" in settings

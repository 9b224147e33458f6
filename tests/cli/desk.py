"""A desk: a running relay on which tests run the operator's commands."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from relay.outbox import open_outbox
from relay.outbox.protocol import Outbox
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.preloaded import ForkedRelay
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, run, within
from tests.harness.stores import Store, pending

CANARY = "canary"
"""A part of every address here, and of nothing else: no output may show it."""


def address(name: str) -> str:
    """Return the address of the recipient."""
    return f"{CANARY}-{name}@example.com"


def hashed(name: str) -> str:
    """Return the SHA-256 of the recipient's address."""
    return sha256(address(name).encode()).hexdigest()


def webhook(name: str, number: int = 0, *, kind: str = "opened", **fields: object) -> bytes:
    """Return an email event of the recipient; each number gives another event."""
    document = {
        "type": kind,
        f"{kind}_at": 1_767_225_600 + number,
        "message_id": f"mail-{name}-{number}",
        "user": {"id": f"user-{name}", "email": address(name)},
        **fields,
    }
    return json.dumps(document).encode()


@dataclass
class Desk:
    """A running relay, its store and its Segment.

    Attributes:
        store: where the relay keeps its outbox.
        refused: names of campaigns whose messages Segment answers with 400.
        held: names of campaigns whose messages Segment leaves without an answer.
    """

    store: Store
    relay: RelayProcess
    segment: SegmentServer
    refused: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.segment.judge = self._judge
        self._asked = threading.Event()
        self._released = threading.Event()

    @contextmanager
    def posting(self, body: bytes, campaign: str) -> Iterator[str]:
        """Keep the webhook of the campaign unanswered by Segment; yield its `messageId`."""
        self.held.add(campaign)
        (message_id,) = self.post(body)
        assert self._asked.wait(20)
        try:
            yield message_id
        finally:
            self.held.clear()
            self._released.set()
            self.settle()
            self._released.clear()
            self._asked.clear()

    def _judge(self, batch: list[dict[str, Any]]) -> Answer:
        campaigns = {message["properties"].get("campaign_name") for message in batch}
        if campaigns & self.held:
            self._asked.set()
            self._released.wait(10)
        return Answer(400 if campaigns & self.refused else 200)

    def post(self, *bodies: bytes) -> list[str]:
        """Post the webhooks; return their `messageId`s."""
        replies = [self.relay.post(body) for body in bodies]
        assert {reply.content["status"] for reply in replies} == {"accepted"}
        return [reply.content["message_id"] for reply in replies]

    def delivered(self, *bodies: bytes) -> list[str]:
        """Post the webhooks and wait until they are forwarded; return their `messageId`s."""
        ids = self.post(*bodies)
        self.settle()
        return ids

    def settle(self) -> None:
        """Wait until nothing is pending."""
        assert within(20, lambda: pending(self.store) == 0)

    def arrivals(self, name: str) -> list[dict[str, Any]]:
        """Return the messages about the recipient that Segment has accepted."""
        return [m for m in self.segment.accepted if m["userId"] == f"user-{name}"]

    def states(self, name: str) -> list[tuple[str, str]]:
        """Return the `messageId` and the state of each of the recipient's entries."""
        entries = (
            entry for entry in self.store.stored() if f'"user-{name}"'.encode() in entry.body
        )
        return [(entry.message_id, entry.state) for entry in entries]

    def run(self, *arguments: str, code: int = 0, **environ: str) -> str:
        """Run a command and return its output. Assert that it holds no address without --reveal."""
        done = run(*arguments, **self.environ(**environ))
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output
        assert "--reveal" in arguments or CANARY not in output
        return output

    def run_json(self, *arguments: str, **environ: str) -> list[dict[str, Any]]:
        """Run a command and return the JSON documents that it prints."""
        return [json.loads(line) for line in self.run(*arguments, code=0, **environ).splitlines()]

    def start(
        self,
        *arguments: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        **environ: str,
    ) -> "subprocess.Popen[bytes]":
        """Start a command in its own process group."""
        return subprocess.Popen(  # noqa: S603 (its own Python and its own arguments)
            [sys.executable, "-m", "relay", *arguments],
            env={"PATH": os.environ["PATH"], **self.environ(**environ)},
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def fork(self, *arguments: str) -> ForkedRelay:
        """Start a command whose output nobody reads."""
        with Path(os.devnull).open("wb") as nowhere:
            return ForkedRelay(arguments, self.environ(), stdout=nowhere, stderr=nowhere)

    def environ(self, **changed: str) -> dict[str, str]:
        """Return the relay's environment with these changes."""
        return {
            "SEGMENT_WRITE_KEY": WRITE_KEY,
            "SEGMENT_HOST": self.segment.url,
            "RELAY_VERO_SECRET": SECRET,
            "RELAY_OUTBOX_URL": self.store.url,
            "RELAY_LOG_LEVEL": "error",
            **changed,
        }

    def file(self, lines: Iterable[bytes], *, suffix: str = ".jsonl") -> Path:
        """Write the lines to a new file; return its path."""
        path = self.store.logs / f"{time.monotonic_ns()}{suffix}"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def outbox(self) -> Outbox:
        """Open the relay's outbox a second time."""
        return open_outbox(self.store.url)


def kill_once(process: ForkedRelay, condition: Callable[[], bool]) -> None:
    """Kill the process as soon as the condition is true, before it ends by itself.

    The process runs for 4 ms at a time and is stopped while the condition is checked.
    """
    try:
        deadline = time.monotonic() + 60
        while _runs_for_a_moment(process) and not condition():
            assert time.monotonic() < deadline
        assert process.poll() is None
    finally:
        process.kill()  # a stopped process would be awaited for ever
        process.wait()


def _runs_for_a_moment(process: ForkedRelay) -> bool:
    process.send_signal(signal.SIGCONT)
    time.sleep(0.004)
    process.send_signal(signal.SIGSTOP)
    return process.poll() is None

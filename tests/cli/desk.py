"""The operator's commands, tried on a running relay as an operator would."""

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
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, Store, pending, run, within

CANARY = "canary"
"""In the address of everybody here, and nowhere else."""


def address(name: str) -> str:
    """Of the recipient of that name."""
    return f"{CANARY}-{name}@example.com"


def hashed(name: str) -> str:
    """The SHA-256 of the recipient's address."""
    return sha256(address(name).encode()).hexdigest()


def webhook(name: str, number: int = 0, *, kind: str = "opened", **fields: object) -> bytes:
    """An email event of the recipient of that name; each number gives another one."""
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
    """An operator's.

    Attributes:
        store: of the relay's outbox.
        refused: names of campaigns, the messages of which Segment refuses.
        held: names of campaigns, the messages of which it does not answer yet.
    """

    store: Store
    relay: RelayProcess
    segment: SegmentServer
    refused: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.segment.judge = self._judge
        self._holding = threading.Event()
        self._free = threading.Event()

    @contextmanager
    def posting(self, body: bytes, campaign: str) -> Iterator[str]:
        """Meanwhile the webhook, which is of the campaign, is being posted; its `messageId`."""
        self.held.add(campaign)
        (message_id,) = self.post(body)
        assert self._holding.wait(20)
        try:
            yield message_id
        finally:
            self.held.clear()
            self._free.set()
            self.settle()
            self._free.clear()
            self._holding.clear()

    def _judge(self, batch: list[dict[str, Any]]) -> Answer:
        campaigns = {message["properties"].get("campaign_name") for message in batch}
        if campaigns & self.held:
            self._holding.set()
            self._free.wait(10)
        return Answer(400 if campaigns & self.refused else 200)

    def post(self, *bodies: bytes) -> list[str]:
        """Have them received; their `messageId`s."""
        replies = [self.relay.post(body) for body in bodies]
        assert {reply.content["status"] for reply in replies} == {"accepted"}
        return [reply.content["message_id"] for reply in replies]

    def delivered(self, *bodies: bytes) -> list[str]:
        """Have them received and forwarded; their `messageId`s."""
        ids = self.post(*bodies)
        self.settle()
        return ids

    def settle(self) -> None:
        """Wait until nothing is pending."""
        assert within(20, lambda: pending(self.store) == 0)

    def arrivals(self, name: str) -> list[dict[str, Any]]:
        """The messages about the recipient of that name that Segment has accepted."""
        return [m for m in self.segment.accepted if m["userId"] == f"user-{name}"]

    def states(self, name: str) -> list[tuple[str, str]]:
        """The `messageId` and the state of each of their entries."""
        of_them = (
            entry for entry in self.store.stored() if f'"user-{name}"'.encode() in entry.body
        )
        return [(entry.message_id, entry.state) for entry in of_them]

    def run(self, *arguments: str, code: int = 0, **environ: str) -> str:
        """What a command prints, and fails with: no address, unless that is asked for."""
        done = run(*arguments, **self.environ(**environ))
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        assert "Traceback" not in output
        assert "--reveal" in arguments or CANARY not in output
        return output

    def told(self, *arguments: str, **environ: str) -> list[dict[str, Any]]:
        """What a command prints as JSON."""
        return [json.loads(line) for line in self.run(*arguments, code=0, **environ).splitlines()]

    def start(
        self,
        *arguments: str,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.PIPE,
        **environ: str,
    ) -> "subprocess.Popen[bytes]":
        """A command under way, in a group of processes of its own."""
        return subprocess.Popen(  # noqa: S603 (its own Python and its own arguments)
            [sys.executable, "-m", "relay", *arguments],
            env={"PATH": os.environ["PATH"], **self.environ(**environ)},
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def environ(self, **changed: str) -> dict[str, str]:
        """The environment that the relay has, changed so."""
        return {
            "SEGMENT_WRITE_KEY": WRITE_KEY,
            "SEGMENT_HOST": self.segment.url,
            "RELAY_VERO_SECRET": SECRET,
            "RELAY_OUTBOX_URL": self.store.url,
            "RELAY_LOG_LEVEL": "error",
            **changed,
        }

    def file(self, lines: Iterable[bytes], *, suffix: str = ".jsonl") -> Path:
        """A new file with the lines."""
        path = self.store.logs / f"{time.monotonic_ns()}{suffix}"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def outbox(self) -> Outbox:
        """The relay's outbox, opened once more."""
        return open_outbox(self.store.url)


def kill_once(process: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    """End it at once when the condition is true, long before it ends by itself.

    It runs for a moment at a time, and stands still while the condition is looked at.
    """
    with process:
        try:
            deadline = time.monotonic() + 60
            while _one_moment(process) and not condition():
                assert time.monotonic() < deadline
            assert process.poll() is None
        finally:
            process.kill()  # one that stands still would be awaited for ever


def _one_moment(process: "subprocess.Popen[bytes]") -> bool:
    process.send_signal(signal.SIGCONT)
    time.sleep(0.004)
    process.send_signal(signal.SIGSTOP)
    return process.poll() is None

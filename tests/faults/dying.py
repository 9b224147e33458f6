"""A forwarder that is killed at one step of its work: `python -m tests.faults.dying STEP URL HOST`.

It is the real one, on the real outbox, but for the kill.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from random import Random
from typing import Any

from relay.destinations.segment import Segment
from relay.forwarder.forwarder import Forwarder
from relay.outbox import open_outbox
from relay.outbox.entries import Entry
from relay.outbox.protocol import Outbox
from relay.sources.vero import Vero, VeroSettings
from tests.harness.processes import WRITE_KEY

STEPS = ("claimed", "posting", "posted", "answered", "settling", "settled")


def die() -> None:
    """End as a power cut would: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class DyingOutbox:
    """The outbox, around whose claims and deliveries the process may die."""

    def __init__(self, step: str, outbox: Outbox) -> None:
        self._step = step
        self._outbox = outbox

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever it has)
        return getattr(self._outbox, name)

    def claim(self, limit: int, *, lease: timedelta) -> list[Entry]:
        entries: list[Entry] = self._outbox.claim("segment", limit, lease=lease)
        if entries and self._step == "claimed":
            die()
        return entries

    def ack(self, entries: Sequence[Entry]) -> None:
        if self._step == "answered":
            die()
        if self._step == "settling":
            threading.Timer(Random().uniform(0, 0.002), die).start()  # noqa: S311 (no secret)
        self._outbox.ack(entries)
        die()


class DyingSegment(Segment):
    """Segment, which the process may never reach."""

    step = ""

    def post(self, batch: Sequence[bytes], *, retry_count: int = 0) -> None:
        if self.step == "posting":
            die()
        super().post(batch, retry_count=retry_count)


def main(step: str, url: str, host: str) -> None:
    segment = DyingSegment(WRITE_KEY, host)
    segment.step = step
    outbox: Any = DyingOutbox(step, open_outbox(url, allow_ephemeral=True, create=True))
    Forwarder(outbox, segment, [Vero(VeroSettings())]).start()
    threading.Event().wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])

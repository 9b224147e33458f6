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

from relay.destinations.segment import Segment, SegmentSettings
from relay.forwarder.forwarder import Forwarder
from relay.outbox import open_outbox
from relay.outbox.entries import Entry
from relay.outbox.protocol import Outbox
from tests.harness.processes import WRITE_KEY
from tests.harness.routes import routes

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

    def claim(
        self, destination: str, limit: int, *, lease: timedelta, ordered: bool = False
    ) -> list[Entry]:
        entries: list[Entry] = self._outbox.claim(destination, limit, lease=lease, ordered=ordered)
        if entries and self._step == "claimed":
            die()
        return entries

    def ack(self, entries: Sequence[Entry], note: str | None = None) -> None:
        if self._step == "answered":
            die()
        if self._step == "settling":
            threading.Timer(Random().uniform(0, 0.002), die).start()  # noqa: S311 (no secret)
        self._outbox.ack(entries, note)
        die()


class DyingSegment(Segment):
    """Segment, which the process may never reach."""

    step = ""

    def send(self, batch: Sequence[bytes], *, attempt: int = 1) -> None:
        if self.step == "posting":
            die()
        super().send(batch, attempt=attempt)


def main(step: str, url: str, host: str) -> None:
    variables = {"SEGMENT_WRITE_KEY": WRITE_KEY, "SEGMENT_HOST": host}
    segment = DyingSegment(SegmentSettings.model_validate(variables))
    segment.step = step
    outbox: Any = DyingOutbox(step, open_outbox(url, allow_ephemeral=True, create=True))
    Forwarder(outbox, segment, routes(destination=segment)).start()
    threading.Event().wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])

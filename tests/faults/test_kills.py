import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest

from relay.outbox import open_outbox
from relay.outbox.entries import Arrival
from relay.sources.vero import Vero, VeroSettings
from tests.faults.dying import STEPS
from tests.faults.leases import end_leases
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Ledger, Message, well
from tests.harness.processes import WRITE_KEY, ForwarderProcess, Reply, within
from tests.harness.routes import route, segment_at
from tests.harness.stores import Store, pending

_ROOT = Path(__file__).parents[2]
_EVENTS = 250
_KILLS = 2
"""Of one step: who has been in hand at more of them is tried alone, which is tested elsewhere."""


def accept(store: Store, ledger: Ledger, count: int) -> None:
    """Store webhooks as a receiver does, and note what it answers."""
    vero, segment = Vero(VeroSettings()), segment_at("http://127.0.0.1:1", WRITE_KEY)
    with closing(open_outbox(store.url, allow_ephemeral=True, create=True)) as outbox:
        for _ in range(count):
            webhook = ledger.next()
            arrival = route(vero, segment).accept(webhook.body, datetime.now(UTC))
            if not isinstance(arrival, Arrival) or arrival.fault:
                continue
            (new,) = outbox.add([arrival])
            status = "accepted" if new else "duplicate"
            content = {"status": status, "message_id": arrival.message_id}
            ledger.answered(webhook, Reply(200, {}, content))


def die_forwarding(step: str, store: Store, server: SegmentServer) -> int:
    """Run a forwarder until it is killed at the step; its exit code."""
    command = [sys.executable, "-m", "tests.faults.dying", step, store.url, server.url]
    with subprocess.Popen(  # noqa: S603 (its own Python and its own module)
        command, cwd=_ROOT, env={"PATH": os.environ["PATH"]}
    ) as process:

        def judge(batch: list[Message]) -> Answer:
            if step == "posted":
                process.send_signal(signal.SIGKILL)
            return well(batch)

        server.judge = judge
        return process.wait(60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.slow
def test_a_forwarder_killed_at_any_step_loses_nothing(
    step: str, store: Store, times: Callable[[int, int], int]
) -> None:
    ledger = Ledger(Random(step))  # noqa: S311 (no secret hangs on it)
    rounds = times(1, 10)
    with SegmentServer() as server:
        for _ in range(rounds):
            codes = []
            for _ in range(_KILLS):
                accept(store, ledger, _EVENTS)  # the one before may have settled all there was
                codes.append(die_forwarding(step, store, server))
                end_leases(store)
            server.judge = well
            with ForwarderProcess(store, server.url):
                drained = within(60, lambda: not pending(store))

            assert codes == [-signal.SIGKILL] * _KILLS
            assert drained
    copies = Counter(message["messageId"] for message in server.accepted)
    again = sum(count - 1 for count in copies.values())

    assert not ledger.broken_promises(store, server)
    assert again <= rounds * _KILLS * 4 * 100  # four posts of a hundred, at each kill

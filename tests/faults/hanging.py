"""`relay` with a fault in one place: `python -m tests.faults.hanging FAULT ARGUMENT...`.

It is the real relay, except for the fault and a shorter time after which something counts as stuck.
"""

import sys
import time
from typing import Any

import relay.forwarder.runner
import relay.receiver.committer
from relay.cli import main
from relay.outbox.sqlite.store import SqliteOutbox
from relay.receiver.backpressure import Capacity

SECONDS = 2


def hang(*_: object, **__: object) -> Any:  # noqa: ANN401 (it never returns)
    """Never return."""
    time.sleep(100_000)


def fail(*_: object, **__: object) -> Any:  # noqa: ANN401 (it never returns)
    """Fail with an unexpected error."""
    raise KeyError("a fault of relay's own")


def end(*_: object, **__: object) -> Any:  # noqa: ANN401 (it never returns)
    """End the thread."""
    raise SystemExit(1)


def fail_at_first() -> Any:  # noqa: ANN401 (a method)
    """Fail three times, then refuse everything."""
    failures = iter(range(3))

    def exceeded(_limits: Capacity) -> str:
        if next(failures, None) is not None:
            fail()
        return "this is why"

    return exceeded


FAULTS: dict[str, tuple[type, str, Any]] = {
    "claiming hangs": (SqliteOutbox, "claim", hang),
    "claiming fails": (SqliteOutbox, "claim", fail),
    "claiming ends": (SqliteOutbox, "claim", end),
    "committing hangs": (SqliteOutbox, "add", hang),
    "committing ends": (SqliteOutbox, "add", end),
    "closing hangs": (SqliteOutbox, "close", hang),
    "looking fails": (Capacity, "exceeded", fail_at_first()),
}

if __name__ == "__main__":
    place, name, fault = FAULTS[sys.argv[1]]
    setattr(place, name, fault)
    for module in (relay.forwarder.runner, relay.receiver.committer):
        module.__dict__["STUCK_SECONDS"] = SECONDS
    main(sys.argv[2:])

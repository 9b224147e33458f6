"""Keeps how the workers of a forwarder get on."""

import threading
from collections.abc import Callable, Hashable
from typing import Final

from relay.process.heartbeats import Heartbeats

_ALL: Final = "all"  # of the workers together


class Progress:
    """How the workers of a forwarder get on, and whether they are to stop.

    Args:
        sleep: waits for so many seconds; see `Progress.sleep` for the default.

    Attributes:
        heartbeats: heartbeats of the workers. If every attempt fails by a fault in relay itself,
            all workers count as silent.
        problem: why the latest attempt of a worker failed; None if it did not fail, or failed by
            the destination's answer.
    """

    def __init__(self, sleep: Callable[[float], object] | None = None) -> None:
        self._stopping = threading.Event()
        self._sleep = sleep
        self.heartbeats = Heartbeats()
        self.problem: str | None = None

    def sleep(self, seconds: float, until: threading.Event | None = None) -> None:
        """Wait for so many seconds; no longer than until the event, or else `stop`."""
        if self._sleep:
            self._sleep(seconds)
        else:
            (until or self._stopping).wait(seconds)

    @property
    def stopping(self) -> bool:
        """Whether the workers are to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Have the workers stop."""
        self._stopping.set()

    def begin(self) -> Hashable:
        """Expect heartbeats of this thread; return what names it."""
        self.heartbeats.beat(_ALL)
        return threading.get_ident()

    def beat(self) -> None:
        """Note that this thread makes progress."""
        self.heartbeats.beat(threading.get_ident())

    def get_on(self, problem: str | None = None) -> None:
        """Note that this thread does not hang, and that not all fail by a fault in relay itself."""
        self.problem = problem
        self.beat()
        self.heartbeats.beat(_ALL)

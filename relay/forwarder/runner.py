"""Runs forwarders and retention in this process, and checks them once a second.

They run until a signal ends the process, a thread has ended, or the outbox is broken.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import structlog

from relay.forwarder.forwarder import STUCK_SECONDS
from relay.forwarder.forwarders import Forwarders
from relay.forwarder.retention import Retention
from relay.outbox.protocol import Outbox
from relay.process import systemd
from relay.routes import Routes

_CHECK_SECONDS: Final = 1

_log = structlog.get_logger()


class ForwarderRunner:
    """The part of a process that forwards: its forwarders and retention.

    Args:
        routes: every route.
        retention: how long settled entries are kept.
        stop_seconds: how long requests under way have to be answered at the end.
        lineage: see `Forwarder`.
        cut_short: called if a worker hangs; ends the process at once.
    """

    def __init__(
        self,
        routes: Routes,
        *,
        retention: timedelta,
        stop_seconds: float,
        lineage: int | None,
        cut_short: Callable[[], object],
    ) -> None:
        self._routes = routes
        self._retention = retention
        self._stop_seconds = stop_seconds
        self._lineage = lineage
        self._cut_short = cut_short
        self._crashed = threading.Event()
        self._forwarders: Forwarders | None = None

    @property
    def broken(self) -> bool:
        """Whether the outbox can no longer be used in this process."""
        return self._forwarders is not None and self._forwarders.broken

    def problem(self) -> str | None:
        """Return why it makes no progress; None if it does."""
        return self._forwarders.problem if self._forwarders else "it waits for the outbox"

    def crash(self) -> None:
        """Make `run` end, because a thread of this process has ended."""
        self._crashed.set()

    def run(self, outbox: Outbox, started: Callable[[], object]) -> None:
        """Forward until the process ends.

        Return only if a thread has ended, or if the outbox is broken.

        Args:
            outbox: what to forward; this process has the role of its forwarder.
            started: called when forwarding has begun.
        """
        forwarders = self._forwarders = Forwarders(outbox, self._routes, lineage=self._lineage)
        retention = Retention(outbox, self._retention)
        try:
            forwarders.start()
            retention.start()
            started()
            systemd.notify(systemd.READY)
            self._watch(forwarders)
        finally:
            forwarders.stop(self._stop_seconds)
            retention.stop()

    def _watch(self, forwarders: Forwarders) -> None:
        while not (self._crashed.wait(_CHECK_SECONDS) or forwarders.broken):
            if forwarders.check_heartbeats() >= STUCK_SECONDS:
                _log.critical("forward.stuck", seconds=STUCK_SECONDS)
                self._cut_short()
            systemd.notify(systemd.ALIVE)

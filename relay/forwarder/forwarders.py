"""The forwarders of one process: one for each destination."""

import time

from relay.forwarder.forwarder import Forwarder
from relay.forwarder.unsettled import UnsettledEntries
from relay.outbox.protocol import Outbox
from relay.routes import Routes


class Forwarders:
    """A forwarder for each destination; one destination that is down does not delay the others.

    Args:
        outbox: where entries come from.
        routes: lead to the destinations.
        lineage: see `Forwarder`.
    """

    def __init__(self, outbox: Outbox, routes: Routes, *, lineage: int | None = None) -> None:
        unsettled = UnsettledEntries()
        self._forwarders = [
            Forwarder(outbox, destination, routes, unsettled=unsettled, lineage=lineage)
            for destination in routes.destinations
        ]

    @property
    def broken(self) -> bool:
        """Whether the outbox can no longer be used in this process."""
        return any(forwarder.broken.is_set() for forwarder in self._forwarders)

    @property
    def problem(self) -> str | None:
        """Why the latest attempt of a worker failed; see `Forwarder.problem`."""
        return next((each.problem for each in self._forwarders if each.problem), None)

    def check_heartbeats(self) -> int:
        """Return how many calls in a row have found some worker silent; call once a second."""
        return max(forwarder.heartbeats.check() for forwarder in self._forwarders)

    def start(self) -> None:
        """Begin to forward."""
        for forwarder in self._forwarders:
            forwarder.start()

    def stop(self, timeout: float) -> None:
        """Stop; when this returns, what was claimed is settled, or due again.

        Args:
            timeout: seconds that requests under way have to be answered.
        """
        deadline = time.monotonic() + timeout
        for forwarder in self._forwarders:
            forwarder.stop_soon()
        for forwarder in self._forwarders:
            forwarder.stop(max(0, deadline - time.monotonic()))

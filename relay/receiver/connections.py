"""Limits a server's connections, and chooses which ones are closed to make room."""

from typing import Final, Protocol

import structlog

from relay.logs.sampling import LogSampler
from relay.metrics.definitions import CONNECTIONS_SHED
from relay.receiver.budget import Budget

MAX_HEADS_BYTES: Final = 2**23
"""The most memory for incomplete request heads."""
MAX_PIPELINING: Final = 50
"""How many connections may have requests that wait for the answer to an earlier one."""

_log = structlog.get_logger()


class Connection(Protocol):
    """A connection, as its server sees it."""

    def evict(self) -> None:
        """Close the connection at once, whatever it waits for."""
        ...

    def close_after_answer(self) -> None:
        """Close the connection after the answer that is due."""
        ...

    def close_if_idle(self) -> None:
        """Close the connection if no request is under way and nothing has come for a while."""
        ...


class Connections:
    """The connections of a server.

    Args:
        max_count: the most connections at once.

    Attributes:
        ending: whether the server is ending, so that each connection is closed after its answer.
    """

    def __init__(self, max_count: int) -> None:
        self.ending = False
        self._max_count = max_count
        self._all: set[Connection] = set()
        self._heads = Budget(MAX_HEADS_BYTES)
        self._pipelining: set[Connection] = set()
        self._sampler = LogSampler()
        # Both in the order in which they began to wait.
        self._without_request: dict[Connection, None] = {}
        self._answered: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Connection) -> None:
        """Add a new connection; if there are too many, close one, perhaps the new one."""
        if len(self._all) >= self._max_count and not self.shed():
            self._log_shed("every connection is in use")
            connection.evict()
        self._all.add(connection)
        self._without_request[connection] = None

    def hold_head(self, connection: Connection, size: int) -> None:
        """Note how many bytes of an incomplete request head the connection has sent."""
        self._heads.hold(connection, size)

    def may_pipeline(self, connection: Connection) -> bool:
        """Return whether requests of the connection may wait for the answer to an earlier one."""
        if len(self._pipelining) < MAX_PIPELINING:
            self._pipelining.add(connection)
        return connection in self._pipelining

    def start_request(self, connection: Connection) -> None:
        """Note that a request head is complete: the connection is not shed until it is answered."""
        self._without_request.pop(connection, None)
        self._answered.pop(connection, None)
        self._heads.release(connection)

    def end_request(self, connection: Connection) -> None:
        """Note that the connection has been answered, or does not read its answer."""
        self._answered[connection] = None
        self._pipelining.discard(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self._all.discard(connection)
        self._pipelining.discard(connection)
        self.start_request(connection)

    def end(self) -> None:
        """Close each connection after its answer, from now on."""
        self.ending = True
        for connection in [*self._all]:
            connection.close_after_answer()

    def close_idle(self) -> None:
        """Close every connection that is idle and has sent nothing for a while."""
        for connection in [*self._all]:
            connection.close_if_idle()

    def shed(self) -> bool:
        """Close the connection that has waited the longest; those without a request come first.

        Returns:
            Whether there was one to close.
        """
        for waiting in (self._without_request, self._answered):
            for connection in waiting:
                self.remove(connection)
                self._log_shed("there are too many connections")
                connection.evict()
                return True
        return False

    def _log_shed(self, why: str) -> None:
        CONNECTIONS_SHED.inc()
        more = self._sampler.sample(why)
        if more is not None:
            _log.warning("http.connection_shed", why=why, connections=len(self._all), more=more)

"""How a forwarder hears of new entries."""

import threading
import time
from typing import Any, Final

import psycopg

_LOOK_SECONDS: Final = 0.15


class Bell:
    """Hears from the server when any process has added something."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._connection: psycopg.Connection[Any] | None = None
        self._try_at = float("-inf")
        self._look_at = float("-inf")
        self._heard = False
        self._lock = threading.Lock()

    def rung(self) -> bool:
        """Whether it has, since this was last asked."""
        with self._lock:
            try:
                if self._connection is None:
                    return self._listen()
                rung = any(True for _ in self._connection.notifies(timeout=0))
            except psycopg.Error:
                self._hang_up()
                return False
        self._heard |= rung
        return rung

    def due_to_look(self) -> bool:
        """Whether to look for oneself now: while the bell is silent, which PgBouncer makes it."""
        if self._heard or time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + _LOOK_SECONDS
        return True

    def close(self) -> None:
        """Listen no longer."""
        with self._lock:
            self._hang_up()

    def _listen(self) -> bool:
        if time.monotonic() < self._try_at:
            return False
        self._try_at = time.monotonic() + 1
        self._connection = psycopg.connect(**self._parameters)
        self._connection.execute("LISTEN relay")
        return True  # something may have been added before

    def _hang_up(self) -> None:
        self._heard = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def ignore_notifications(connection: psycopg.Connection[Any]) -> None:
    """Let a session that is shared receive what it did not ask for."""
    # Behind PgBouncer the bell's LISTEN stays on sessions that others share.
    connection.add_notify_handler(lambda _: None)

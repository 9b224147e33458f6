"""How a forwarder hears of new entries."""

import threading
import time
from typing import Any, Final

import psycopg

from relay.outbox.postgres.sessions import Session

_LOOK_SECONDS: Final = 0.15
_PROOF_SECONDS: Final = 10.0  # after which the server must show that it is still there


class NotifyListener:
    """Hears from the server when any process has added something."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._session: Session | None = None
        self._prove_at = float("-inf")
        self._try_at = float("-inf")
        self._look_at = float("-inf")
        self._heard = False
        self._lock = threading.Lock()

    def notified(self) -> bool:
        """Whether it has, since this was last asked."""
        with self._lock:
            try:
                if self._session is None:
                    return self._listen()
                if time.monotonic() > self._prove_at:
                    self._prove_at = time.monotonic() + _PROOF_SECONDS
                    self._session.execute("SELECT 1")  # silence alone says nothing
                notified = any(True for _ in self._session.notifies(timeout=0))
            except psycopg.Error:
                self._hang_up()
                return False
        self._heard |= notified
        return notified

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
        self._session = Session.connect(**self._parameters)
        self._session.execute("LISTEN relay")
        self._prove_at = time.monotonic() + _PROOF_SECONDS
        return True  # something may have been added before

    def _hang_up(self) -> None:
        self._heard = False
        if self._session is not None:
            self._session.close()
            self._session = None

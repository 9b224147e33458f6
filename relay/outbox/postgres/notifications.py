"""Listens for new entries by LISTEN and NOTIFY, so that a forwarder need not poll."""

import threading
import time
from typing import Any, Final

import psycopg

from relay.outbox.postgres.sessions import Session

_LOOK_SECONDS: Final = 0.15
_PROOF_SECONDS: Final = 10.0  # then the server must prove that it is still there


class NotifyListener:
    """A listener that notices when any process has added entries, for any destination."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._session: Session | None = None
        self._prove_at = float("-inf")
        self._try_at = float("-inf")
        self._look_at: dict[str, float] = {}
        self._hears = False
        self._news = 0
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def notified(self, destination: str) -> bool:
        """Return whether there was a notification since the last call for the destination.

        The answer is yes, too, if some may have been missed: at the first call, and after a
        connection was lost.
        """
        with self._lock:
            try:
                self._hear()
            except psycopg.Error:
                self._hang_up()
            known, self._known[destination] = self._known.get(destination, 0), self._news
            return self._news > known

    def due_to_look(self, destination: str) -> bool:
        """Return whether to look for entries of the destination now, at most every 0.15 s.

        Return False while notifications are known to arrive. Through PgBouncer none arrives.
        """
        if self._hears or time.monotonic() < self._look_at.get(destination, float("-inf")):
            return False
        self._look_at[destination] = time.monotonic() + _LOOK_SECONDS
        return True

    def close(self) -> None:
        """Stop listening."""
        with self._lock:
            self._hang_up()

    def _hear(self) -> None:
        if self._session is None:
            self._listen()
            return
        if time.monotonic() > self._prove_at:
            self._prove_at = time.monotonic() + _PROOF_SECONDS
            self._session.execute("SELECT 1")  # silence alone says nothing
        if any(True for _ in self._session.notifies(timeout=0)):
            self._hears = True
            self._news += 1

    def _listen(self) -> None:
        if time.monotonic() < self._try_at:
            return
        self._try_at = time.monotonic() + 1
        self._session = Session.connect(**self._parameters)
        self._session.execute("LISTEN relay")
        self._prove_at = time.monotonic() + _PROOF_SECONDS
        self._news += 1  # something may have been added before

    def _hang_up(self) -> None:
        self._hears = False
        if self._session is not None:
            self._session.close()
            self._session = None

"""Opens an outbox in the background, and tries until its store answers."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Any, Final

import structlog

from relay.errors import OutboxBrokenError, OutboxError, OutboxNotOpenError, OutboxUnusableError
from relay.outbox.protocol import Outbox

FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 5.0

PATIENCE_SECONDS: Final = 3.0
"""How long a use of the outbox waits for the first try to open it."""

_CLOSE_SECONDS: Final = 2.0

_log = structlog.get_logger()


def open_when_there(
    open_outbox: Callable[[], Outbox],
    sleep: Callable[[float], object],
    *,
    patience_seconds: float = inf,
    failed: Callable[[OutboxError], object] = lambda _: None,
) -> Outbox:
    """Try until the outbox opens, and return it.

    Args:
        open_outbox: tries once.
        sleep: waits before the next try, for so many seconds.
        patience_seconds: after so many seconds the last error is raised.
        failed: called with the error of each try that is followed by another one.

    Raises:
        OutboxUnusableError: the operator must act.
        OutboxBrokenError: this process cannot open it.
        OutboxError: the outbox did not open in time.
    """
    give_up_at = time.monotonic() + patience_seconds
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return open_outbox()
        except (OutboxUnusableError, OutboxBrokenError):
            raise
        except OutboxError as error:
            if time.monotonic() > give_up_at:
                raise
            _log.warning("outbox.awaited", error=str(error))
            failed(error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class AwaitedOutbox:
    """An outbox that a thread opens; until it is open, every use raises OutboxNotOpenError.

    It passes on every method of `relay.outbox.protocol.Outbox`. A use during the first try waits
    for that try. So a webhook that comes at the start is stored, and not refused.

    Args:
        open_outbox: tries once.
        opened: called with the outbox before any other use of it.
        unusable: called with the error when the outbox will never open.
    """

    def __init__(
        self,
        open_outbox: Callable[[], Outbox],
        *,
        opened: Callable[[Outbox], object],
        unusable: Callable[[OutboxError], object],
    ) -> None:
        self._open_outbox = open_outbox
        self._opened = opened
        self._unusable = unusable
        self._outbox: Outbox | None = None
        self._error = OutboxError("opening")
        self._tried = threading.Event()
        self._give_up_at = -inf
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._open, name="opening", daemon=True)
        self.entries: Any = _AwaitedEntries(self)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the outbox has)
        return getattr(self.get(), name)

    def get(self) -> Outbox:
        """Return the outbox itself.

        Raises:
            OutboxNotOpenError: the text says why.
        """
        if self._outbox is None:
            self._tried.wait(max(0, self._give_up_at - time.monotonic()))
        if self._outbox is None:
            raise OutboxNotOpenError(f"not open yet: {self._error}")
        return self._outbox

    def start(self) -> None:
        """Begin to open the outbox, in a thread."""
        self._give_up_at = time.monotonic() + PATIENCE_SECONDS
        self._thread.start()

    def close(self) -> None:
        """Close the store, or end the attempt to open it."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        if self._outbox is not None:
            self._outbox.close()

    def _open(self) -> None:
        try:
            outbox = open_when_there(self._try, self._pause, failed=self._note)
            self._opened(outbox)
        except _ClosingError:
            return
        except OutboxError as error:
            self._note(error)
            self._unusable(error)
            return
        except Exception as error:  # noqa: BLE001 (whatever it is, the operator must see it)
            _log.exception("outbox.not_opened")
            failure = OutboxUnusableError(f"relay failed: {type(error).__name__}")
            self._note(failure)
            self._unusable(failure)
            return
        self._outbox = outbox
        self._tried.set()

    def _try(self) -> Outbox:
        if self._closing.is_set():
            raise _ClosingError
        outbox = self._open_outbox()
        if self._closing.is_set():
            with suppress(OutboxError):
                outbox.close()
            raise _ClosingError
        return outbox

    def _pause(self, seconds: float) -> None:
        self._closing.wait(seconds)

    def _note(self, error: OutboxError) -> None:
        self._error = error
        self._tried.set()


class _ClosingError(Exception):
    """The outbox is not wanted any more."""


class _AwaitedEntries:
    """The entries of an awaited outbox."""

    def __init__(self, outbox: AwaitedOutbox) -> None:
        self._awaited = outbox

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever the store has)
        return getattr(self._awaited.get().entries, name)

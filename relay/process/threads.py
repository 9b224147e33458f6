"""Ends the process when a thread of it fails; otherwise it would live on without that thread."""

import threading
from collections.abc import Callable

import structlog

_log = structlog.get_logger()


def end_with_any_thread(end: Callable[[], object]) -> None:
    """Log the error of any thread that fails from now on, and call `end`."""

    def thread_failed(failure: threading.ExceptHookArgs) -> None:
        thread = failure.thread.name if failure.thread else None
        error = (failure.exc_type, failure.exc_value, failure.exc_traceback)
        _log.critical("thread.died", thread=thread, exc_info=error)
        end()

    threading.excepthook = thread_failed

"""No thread ends without a sign: without it, the process may live on and do nothing."""

import threading
from collections.abc import Callable

import structlog

_log = structlog.get_logger()


def end_with_any_thread(end: Callable[[], object]) -> None:
    """Have `end` called when any thread of this process ends by an error, which is logged."""

    def died(what: threading.ExceptHookArgs) -> None:
        thread = what.thread.name if what.thread else None
        error = (what.exc_type, what.exc_value, what.exc_traceback)
        _log.critical("thread.died", thread=thread, exc_info=error)
        end()

    threading.excepthook = died

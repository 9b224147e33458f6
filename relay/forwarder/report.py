"""Reports from the forwarder's process to its supervisor: metrics, and why it makes no progress.

A report is text on the process's standard output. Nothing else is written there: logs go to
standard error. The supervisor takes a process that reports nothing as hanging.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from msgspec import Struct

EVERY_SECONDS: Final = 1.0

_PROBLEM: Final = b"# PROBLEM "
"""Begins the first line of a report if there is a problem."""
_END: Final = b"# EOF\n"
"""Ends a report: in Prometheus' format it is the last line, if it occurs at all."""


class Report(Struct, frozen=True):
    """One report.

    Attributes:
        metrics: in Prometheus' format.
        problem: why the process makes no progress; None if it does.
    """

    metrics: bytes = b""
    problem: str | None = None


def read_reports(pieces: Iterable[bytes]) -> Iterator[Report]:
    """Yield each report once it is whole; one that is cut off is dropped."""
    begun = b""
    for piece in pieces:
        *whole, begun = (begun + piece).split(_END)
        yield from map(_read, whole)


def _read(text: bytes) -> Report:
    first, _, rest = text.partition(b"\n")
    if not first.startswith(_PROBLEM):
        return Report(text)
    return Report(rest, first.removeprefix(_PROBLEM).decode())


def _write(report: Report) -> bytes:
    if report.problem is None:
        return report.metrics + _END
    line = " ".join(report.problem.split()).encode(errors="replace")
    return _PROBLEM + line + b"\n" + report.metrics + _END


@contextmanager
def reporting(
    metrics: Callable[[], bytes], output: int, *, problem: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Report to the supervisor at once, each second, and at the end.

    Args:
        metrics: returns them in Prometheus' format.
        output: the descriptor to write to. Not Python's own file: a thread that waits for a reader
            would hold its lock for ever.
        problem: returns why this process makes no progress; None if it does.
    """
    ended = threading.Event()

    def report() -> None:
        is_last, why = False, None  # what a process waits for at its start is no problem yet
        with suppress(OSError):  # nobody reads any more; this process learns of that otherwise
            while True:
                rest = _write(Report(metrics(), why))
                while rest:
                    rest = rest[os.write(output, rest) :]
                if is_last:
                    return
                is_last = ended.wait(EVERY_SECONDS)
                why = problem()

    reporter = threading.Thread(target=report, name="report", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        ended.set()
        reporter.join(EVERY_SECONDS)

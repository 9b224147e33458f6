"""Prints what commands show: tables for people, JSON for programs, addresses only on request."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import click
from tabulate import tabulate

from relay.addresses import mask, masked
from relay.errors import UnreadableError
from relay.sources.fields import read_object

MAX_CELL: Final = 60
"""Characters in a cell of a table."""

_BAR_AFTER_SECONDS: Final = 1.0


class Output:
    """A printer of entries that masks addresses unless `reveal` is set."""

    def __init__(self, *, as_json: bool, reveal: bool) -> None:
        self.as_json = as_json
        self._reveal = reveal

    def text(self, value: object) -> str:
        """Return the value as one line of text, without control characters for a terminal."""
        shown = "" if value is None else str(value)
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
        return plain if self._reveal else mask(plain)

    def print(self, *lines: str) -> None:
        """Print lines of text."""
        _write(f"{line}\n" for line in lines)

    def lines(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Print JSON objects, one per line."""
        _write(f"{self._json(document)}\n" for document in documents)

    def pretty(self, document: object) -> str:
        """Return the document as indented JSON."""
        return self._json(document, indent=2)

    def _json(self, document: object, *, indent: int | None = None) -> str:
        # ASCII only: no character of it can control a terminal.
        return json.dumps(document if self._reveal else masked(document), indent=indent)

    def body(self, body: bytes) -> str:
        """Return a stored body as indented JSON, or as lines of text if it is not JSON."""
        try:
            return self.pretty(read_object(body))
        except UnreadableError:
            return "\n".join(map(self.text, body.decode(errors="replace").splitlines()))

    def table(
        self, headings: Sequence[str], rows: Iterable[Sequence[object]], *, max_cell: int = MAX_CELL
    ) -> None:
        """Print a table."""
        shown = [[_cut(self.text(cell), max_cell) for cell in row] for row in rows]
        self.print(tabulate(shown, headings, tablefmt="plain", disable_numparse=True))

    def row(self, cells: Iterable[object], widths: Iterable[int]) -> None:
        """Print a row of a table before its later rows are known."""
        shown = (_cut(self.text(cell), MAX_CELL) for cell in cells)
        padded = (cell.ljust(width) for cell, width in zip(shown, widths, strict=True))
        self.print("  ".join(padded).rstrip())


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _write(texts: Iterable[str]) -> None:
    """Print and flush, so that a failure is raised here."""
    try:
        sys.stdout.writelines(texts)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # the reader has gone, which is no fault; click ends the command
    except OSError as error:
        # Python would try to write the rest again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from None


@contextmanager
def progress(label: str, length: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, if that is a terminal and it takes over a second.

    Yields:
        A function to call with the size of each step that is done.
    """
    started, done = time.monotonic(), 0
    bar: Any = None

    def tick(count: int) -> None:
        nonlocal done, bar
        done += count
        if bar is not None:
            bar.update(count)
        elif on_terminal and time.monotonic() - started > _BAR_AFTER_SECONDS:
            bar = bars.enter_context(_bar(label, length))
            bar.update(done)

    on_terminal = sys.stderr.isatty()
    with ExitStack() as bars:
        yield tick


def _bar(label: str, length: int | None) -> Any:  # noqa: ANN401 (click has no public name for it)
    steps = _unknown() if length is None else None
    return click.progressbar(steps, length=length, label=label, file=sys.stderr, show_pos=True)


def _unknown() -> Iterator[int]:
    """Return steps of unknown number."""
    yield from ()


def counted(count: int, singular: str = "entry", plural: str = "entries") -> str:
    """Return the count with its noun, such as `1 entry` or `2,000 entries`."""
    return f"{count:,} {singular if count == 1 else plural}"

"""How the operator's commands print: tables for people, JSON for programs, no address unasked."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
from msgspec import Struct
from tabulate import tabulate

from relay.addresses import mask, masked
from relay.errors import UnreadableError
from relay.sources.fields import read_object

WIDEST: Final = 60
"""Characters of a table's cell."""

_PATIENCE_SECONDS: Final = 1.0
_AGO: Final = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class When(Struct, frozen=True):
    """A point in time as it was given: so long ago, or fixed."""

    said: str
    ago: timedelta | None = None
    fixed: datetime | None = None

    def seen_from(self, now: datetime) -> datetime:
        """The moment that was meant at that time."""
        return self.fixed or now - (self.ago or timedelta(0))


class Moment(click.ParamType[When]):
    """A point in time: so long ago (`30m`, `2h`, `7d`), or an ISO 8601 date or time, else UTC."""

    name = "when"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> When:
        """The point in time."""
        said = value.strip()
        try:
            if ago := _AGO.fullmatch(said):
                when = When(said, ago=timedelta(**{_UNITS[ago[2]]: int(ago[1])}))
                when.seen_from(datetime.now(UTC))
                return when
            moment = datetime.fromisoformat(said)
            return When(said, fixed=moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is neither like 30m, 2h, 7d nor like 2026-03-01T12:00", param, ctx
            )


class Output:
    """Prints entries, masked unless they are to be revealed."""

    def __init__(self, *, as_json: bool, reveal: bool) -> None:
        self.as_json = as_json
        self._reveal = reveal

    def text(self, value: object) -> str:
        """The value for a person: on one line, with nothing a terminal would take for a command."""
        shown = "" if value is None else str(value)
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
        return plain if self._reveal else mask(plain)

    def say(self, *lines: str) -> None:
        """Print lines for a person."""
        _write(f"{line}\n" for line in lines)

    def lines(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Print JSON objects, one a line."""
        _write(f"{self._json(document)}\n" for document in documents)

    def pretty(self, document: object) -> str:
        """JSON for a person."""
        return self._json(document, indent=2)

    def _json(self, document: object, *, indent: int | None = None) -> str:
        # ASCII only, so that no character of it can command a terminal.
        return json.dumps(document if self._reveal else masked(document), indent=indent)

    def body(self, body: bytes) -> str:
        """A webhook's body for a person, whatever it is."""
        try:
            return self.pretty(read_object(body))
        except UnreadableError:
            return "\n".join(map(self.text, body.decode(errors="replace").splitlines()))

    def table(
        self, headings: Sequence[str], rows: Iterable[Sequence[object]], *, widest: int = WIDEST
    ) -> None:
        """Print a table."""
        shown = [[_cut(self.text(cell), widest) for cell in row] for row in rows]
        self.say(tabulate(shown, headings, tablefmt="plain", disable_numparse=True))

    def row(self, cells: Iterable[object], widths: Iterable[int]) -> None:
        """Print a row of a table whose other rows are not known yet."""
        shown = (_cut(self.text(cell), WIDEST) for cell in cells)
        padded = (cell.ljust(width) for cell, width in zip(shown, widths, strict=True))
        self.say("  ".join(padded).rstrip())


def _cut(text: str, widest: int) -> str:
    return text if len(text) <= widest else text[: widest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _write(texts: Iterable[str]) -> None:
    """Print, and see to it that all of it has been taken."""
    try:
        sys.stdout.writelines(texts)
        sys.stdout.flush()
    except BrokenPipeError:
        raise  # nobody reads on, which is no fault; click ends the command
    except OSError as error:
        # What could not be written would be tried once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from None


@contextmanager
def progress(label: str, length: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, where that is a terminal and it takes longer than a second.

    It is told of each step's size.
    """
    started, done = time.monotonic(), 0
    bar: Any = None

    def tick(count: int) -> None:
        nonlocal done, bar
        done += count
        if bar is not None:
            bar.update(count)
        elif shown_at_all and time.monotonic() - started > _PATIENCE_SECONDS:
            bar = bars.enter_context(_bar(label, length))
            bar.update(done)

    shown_at_all = sys.stderr.isatty()
    with ExitStack() as bars:
        yield tick


def _bar(label: str, length: int | None) -> Any:  # noqa: ANN401 (click has no public name for it)
    steps = _unknown() if length is None else None
    return click.progressbar(steps, length=length, label=label, file=sys.stderr, show_pos=True)


def _unknown() -> Iterator[int]:
    """Steps of which nobody knows how many there are."""
    yield from ()


def counted(count: int, singular: str = "entry", plural: str = "entries") -> str:
    """So many of them."""
    return f"{count:,} {singular if count == 1 else plural}"

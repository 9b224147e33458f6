"""The commands for JSON lines: `relay import` stores what came, `relay export` prints entries."""

import gzip
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from relay.cli.app import configure_logs, load_settings, main
from relay.cli.context import open_context
from relay.cli.options import as_json_option, criteria_of, filter_options, reveal_option
from relay.cli.outbox import open_outbox_or_exit
from relay.cli.output import Output, progress
from relay.errors import OutboxError
from relay.operations.importing import BadLine, Importer, lines
from relay.operations.views import detail
from relay.service import capacity_of

_BAD_LINES_SHOWN: Final = 20
_CONTINUE: Final = "Run the same command again to continue"


@main.command("import")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option(
    "--source",
    "name",
    default="vero",
    show_default=True,
    help="Name of the source that the lines came from.",
)
@as_json_option
def import_(files: tuple[Path, ...], name: str, *, as_json: bool) -> None:
    """Store webhooks or calls from files, one JSON per line.

    A file may be gzipped (`.gz`); `-` is standard input. With `--source segment` a line is one call
    or a batch. The lines are treated as if they came in now, in their order. Importing the same
    lines again adds nothing.
    """
    settings, routes = load_settings()
    configure_logs(settings)
    route = routes.get(name)
    if route is None:
        known = ", ".join(source.name for source in routes.sources)
        raise click.UsageError(f"there is no source {name}; known: {known}")
    report = _Report(as_json=as_json)
    with open_outbox_or_exit(settings, create=True) as outbox:
        capacity = capacity_of(settings, outbox)
        importer = Importer(outbox, route, exceeded=capacity.exceeded)
        try:
            for path in files:
                _import(path, importer, report)
        except OutboxError as error:
            report.end()
            raise click.ClickException(f"stopped: {error}. {_CONTINUE}") from None
        except KeyboardInterrupt:
            report.end()
            raise click.ClickException(f"interrupted. {_CONTINUE}") from None
        except _BrokenFileError:
            report.end()
            raise
    report.end()


class _BrokenFileError(click.ClickException):
    """A file cannot be read to its end."""


class _Report:
    """A report of an import: bad lines as they come, totals at the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._output = Output(as_json=as_json, reveal=False)
        self._outcomes: Counter[str] = Counter()
        self._bad = 0

    def add(self, path: Path, outcomes: Counter[str], bad: list[BadLine]) -> None:
        self._outcomes.update(outcomes)
        for line in bad:
            self._bad += 1
            if self._output.as_json:
                where = {"file": str(path), "line": line.number}
                self._output.lines([{**where, "error": line.error, "kept": line.kept}])
            elif self._bad <= _BAD_LINES_SHOWN:
                kept = "" if line.kept else " (not kept)"
                text = f"{path}, line {line.number}: {line.error}{kept}"
                self._output.print(self._output.text(text))

    def end(self) -> None:
        if self._output.as_json:
            self._output.lines([self._outcomes])
            return
        if self._bad > _BAD_LINES_SHOWN:
            more = self._bad - _BAD_LINES_SHOWN
            self._output.print(f"... and {more:,} more bad lines (--json lists all)")
        outcomes = sorted(self._outcomes.items())
        self._output.print(
            ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes) or "nothing to store"
        )


def _import(path: Path, importer: Importer, report: _Report) -> None:
    faults: list[str] = []

    def readable(file: BinaryIO) -> Iterator[bytes]:
        """Yield what can be read; all of it is stored before the fault is reported."""
        try:
            yield from lines(file)
        except (OSError, EOFError, zlib.error) as error:
            faults.append(str(error))

    with _reading(path) as (file, read_bytes, size), progress(f"bytes of {path}", size) as tick:
        before = 0
        for row in importer.run(readable(file)):
            report.add(path, row.outcomes, row.bad)
            read = before + row.bytes if read_bytes is None else read_bytes()
            tick(read - before)
            before = read
    if faults:
        raise _BrokenFileError(
            f"{path} cannot be read to its end; what could be read is stored: {faults[0]}"
        )


@contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], int] | None, int | None]]:
    """Yield the content of the file, a function that returns how much was read, and its size."""
    if str(path) == "-":
        yield sys.stdin.buffer, None, None
        return
    try:
        raw = path.open("rb")
        size = path.stat().st_size
    except OSError as error:
        raise _BrokenFileError(f"{path}: {error.strerror}") from None
    with raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as file:
                yield file, raw.tell, size  # type: ignore[misc]  # it can be read like any file
        else:
            yield raw, raw.tell, size


@main.command()
@filter_options
@reveal_option
@click.option("--json", is_flag=True, expose_value=False, hidden=True)  # JSON is all it prints
def export(*, reveal: bool, **filters: Any) -> None:  # noqa: ANN401 (the filter options)
    """Print entries as JSON lines, oldest first.

    Each has its body as received, the messages that would be sent for it now, and its history.
    """
    criteria = criteria_of(filters)
    with open_context(as_json=True, reveal=reveal) as ctx, progress("exporting") as tick:
        found = ctx.search.find(criteria, newest_first=False, with_history=True, looked_at=tick)
        ctx.output.lines(
            detail(entry, ctx.routes.event(entry), ctx.routes.render(entry)) for entry in found
        )

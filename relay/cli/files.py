"""The commands for files: import webhooks from them, copy the outbox into one and back."""

import gzip
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import click

from relay.cli.app import configure_logs, load_settings, main, open_outbox_or_exit, outbox_errors
from relay.cli.filters import as_json_option
from relay.cli.output import Output, counted, progress
from relay.errors import OutboxError
from relay.operations import recovery as salvaging
from relay.operations.importing import BadLine, Importer, lines
from relay.operations.search import PAGE
from relay.outbox import open_outbox
from relay.outbox.entries import Query
from relay.outbox.protocol import Outbox
from relay.service import capacity_of

_BAD_LINES_SHOWN: Final = 20
_PARTS: Final = 1_000  # of a salvage, as its progress is told
_GO_ON: Final = "The same command again goes on from there"
_SQLITE: Final = b"SQLite format 3\0"


@main.command("import")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option("--source", "name", default="vero", show_default=True, help="Whose webhooks.")
@as_json_option
def import_(files: tuple[Path, ...], name: str, *, as_json: bool) -> None:
    """Store webhook bodies from files: one JSON a line, `.gz` too, `-` for standard input.

    They go the way of webhooks that come in now. The same lines again add nothing.
    """
    settings, routes = load_settings()
    configure_logs(settings)
    route = routes.get(name)
    if route is None:
        known = ", ".join(source.name for source in routes.sources)
        raise click.UsageError(f"no source is called {name}; known: {known}")
    report = _Report(as_json=as_json)
    with open_outbox_or_exit(settings, create=True) as outbox:
        capacity = capacity_of(settings, outbox)
        importer = Importer(outbox, route, exceeded=capacity.exceeded)
        try:
            for path in files:
                _import(path, importer, report)
        except OutboxError as error:
            report.end()
            raise click.ClickException(f"stopped: {error}. {_GO_ON}") from None
        except KeyboardInterrupt:
            report.end()
            raise click.ClickException(f"interrupted. {_GO_ON}") from None
        except _BrokenFileError:
            report.end()
            raise
    report.end()


class _BrokenFileError(click.ClickException):
    """The file cannot be read to its end."""


class _Report:
    """Tells what became of the lines: the bad ones as they come, all of them at the end."""

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
                told = f"{path}, line {line.number}: {line.error}{kept}"
                self._output.say(self._output.text(told))

    def end(self) -> None:
        if self._output.as_json:
            self._output.lines([self._outcomes])
            return
        if self._bad > _BAD_LINES_SHOWN:
            more = self._bad - _BAD_LINES_SHOWN
            self._output.say(f"... and {more:,} more bad lines (--json lists all)")
        outcomes = sorted(self._outcomes.items())
        self._output.say(
            ", ".join(f"{n:,} {outcome}" for outcome, n in outcomes) or "nothing to store"
        )


def _import(path: Path, importer: Importer, report: _Report) -> None:
    faults: list[str] = []

    def readable(file: BinaryIO) -> Iterator[bytes]:
        """What can be read, all of which is stored before the fault is told."""
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
        told = "cannot be read to its end; what comes before that is stored"
        raise _BrokenFileError(f"{path} {told}: {faults[0]}")


@contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], int] | None, int | None]]:
    """The file's content, how many bytes of the file have been read, and its size."""
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
                yield file, raw.tell, size  # type: ignore[misc]  # it reads as any other
        else:
            yield raw, raw.tell, size


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the outbox into a new file, while relay is running.

    The file is a SQLite outbox, whichever the store: relay can run on it, or `relay restore` it.
    """
    settings, _ = load_settings()
    configure_logs(settings)
    with (
        open_outbox_or_exit(settings) as outbox,
        _made_whole(file) as partial,
        outbox_errors(),
        closing(_file_outbox(partial, create=True)) as copy,
    ):
        copied = _copy(outbox, copy, "copying")
    click.echo(f"{counted(copied)} in {file}")


@contextmanager
def _made_whole(file: Path) -> Iterator[Path]:
    """Another file, of which the file is made once it is whole."""
    if file.exists():
        raise click.ClickException(f"{file} exists already")
    try:
        with tempfile.TemporaryDirectory(prefix=f"{file.name}.", dir=file.parent) as directory:
            partial = Path(directory) / file.name
            yield partial
            partial.chmod(0o600)
            partial.rename(file)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error.strerror}") from None


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def restore(file: Path) -> None:
    """Copy the entries of a SQLite outbox, a backup say, into this one; those it has are left."""
    settings, _ = load_settings()
    configure_logs(settings)
    if not _is_sqlite(file):
        raise click.ClickException(f"{file} is not a SQLite outbox")
    with (
        outbox_errors(),
        closing(_file_outbox(file)) as source,
        open_outbox_or_exit(settings, create=True) as outbox,
    ):
        try:
            copied = _copy(source, outbox, "restoring")
        except OutboxError as error:
            raise click.ClickException(
                f"stopped: {error}. {_GO_ON}; if it is {file} that is damaged, `relay salvage"
                f" {file} NEW` makes another one of what can be read"
            ) from None
    click.echo(f"{counted(copied)} restored")


def _is_sqlite(file: Path) -> bool:
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with file.open("rb") as opened_file:
            return opened_file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _file_outbox(path: Path, *, create: bool = False) -> Outbox:
    return open_outbox(f"sqlite:///{path}", allow_ephemeral=True, create=create)


def _copy(source: Outbox, target: Outbox, label: str) -> int:
    """Copy all that is in the source by now, and leave what comes in meanwhile."""
    newest = source.entries.find(Query(), 1)
    copied, start = 0, 0
    with progress(label, source.entries.count(Query())) as tick:
        while newest and (
            page := source.entries.find(
                Query(), PAGE, start=start, newest_first=False, with_history=True
            )
        ):
            if page[-1].id <= start:
                raise OutboxError("the entries are not in order")
            copied += target.entries.restore([r for r in page if r.id <= newest[0].id])
            tick(len(page))
            start = page[-1].id
            if start >= newest[0].id:
                break
    return copied


@main.command()
@click.argument("damaged", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def salvage(damaged: Path, new: Path) -> None:
    """Put what can be read of a DAMAGED SQLite outbox into a NEW one.

    Stop relay first. The damaged file is left as it is. What cannot be told to have been delivered
    is pending in the new one, and is forwarded again under the same messageId. Histories are not
    recovered.
    """
    told = 0

    def tell(done: float) -> None:
        nonlocal told
        tick(round(done * _PARTS) - told)
        told = round(done * _PARTS)

    with outbox_errors(), progress("reading", _PARTS) as tick:
        salvaged = salvaging.salvage(damaged, new, tell)
    counts = salvaged.counts
    click.echo(
        f"recovered  {counts.pending} pending, {counts.delivered} delivered, {counts.dead} dead\n"
        f"missing    {salvaged.broken} that were found and could not be read;"
        f" {salvaged.torn} damaged pages may have held others\n"
        f"next       start relay with RELAY_OUTBOX_URL=sqlite:///{new.absolute()}"
    )

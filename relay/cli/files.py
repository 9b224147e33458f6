"""The commands for files: import webhooks from them, copy the outbox into one and back."""

import gzip
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import click

from relay import salvaging
from relay.backfill import Backfill, BadLine, lines
from relay.cli.app import (
    configure_logs,
    configured,
    limits_of,
    main,
    opened,
    reported,
    segment_of,
)
from relay.cli.output import Output, counted, progress
from relay.lookup import PAGE
from relay.outbox import Outbox, open_outbox
from relay.outbox.records import Query

_BAD_LINES_SHOWN: Final = 20
_PARTS: Final = 1_000  # of a salvage, as its progress is told


@main.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--provider", "name", default="vero", show_default=True, help="Whose webhooks.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def import_(files: tuple[Path, ...], name: str, *, as_json: bool) -> None:
    """Store webhook bodies from files: one JSON a line, `.gz` too, `-` for standard input.

    They go the way of webhooks that come in now. The same lines again add nothing.
    """
    settings, providers = configured()
    configure_logs(settings)
    named = {provider.name: provider for provider in providers}
    if name not in named:
        raise click.UsageError(f"no provider is called {name}; known: {', '.join(named)}")
    segment = segment_of(settings)
    outcomes: Counter[str] = Counter()
    bad: list[tuple[Path, BadLine]] = []
    with opened(settings) as outbox, reported():
        limits = limits_of(settings, outbox)
        backfill = Backfill(outbox, named[name], segment)
        for path in files:
            with _reading(path) as (file, read_bytes, size), progress(str(path), size) as tick:
                before = 0
                for tally in backfill.run(lines(file)):
                    outcomes.update(tally.outcomes)
                    bad += [(path, line) for line in tally.bad]
                    tick(read_bytes() - before)
                    before = read_bytes()
                    if exceeded := limits.exceeded():
                        _report(outcomes, bad, as_json=as_json)
                        raise click.ClickException(
                            f"stopped: {exceeded}. The same command again goes on from there"
                        )
    _report(outcomes, bad, as_json=as_json)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, Callable[[], int], int | None]]:
    """The file's content, how many bytes of the file have been read, and its size."""
    if str(path) == "-":
        yield sys.stdin.buffer, lambda: 0, None
        return
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            if path.suffix == ".gz":
                with gzip.open(raw) as file:
                    yield file, raw.tell, size  # type: ignore[misc]  # it reads as any other
            else:
                yield raw, raw.tell, size
    except (OSError, EOFError) as error:
        raise click.ClickException(f"{path}: {error}") from None


def _report(outcomes: Counter[str], bad: list[tuple[Path, BadLine]], *, as_json: bool) -> None:
    output = Output(as_json=as_json, reveal=False)
    if as_json:
        shown = [
            {"file": str(path), "line": line.number, "error": line.error, "kept": line.kept}
            for path, line in bad
        ]
        output.line({**outcomes, "bad": shown})
        return
    for path, line in bad[:_BAD_LINES_SHOWN]:
        kept = "" if line.kept else " (not kept)"
        click.echo(output.text(f"{path}, line {line.number}: {line.error}{kept}"))
    if len(bad) > _BAD_LINES_SHOWN:
        click.echo(f"... and {len(bad) - _BAD_LINES_SHOWN:,} more bad lines (--json lists all)")
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    click.echo(told or "no lines")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the outbox into a new file, while relay is running.

    The file is a SQLite outbox, whichever the store: relay can run on it, or `relay restore` it.
    """
    settings, _ = configured()
    configure_logs(settings)
    if file.exists():
        raise click.ClickException(f"{file} exists already")
    partial = file.with_name(file.name + ".partial")
    partial.unlink(missing_ok=True)
    with opened(settings) as outbox, reported(), closing(_file_outbox(partial)) as copy:
        copied = _copy(outbox, copy, "copying")
    partial.rename(file)
    click.echo(f"{counted(copied)} in {file}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def restore(file: Path) -> None:
    """Copy the entries of a SQLite outbox, a backup say, into this one; those it has are left."""
    settings, _ = configured()
    configure_logs(settings)
    with opened(settings) as outbox, reported(), closing(_file_outbox(file)) as source:
        copied = _copy(source, outbox, "restoring")
    click.echo(f"{counted(copied)} restored")


def _file_outbox(path: Path) -> Outbox:
    return open_outbox(f"sqlite:///{path}", allow_ephemeral=True)


def _copy(source: Outbox, target: Outbox, label: str) -> int:
    copied, start = 0, None
    with progress(label, source.records.count(Query())) as tick:
        while page := source.records.find(
            Query(), PAGE, start=start, newest_first=False, with_history=True
        ):
            copied += target.records.restore(page)
            tick(len(page))
            start = page[-1].id
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

    with reported(), progress("reading", _PARTS) as tick:
        salvaged = salvaging.salvage(damaged, new, tell)
    counts = salvaged.counts
    click.echo(
        f"recovered  {counts.pending} pending, {counts.delivered} delivered, {counts.dead} dead\n"
        f"missing    {salvaged.broken} that were found and could not be read;"
        f" {salvaged.torn} damaged pages may have held others\n"
        f"next       start relay on {new}"
    )

"""The commands that copy the outbox: backup, restore and salvage."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import copy
from pathlib import Path
from typing import Final

import click

from relay.cli.app import configure_logs, load_settings, main
from relay.cli.outbox import open_outbox_or_exit, outbox_errors
from relay.cli.output import counted, progress
from relay.errors import OutboxError
from relay.operations.salvage import salvage_outbox
from relay.operations.search import BATCH_ROWS
from relay.outbox import open_outbox
from relay.outbox.entries import Query
from relay.outbox.protocol import Outbox

_PARTS: Final = 1_000
"""Steps of the progress bar of a salvage."""
_CONTINUE: Final = "Run the same command again to continue"
_SQLITE: Final = b"SQLite format 3\0"


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the outbox into a new file; relay may be running.

    The file is a SQLite outbox, whatever store it is copied from. relay can run on it, and
    `relay restore` can copy it back.
    """
    settings, _ = load_settings()
    configure_logs(settings)
    with (
        open_outbox_or_exit(settings) as outbox,
        _replaced_when_whole(file) as partial,
        outbox_errors(),
        closing(_file_outbox(partial, create=True)) as target,
    ):
        copied = _copy(outbox, target, "copying")
    click.echo(f"{counted(copied)} in {file}")


@contextmanager
def _replaced_when_whole(file: Path) -> Iterator[Path]:
    """Yield a path beside the file; what is written there becomes the file at the end."""
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
    """Copy the entries of a backup into the outbox.

    FILE may be any SQLite outbox. Entries that the outbox has already stay as they are.
    """
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
                f"stopped: {error}. {_CONTINUE}; if {file} is damaged, `relay salvage"
                f" {file} NEW` makes a new one of what can be read"
            ) from None
    click.echo(f"{counted(copied)} restored")


def _is_sqlite(file: Path) -> bool:
    if not file.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with file.open("rb") as opened_file:
            return opened_file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from None


def _file_outbox(path: Path, *, create: bool = False) -> Outbox:
    return open_outbox(f"sqlite:///{path}", allow_ephemeral=True, create=create)


def _copy(source: Outbox, target: Outbox, label: str) -> int:
    """Copy the entries that are in the source now; return how many were new to the target."""
    newest = source.entries.find(Query(), 1)
    copied, start = 0, 0
    with progress(label, source.entries.count(Query())) as tick:
        while newest and (
            batch := source.entries.find(
                Query(), BATCH_ROWS, start=start, newest_first=False, with_history=True
            )
        ):
            if batch[-1].id <= start:
                raise OutboxError("the entries are not in order")
            copied += target.entries.restore([entry for entry in batch if entry.id <= newest[0].id])
            tick(len(batch))
            start = batch[-1].id
            if start >= newest[0].id:
                break
    return copied


@main.command()
@click.argument("damaged", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def salvage(damaged: Path, new: Path) -> None:
    """Recover what can be read of a damaged SQLite outbox.

    Stop relay first. The DAMAGED file is not changed; the NEW one is created. Entries that may not
    have been delivered are pending in the new outbox, and are forwarded again under the same
    messageId. Histories are not recovered.
    """
    shown = 0

    def show(share: float) -> None:
        nonlocal shown
        tick(round(share * _PARTS) - shown)
        shown = round(share * _PARTS)

    with outbox_errors(), progress("reading", _PARTS) as tick:
        salvaged = salvage_outbox(damaged, new, show)
    counts = salvaged.counts
    click.echo(
        f"recovered  {counts.pending} pending, {counts.delivered} delivered, {counts.dead} dead\n"
        f"missing    {salvaged.broken} that could not be read whole;"
        f" {salvaged.torn} damaged pages may have held more\n"
        f"next       start relay with RELAY_OUTBOX_URL=sqlite:///{new.absolute()}"
    )


_alias = copy(salvage)
_alias.short_help = "The same as `relay salvage`."
main.add_command(_alias, "recover")

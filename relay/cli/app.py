"""What all commands share: their group, the settings, the log and the outbox."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from math import inf
from typing import Final

import click
import structlog

from relay import __version__, logs
from relay.destinations import destination_classes
from relay.errors import OutboxError, OutboxMissingError, SettingsError
from relay.outbox import open_outbox
from relay.outbox.opening import open_when_there
from relay.outbox.protocol import Outbox
from relay.process.files import open_standard_files
from relay.routes import Routes
from relay.settings import Models, Settings
from relay.sources import source_classes

PATIENCE_SECONDS: Final = 20
"""How long a command waits for a database that is not there yet."""


_log = structlog.get_logger()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Receive Vero's and Customer.io's email webhooks, store each durably, forward them to Segment.

    A webhook answered 200 is on disk; what is on disk reaches Segment, or waits where you can see
    why. Settings are environment variables: `relay settings` lists them.
    """
    open_standard_files()
    os.umask(0o077)  # what relay writes may hold addresses, and is nobody's to read but its owner's
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of which not every terminal's can show everything
            stream.reconfigure(errors="backslashreplace")


def settings_models() -> tuple[Models, Models]:
    """Return the settings of every source, and of every destination, by name."""
    return (
        {name: source.settings_model for name, source in source_classes().items()},
        {name: each.settings_model for name, each in destination_classes().items()},
    )


def load_settings(environ: Mapping[str, str] = os.environ) -> tuple[Settings, Routes]:
    """Return the settings and every route; on a fault, print each and exit with 2."""
    try:
        settings = Settings.from_env(environ, *settings_models())
        sources = [cls(settings.source(name)) for name, cls in source_classes().items()]
        destinations = [
            cls(settings.destination(name)) for name, cls in destination_classes().items()
        ]
    except SettingsError as error:
        for fault in error.faults:
            click.echo(fault, err=True)
        sys.exit(2)
    return settings, Routes(sources, destinations)


def configure_logs(
    settings: Settings, *, dropped: Callable[[int], object] = lambda _: None
) -> None:
    """Log from here on, as the settings say; `dropped` is told how many lines nobody will read."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    style = settings.log_format or ("console" if on_terminal else "json")
    logs.configure(
        level=settings.log_level, style=style, secrets=settings.secrets(), dropped=dropped
    )


def warn(routes: Routes) -> None:
    """Log what is allowed and unwise in the settings."""
    for destination in routes.destinations:
        for warning in destination.warnings():
            _log.warning("settings.unwise", warning=warning)


class NoOutboxError(click.ClickException):
    """There is no outbox, and the command makes none."""


@contextmanager
def open_outbox_or_exit(
    settings: Settings, *, create: bool = False, patient: bool = False
) -> Iterator[Outbox]:
    """Open the outbox for as long as it is needed; exit with a sentence if it does not open.

    Args:
        settings: they name it.
        create: make it if there is none.
        patient: wait for its store as long as it takes, and not for a while only.
    """
    open_once = partial(
        open_outbox, settings.outbox, allow_ephemeral=settings.allow_ephemeral, create=create
    )
    try:
        outbox = open_when_there(
            open_once, time.sleep, patience_seconds=inf if patient else PATIENCE_SECONDS
        )
    except OutboxMissingError as error:
        raise NoOutboxError(
            f"outbox: {error} (RELAY_OUTBOX_URL names it); `relay serve` makes one"
        ) from None
    except OutboxError as error:
        raise click.ClickException(f"outbox: {error}") from None
    try:
        yield outbox
    finally:
        outbox.close()


@contextmanager
def outbox_errors() -> Iterator[None]:
    """End the command with a sentence when the outbox fails."""
    try:
        yield
    except OutboxError as error:
        raise click.ClickException(f"outbox: {error}") from None

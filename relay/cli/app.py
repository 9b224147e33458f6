"""Defines the command `relay`, and loads settings and starts the log for its subcommands."""

import os
import sys
from collections.abc import Callable, Mapping
from io import TextIOWrapper

import click
import structlog

from relay import __version__, logs
from relay.destinations import destination_classes
from relay.errors import SettingsError
from relay.process.files import open_standard_files
from relay.routes import Routes
from relay.settings import Models, Settings
from relay.sources import source_classes

_log = structlog.get_logger()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Carry email events and customer data between email platforms and Segment, and lose nothing.

    Email webhooks of Vero and Customer.io go to Segment, calls of Segment's libraries to Vero. What
    is answered 200 is on disk. What is on disk is delivered, or waits where you can see why.
    Settings are environment variables: `relay settings` lists them.
    """
    open_standard_files()
    os.umask(0o077)  # files may hold addresses: only their owner may read them
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not every terminal can show every character
            stream.reconfigure(errors="backslashreplace")


def settings_models() -> tuple[Models, Models]:
    """Return the settings models of the sources and of the destinations, by name."""
    return (
        {name: source.settings_model for name, source in source_classes().items()},
        {name: each.settings_model for name, each in destination_classes().items()},
    )


def credentials() -> dict[str, str]:
    """Return the variable without which a source's events cannot be sent, by the source's name."""
    destinations = destination_classes()
    return {
        name: destinations[source.destination].credential
        for name, source in source_classes().items()
    }


def load_settings(environ: Mapping[str, str] = os.environ) -> tuple[Settings, Routes]:
    """Return the settings and every route; if settings are wrong, print why and exit with 2."""
    try:
        settings = Settings.from_env(environ, *settings_models(), credentials())
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
    """Begin to log as the settings say; call `dropped` with the number of lines that are lost."""
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    style = settings.log_format or ("console" if on_terminal else "json")
    logs.configure(
        level=settings.log_level, style=style, secrets=settings.secrets(), dropped=dropped
    )


def log_warnings(routes: Routes) -> None:
    """Log a warning for each setting that is allowed but unwise."""
    for destination in routes.destinations:
        for warning in destination.warnings():
            _log.warning("settings.unwise", warning=warning)

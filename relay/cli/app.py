"""What all commands share: their group, the settings, the log and the outbox."""

import hmac
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Final

import click
import structlog
from pydantic import BaseModel

from relay import __version__, logs
from relay.errors import OutboxBrokenError, OutboxError, OutboxUnusableError, SettingsError
from relay.limits import Limits
from relay.outbox import Outbox, open_outbox
from relay.providers import Provider, provider_classes
from relay.segment import Segment
from relay.settings import Settings

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of which not every terminal's can show everything
            stream.reconfigure(errors="backslashreplace")


def settings_models() -> dict[str, type[BaseModel]]:
    """Every provider's settings, by its name."""
    return {name: provider.settings_model for name, provider in provider_classes().items()}


def configured(environ: Mapping[str, str] = os.environ) -> tuple[Settings, list[Provider]]:
    """The settings and every provider; or the end, with a line for each fault."""
    try:
        settings = Settings.from_env(environ, settings_models())
    except SettingsError as error:
        for fault in error.faults:
            click.echo(fault, err=True)
        sys.exit(2)
    providers = [cls(settings.provider(name)) for name, cls in provider_classes().items()]
    return settings, providers


def configure_logs(settings: Settings) -> None:
    """Log from here on, as the settings say."""
    style = settings.log_format or ("console" if sys.stderr.isatty() else "json")
    logs.configure(level=settings.log_level, style=style, secrets=settings.secrets())


@contextmanager
def opened(settings: Settings, *, made_before: bool = False) -> Iterator[Outbox]:
    """The outbox while it is needed; or the end, with a sentence.

    Args:
        settings: they name it.
        made_before: a file that does not exist is most likely named wrongly, and is not made.
    """
    path = Path(settings.outbox.removeprefix("sqlite:///"))
    if made_before and settings.on_sqlite and not path.exists():
        raise click.ClickException(f"outbox: {path} does not exist (RELAY_OUTBOX_URL names it)")
    try:
        outbox = _open(settings)
    except OutboxError as error:
        raise click.ClickException(f"outbox: {error}") from None
    try:
        yield outbox
    finally:
        outbox.close()


def _open(settings: Settings) -> Outbox:
    """The outbox, once its server is there.

    Raises:
        OutboxError: it is not there in time, or waiting would not help.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return open_outbox(settings.outbox, allow_ephemeral=settings.allow_ephemeral)
        except (OutboxUnusableError, OutboxBrokenError):
            raise
        except OutboxError as error:
            if time.monotonic() > give_up_at:
                raise
            _log.warning("outbox.awaited", error=str(error))
            time.sleep(1)


@contextmanager
def reported() -> Iterator[None]:
    """What the outbox cannot do ends the command with a sentence."""
    try:
        yield
    except OutboxError as error:
        raise click.ClickException(f"outbox: {error}") from None


def segment_of(settings: Settings) -> Segment:
    """The Segment source that events go to."""
    return Segment(
        settings.segment_write_key.get_secret_value(),
        settings.segment_url,
        hash_anonymous_id=settings.anonymous_id == "sha256",
    )


def fingerprint_of(settings: Settings, text: str) -> str:
    """What tells the text from others, and to nobody without the write key which one it is."""
    key = settings.segment_write_key.get_secret_value().encode()
    return hmac.new(key, text.encode(errors="replace"), "sha256").hexdigest()[:8]


def limits_of(settings: Settings, outbox: Outbox) -> Limits:
    """Beyond which nothing is taken."""
    return Limits(outbox, max_backlog=settings.max_backlog, min_free_disk=settings.min_free_disk)

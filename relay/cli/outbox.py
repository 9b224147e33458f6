"""Opens the outbox for a command; a failure ends the command with a sentence."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Final

import click

from relay.errors import OutboxError, OutboxMissingError
from relay.outbox import open_outbox
from relay.outbox.opening import open_when_there
from relay.outbox.protocol import Outbox
from relay.settings import Settings

PATIENCE_SECONDS: Final = 20
"""How long a command waits for a database that does not answer yet."""


class NoOutboxError(click.ClickException):
    """There is no outbox, and the command creates none."""


@contextmanager
def open_outbox_or_exit(
    settings: Settings, *, create: bool = False, patient: bool = False
) -> Iterator[Outbox]:
    """Open the outbox, and close it at the end; exit with a sentence if it does not open.

    Args:
        settings: name the outbox.
        create: create it if there is none.
        patient: wait for its database for ever, not only for `PATIENCE_SECONDS`.
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
            f"outbox: {error} (RELAY_OUTBOX_URL names it); `relay serve` creates one"
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

"""The command that checks whether relay could run here."""

import os
from pathlib import Path

import click

from relay.cli.app import load_settings, main
from relay.cli.outbox import NoOutboxError, open_outbox_or_exit, outbox_errors
from relay.destinations import Destination
from relay.errors import DestinationError
from relay.operations.waiting import stranded
from relay.outbox.entries import total
from relay.routes import Routes
from relay.settings import Settings


@main.command()
def check() -> None:
    """Check settings, outbox and destinations; print the URLs at which relay receives."""
    settings, routes = load_settings()
    click.echo("settings  ok")
    for destination in routes.destinations:
        _print_warnings(destination.warnings())
    _check_outbox(settings, routes)
    faults = [fault for each in routes.destinations if (fault := _check_destination(each))]
    if faults:
        raise click.ClickException("; ".join(faults))
    _print_urls(routes)


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"warning   {warning}")


def _check_outbox(settings: Settings, routes: Routes) -> None:
    try:
        with open_outbox_or_exit(settings) as outbox, outbox_errors():
            outbox.check()
            by_destination = outbox.counts()
            counts = total(by_destination)
            warnings = [*outbox.warnings(), *stranded(by_destination, routes)]
    except NoOutboxError:
        path = Path(settings.outbox.removeprefix("sqlite:///"))
        if settings.on_sqlite and not os.access(path.parent, os.W_OK | os.X_OK):
            raise click.ClickException(f"outbox: {path} cannot be created") from None
        click.echo(
            f"outbox    ok: {settings.outbox_shown} does not exist yet; `relay serve` creates it"
        )
        return
    click.echo(
        f"outbox    ok: {settings.outbox_shown} can be written; {counts.pending} pending,"
        f" {counts.delivered} delivered, {counts.dead} dead"
    )
    _print_warnings(warnings)


def _check_destination(destination: Destination) -> str | None:
    """Print what is known of the destination; return why nothing can be sent to it, if so."""
    try:
        found = destination.connect()
    except DestinationError as error:
        return f"{destination.name}: {destination.url}: {error}"
    click.echo(f"{destination.name:<9} ok: {destination.url} {found}")
    return None


def _print_urls(routes: Routes) -> None:
    sources = [route.source for route in routes.receiving]
    if not sources:
        raise click.ClickException("no source has a secret: relay would receive nothing")
    for source in sources:
        if source.takes_webhooks:
            secret = "" if source.signs_body else "/<secret>"
            click.echo(f"webhook   https://<your host>/webhooks/{source.name}{secret}")
        if source.takes_calls:
            click.echo(
                "calls     https://<your host> (the host for Segment's libraries; they add /v1)"
            )

"""The command that shows relay at work."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click

from relay.cli.app import configure_logs, load_settings, main
from relay.cli.listening import host_option, listen_or_exit, port_option
from relay.cli.outbox import open_outbox_or_exit
from relay.cli.run import run_service
from relay.demo.customers import WRITE_KEY, Customers
from relay.demo.display import Ledger, introduction
from relay.demo.sending import PATH, SECRET, Traffic
from relay.demo.standins import SegmentStandIn, StandIn, VeroStandIn, outages, playing
from relay.metrics.definitions import RECEIVER_LOG_LINES_DROPPED
from relay.outbox.entries import total
from relay.receiver.server import base_url
from relay.service import Service


@main.command()
@host_option
@port_option
def demo(host: str, port: int | None) -> None:
    """See relay work both ways, with made-up events and stand-ins for Segment and Vero."""
    ledger = Ledger()
    with (
        TemporaryDirectory(prefix="relay-demo-") as directory,
        SegmentStandIn(ledger).running() as segment,
        VeroStandIn(ledger).running() as vero,
    ):
        environ = _environ(Path(directory), segment, vero)
        settings, routes = load_settings(environ)
        configure_logs(settings, dropped=RECEIVER_LOG_LINES_DROPPED.inc)
        listener = listen_or_exit(host, settings.port if port is None else port, "--port")
        host, port = listener.getsockname()[:2]
        traffic = Traffic(host, port, ledger, Random())  # noqa: S311 (it makes up names)
        url = base_url(listener)
        customers = Customers(url, ledger, Random())  # noqa: S311 (as above)
        with playing(traffic.run, customers.run, partial(outages, segment, ledger)):
            tell_link = _link_printer(ledger, url)
            run_service(Service(settings, routes, listener, environ, tell_link=tell_link))
        with open_outbox_or_exit(settings) as outbox:
            click.echo("\n" + ledger.summary(total(outbox.counts()).pending))


def _environ(directory: Path, segment: StandIn, vero: StandIn) -> Mapping[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "PORT") if name in os.environ}
    return {
        **inherited,
        "SEGMENT_WRITE_KEY": "demo-write-key",
        "SEGMENT_HOST": segment.url,
        "RELAY_VERO_SECRET": SECRET,
        "VERO_AUTH_TOKEN": "demo-auth-token",
        "VERO_HOST": vero.url,
        "RELAY_SEGMENT_WRITE_KEY": WRITE_KEY,
        "RELAY_OUTBOX_URL": f"sqlite:///{directory}/relay.db",
        "RELAY_ALLOW_EPHEMERAL": "1",
        "RELAY_LOG_LEVEL": "warning",
        # A proxy of the environment would carry the events off this machine.
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def _link_printer(ledger: Ledger, url: str) -> Callable[[str], None]:
    """Return what prints each link that opens the console, the first with the introduction."""
    introduced = False

    def print_link(link: str) -> None:
        nonlocal introduced
        if introduced:
            ledger.announce(f"For another browser: {link}")
        else:
            introduced = True
            click.echo(introduction(url, PATH, WRITE_KEY, link))
            ledger.print_headings()

    return print_link

"""The commands that run relay and look whether it can run."""

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import timedelta
from functools import partial
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

import click
import structlog
from prometheus_client import generate_latest
from starlette.routing import Route

from relay import __version__
from relay.cli.app import (
    configure_logs,
    configured,
    limits_of,
    main,
    opened,
    reported,
    segment_of,
    settings_models,
)
from relay.companion import Companion, telling
from relay.console import HOME, Console, Endpoint
from relay.console.access import is_loopback
from relay.demo import SECRET, Ledger, StandIn, Traffic, introduction, outages, playing
from relay.errors import OutboxError, SegmentError
from relay.forwarder import Forwarder
from relay.gauges import Gauges
from relay.intake import Intake
from relay.metrics import ALL, FORWARDING, RECEIVING, WEBHOOKS
from relay.outbox import Outbox, Role
from relay.providers import Provider
from relay.receiver import BODY_SECONDS, Webhooks, create_app
from relay.retention import Retention
from relay.scraping import Scraping, serve_aside
from relay.server import base_url, listen, serve_http
from relay.settings import Settings, variables

_POSTS_SECONDS: Final = 8
"""How long posts under way have to be answered at the end, while requests have theirs."""

_log = structlog.get_logger()


_host = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
_port = click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; otherwise $PORT, or 8000."
)


@main.command()
@_host
@_port
@click.option(
    "--no-forward", is_flag=True, help="Receive only; `relay forward` forwards elsewhere."
)
def serve(host: str, port: int | None, *, no_forward: bool) -> None:
    """Receive webhooks and forward them, until SIGTERM or Ctrl-C."""
    settings, providers = configured()
    configure_logs(settings)
    listener = _listen(host, settings.port if port is None else port, "--port")
    with opened(settings) as outbox:
        with reported():
            outbox.become_sole(Role.RECEIVER)
        _run(settings, providers, outbox, listener, None if no_forward else os.environ)


@main.command()
@click.option(
    "--metrics-host", default="127.0.0.1", show_default=True, help="Address to tell metrics at."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Port to answer /metrics and /healthz on; otherwise none.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.option("--after-crash", is_flag=True, hidden=True)
def forward(
    metrics_host: str, metrics_port: int | None, *, until_stdin_closes: bool, after_crash: bool
) -> None:
    """Forward what the outbox holds, until SIGTERM or Ctrl-C.

    `relay serve` does so by itself. With PostgreSQL any number of these may run beside it.
    """
    settings, providers = configured()
    configure_logs(settings)
    # The one before it ended alone: without being asked to, or for its silence.
    _log.debug("forward.begins", after_crash=after_crash)
    if metrics_port is not None:
        listener = _listen(metrics_host, metrics_port, "--metrics-port")
        serve_aside(Scraping([FORWARDING], token=settings.metrics_token), listener)
    leave = _LeaveOnce()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    if until_stdin_closes:
        threading.Thread(target=_leave_with_stdin, daemon=True).start()
    counted = partial(generate_latest, FORWARDING)
    told = telling(counted, sys.stdout.fileno()) if until_stdin_closes else nullcontext()
    with told, opened(settings) as outbox, reported():
        # That of a relay that was killed ends by itself, when it has posted what it had in hand.
        patience = _POSTS_SECONDS + 2 if until_stdin_closes else 0
        outbox.become_sole(Role.FORWARDER, patience=timedelta(seconds=patience))
        forwarder = Forwarder(outbox, segment_of(settings), providers)
        retention = Retention(outbox, timedelta(days=settings.retention_days))
        try:
            forwarder.start()
            retention.start()
            if not until_stdin_closes:
                _log.info("forward.started", version=__version__, **settings.shown())
            _spare_the_collector()
            forwarder.broken.wait()
        finally:
            forwarder.stop(_POSTS_SECONDS)
            retention.stop()
    sys.exit(os.EX_IOERR)


@main.command()
def migrate() -> None:
    """Bring the outbox up to date with this version, and end; `relay serve` does so by itself."""
    settings, _ = configured()
    configure_logs(settings)
    with opened(settings):
        click.echo(f"outbox ok: {settings.outbox_shown} is up to date")


class _Broken:
    """Ends the process, for whatever runs it to start it again."""

    told = False

    def __call__(self) -> None:
        if not self.told:
            self.told = True
            _log.critical("serve.outbox_broken")
            os.kill(os.getpid(), signal.SIGTERM)


class _LeaveOnce:
    """Ends the process at the first signal; a second one must not cut the ending short."""

    def __init__(self) -> None:
        self._leaving = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self._leaving:
            self._leaving = True
            sys.exit(0)


def _leave_with_stdin() -> None:
    # Not through sys.stdin, whose lock this thread would hold when Python ends.
    with suppress(OSError):  # one that cannot be read is as good as closed
        while os.read(0, 1024):
            pass
    # To the main thread, which is asleep: a signal to this one would not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@main.command()
@_host
@_port
def demo(host: str, port: int | None) -> None:
    """See it work: the real relay between a stand-in for Vero and one for Segment."""
    ledger = Ledger()
    with (
        TemporaryDirectory(prefix="relay-demo-") as directory,
        StandIn(ledger).running() as segment,
    ):
        environ = {
            "SEGMENT_WRITE_KEY": "demo-write-key",
            "SEGMENT_HOST": segment.url,
            "RELAY_VERO_SECRET": SECRET,
            "RELAY_OUTBOX_URL": f"sqlite:///{directory}/relay.db",
            "RELAY_ALLOW_EPHEMERAL": "1",
            "RELAY_LOG_LEVEL": "warning",
            # A proxy that the environment names would carry the events off this machine.
            "NO_PROXY": "*",
            "no_proxy": "*",
        }
        environ |= {name: os.environ[name] for name in ("PATH", "PORT") if name in os.environ}
        settings, providers = configured(environ)
        configure_logs(settings)
        listener = _listen(host, settings.port if port is None else port, "--port")
        click.echo(introduction(base_url(listener)))
        ledger.headings()
        host, port = listener.getsockname()[:2]
        traffic = Traffic(host, port, ledger, Random())  # noqa: S311 (it makes up names)
        with opened(settings) as outbox:
            with playing(traffic.run, partial(outages, segment, ledger)):
                _run(settings, providers, outbox, listener, environ)
            click.echo("\n" + ledger.summary(outbox.counts().pending))


@main.command()
def check() -> None:
    """Check the settings, the outbox and the way to Segment; print the URL to paste into Vero."""
    settings, providers = configured()
    click.echo("settings  ok")
    with opened(settings) as outbox:
        try:
            outbox.check()
            counts = outbox.counts()
        except OutboxError as error:
            raise click.ClickException(f"outbox: {error}") from None
    click.echo(
        f"outbox    ok: {settings.outbox_shown} takes writes;"
        f" {counts.pending} pending, {counts.delivered} delivered, {counts.dead} dead"
    )
    try:
        segment_of(settings).connect()
    except SegmentError as error:
        raise click.ClickException(f"segment: {settings.segment_url}: {error}") from None
    click.echo(f"segment   ok: {settings.segment_url} can be reached")
    receiving = [provider for provider in providers if provider.configured]
    for provider in receiving:
        secret = "" if provider.signs else "/<secret>"
        click.echo(f"webhook   https://<where relay is reached>/webhooks/{provider.name}{secret}")
    if not receiving:
        raise click.ClickException("no provider has a secret: relay would receive nothing")


@main.command("settings")
def settings_table() -> None:
    """Print the table of all settings."""
    click.echo("| variable | default | meaning |\n|---|---|---|")
    for variable in variables(settings_models()):
        click.echo(f"| `{variable.name}` | {variable.default} | {variable.description} |")


@main.command("metrics")
def metrics_table() -> None:
    """Print the table of all metrics."""
    click.echo("| metric | kind | the question it answers |\n|---|---|---|")
    for metric in ALL:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        click.echo(f"| `{metric.name}{labels}` | {metric.kind} | {metric.question} |")


def _run(
    settings: Settings,
    providers: Sequence[Provider],
    outbox: Outbox,
    listener: socket.socket,
    environ: Mapping[str, str] | None,
) -> None:
    """Receive here until told to stop, and forward in a process with the environment, if any."""
    broken = _Broken()
    intake = Intake(outbox, broken=broken)
    arguments = ["forward", "--until-stdin-closes"]
    forwarder = Companion(arguments, environ, broken=broken) if environ else None

    def troubles() -> list[str]:
        return [] if forwarder is None or forwarder.running else ["the forwarder is not running"]

    url = base_url(listener)
    is_local = is_loopback(listener.getsockname()[0])
    console_url = f"{url}{HOME}" if settings.console_password or is_local else None
    console = _console(settings, providers, outbox)

    def leave() -> None:
        console.leave()
        if forwarder:
            forwarder.stop_soon()

    gauges = Gauges(outbox, max_backlog=settings.max_backlog, min_free_disk=settings.min_free_disk)
    gauges.begin()
    scraping = Scraping(
        [RECEIVING],
        gauges,
        token=settings.metrics_token,
        more=forwarder.told if forwarder else bytes,
    )
    for provider in providers:
        if provider.configured:  # from the beginning, so that the first one shows as growth
            WEBHOOKS.labels(provider.name, "unavailable", "outbox")
    webhooks = Webhooks(providers, segment_of(settings), intake)
    app = create_app(
        webhooks,
        intake=intake,
        outbox=outbox,
        limits=limits_of(settings, outbox),
        troubles=troubles,
        pages=[Route("/metrics", scraping.answer), *(console.routes if console_url else ())],
    )
    if forwarder:
        forwarder.start()
    webhook_urls = [
        f"{url}/webhooks/{provider.name}{'' if provider.signs else '/***'}"
        for provider in providers
        if provider.configured
    ]
    _log.info(
        "serve.started",
        version=__version__,
        **settings.shown(),
        webhooks=webhook_urls,
        console=console_url,
    )
    if not webhook_urls:
        _log.warning("serve.receives_nothing", missing="any provider's secret")
    _spare_the_collector()
    try:
        serve_http(
            app,
            webhooks.take_whole,
            listener,
            grace_seconds=BODY_SECONDS,
            leaving=leave,
        )
    finally:
        if forwarder:
            forwarder.stop(_POSTS_SECONDS + 1)
    if broken.told:
        sys.exit(os.EX_IOERR)
    _log.info("serve.stopped")


def _console(settings: Settings, providers: Sequence[Provider], outbox: Outbox) -> Console:
    endpoints = [
        Endpoint(
            provider.name,
            f"/webhooks/{provider.name}{'' if provider.signs else '/'}",
            settings.webhook_secret(provider.name),
        )
        for provider in providers
        if provider.configured
    ]
    return Console(
        outbox,
        providers,
        segment_of(settings),
        endpoints=endpoints,
        password=settings.console_password,
    )


def _spare_the_collector() -> None:
    """Let the garbage collector start from here, and look less often.

    Webhooks leave no garbage in cycles; looking for it was a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {error.strerror}; {option} names another"
        ) from None

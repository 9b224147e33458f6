"""The commands that run relay and look whether it can run."""

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

import click
import structlog
from prometheus_client import generate_latest

from relay import __version__
from relay.cli.app import (
    NoOutboxError,
    configure_logs,
    load_settings,
    main,
    open_outbox_or_exit,
    outbox_errors,
    settings_models,
    warn,
)
from relay.demo.demo import SECRET, Ledger, StandIn, Traffic, introduction, outages, playing
from relay.errors import CrashError, DestinationError, OutboxBrokenError, OutboxError
from relay.forwarder.forwarder import STUCK_SECONDS
from relay.forwarder.forwarders import Forwarders
from relay.forwarder.report import reporting
from relay.forwarder.retention import Retention
from relay.metrics.definitions import (
    ALL,
    FORWARDER_LOG_LINES_DROPPED,
    FORWARDING,
    RECEIVER_LOG_LINES_DROPPED,
)
from relay.outbox.entries import Role, total
from relay.process import systemd
from relay.process.files import raise_file_limit
from relay.process.threads import end_with_any_thread
from relay.receiver.metrics_page import MetricsPage, serving_aside
from relay.receiver.server import base_url, listen
from relay.service import (
    DRAIN_SECONDS,
    Service,
    end_at_once,
    end_within,
    spare_the_collector,
)
from relay.settings import variables

_END_SECONDS: Final = 15
"""How long a forwarder has to end: for its posts, and to settle them."""

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
    raise_file_limit()
    settings, routes = load_settings()
    configure_logs(settings, dropped=RECEIVER_LOG_LINES_DROPPED.inc)
    warn(routes)
    listener = _listen(host, settings.port if port is None else port, "--port")
    _run(Service(settings, routes, listener, None if no_forward else os.environ))


def _run(service: Service) -> None:
    try:
        service.run()
    except OutboxBrokenError:
        sys.exit(os.EX_IOERR)
    except CrashError:
        sys.exit(os.EX_SOFTWARE)
    except OutboxError as error:
        raise click.ClickException(f"outbox: {error}") from None


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
@click.option("--lineage", type=int, hidden=True)
def forward(
    metrics_host: str,
    metrics_port: int | None,
    *,
    until_stdin_closes: bool,
    after_crash: bool,
    lineage: int | None,
) -> None:
    """Forward what the outbox holds, until SIGTERM or Ctrl-C.

    `relay serve` does so by itself. With PostgreSQL any number of these may run beside it.
    """
    raise_file_limit()
    settings, routes = load_settings()
    configure_logs(settings, dropped=FORWARDER_LOG_LINES_DROPPED.inc)
    crashed = threading.Event()
    end_with_any_thread(crashed.set)
    aside: AbstractContextManager[None] = nullcontext()
    if metrics_port is not None:
        listener = _listen(metrics_host, metrics_port, "--metrics-port")
        aside = serving_aside(MetricsPage([FORWARDING], token=settings.metrics_token), listener)
    leave = _LeaveOnce()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    if until_stdin_closes:
        threading.Thread(target=_leave_with_stdin, daemon=True).start()
    progress = _Progress()
    report = progress.reporting() if until_stdin_closes else nullcontext()
    logged = _logged() if until_stdin_closes else nullcontext()
    with (
        logged,
        aside,
        report,
        open_outbox_or_exit(settings, patient=True) as outbox,
        outbox_errors(),
    ):
        # That of a relay that was killed ends by itself, when it has posted what it had in hand.
        patience = DRAIN_SECONDS + 2 if until_stdin_closes else 0
        outbox.lock_role(Role.FORWARDER, patience=timedelta(seconds=patience))
        if after_crash and lineage is not None:
            outbox.count_crash(lineage)
        forwarders = Forwarders(outbox, routes, lineage=lineage)
        progress.forwarders = forwarders
        retention = Retention(outbox, timedelta(days=settings.retention_days))
        try:
            forwarders.start()
            retention.start()
            if not until_stdin_closes:
                warn(routes)
                for warning in outbox.warnings():
                    _log.warning("outbox.warning", warning=warning)
                _log.info("forward.started", version=__version__, **settings.shown())
            spare_the_collector()
            systemd.notify(systemd.READY)
            while not (crashed.wait(1) or forwarders.broken):
                if forwarders.look() >= STUCK_SECONDS:
                    _log.critical("forward.stuck", seconds=STUCK_SECONDS)
                    end_at_once()
                systemd.notify(systemd.ALIVE)
        finally:
            forwarders.stop(DRAIN_SECONDS)
            retention.stop()
    sys.exit(os.EX_IOERR if forwarders.broken else os.EX_SOFTWARE)


@main.command()
def migrate() -> None:
    """Bring the outbox up to date with this version, and end; `relay serve` does so by itself."""
    settings, _ = load_settings()
    configure_logs(settings)
    with open_outbox_or_exit(settings, create=True):
        click.echo(f"outbox ok: {settings.outbox_shown} is up to date")


class _Progress:
    """How far a forwarder has come, for the process that started it."""

    forwarders: Forwarders | None = None

    def reporting(self) -> AbstractContextManager[None]:
        """Tell what it counts, and why it does not get on."""
        counted = partial(generate_latest, FORWARDING)
        return reporting(counted, sys.stdout.fileno(), problem=self._problem)

    def _problem(self) -> str | None:
        return self.forwarders.problem if self.forwarders else "it waits for the outbox"


@contextmanager
def _logged() -> Iterator[None]:
    """Log what ends a forwarder that nobody has started by hand, as all else that it says."""
    try:
        yield
    except click.ClickException as error:
        _log.error("forward.ended", error=error.message)
        sys.exit(error.exit_code)


class _LeaveOnce:
    """Ends the process at the first signal; a second one must not cut the ending short."""

    def __init__(self) -> None:
        self._leaving = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self._leaving:
            self._leaving = True
            systemd.notify(systemd.STOPPING)
            end_within(_END_SECONDS)
            sys.exit(0)


def _leave_with_stdin() -> None:
    # Not through sys.stdin, whose lock this thread would hold when Python ends.
    with suppress(OSError):  # one that cannot be read is as good as closed
        while os.read(0, 1024):
            pass
    # To the main thread, which is asleep: a signal to this one would not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_END_SECONDS)  # the main thread may hang, too
    end_at_once()


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
        settings, routes = load_settings(environ)
        configure_logs(settings, dropped=RECEIVER_LOG_LINES_DROPPED.inc)
        listener = _listen(host, settings.port if port is None else port, "--port")
        host, port = listener.getsockname()[:2]
        traffic = Traffic(host, port, ledger, Random())  # noqa: S311 (it makes up names)
        with playing(traffic.run, partial(outages, segment, ledger)):
            tell_link = partial(_tell_in_demo, ledger, base_url(listener), count())
            _run(Service(settings, routes, listener, environ, tell_link=tell_link))
        with open_outbox_or_exit(settings) as outbox:
            click.echo("\n" + ledger.summary(total(outbox.counts()).pending))


def _tell_in_demo(ledger: Ledger, url: str, links: Iterator[int], link: str) -> None:
    if next(links) == 0:
        click.echo(introduction(url, link))
        ledger.headings()
    else:
        ledger.tell(f"For another browser: {link}")


@main.command()
def check() -> None:
    """Check the settings, the outbox and the way to Segment; print the URL to paste into Vero."""
    settings, routes = load_settings()
    click.echo("settings  ok")
    for destination in routes.destinations:
        for warning in destination.warnings():
            click.echo(f"warning   {warning}")
    try:
        with open_outbox_or_exit(settings) as outbox, outbox_errors():
            outbox.check()
            counts = total(outbox.counts())
            warnings = outbox.warnings()
        said = f"takes writes; {counts.pending} pending, {counts.delivered} delivered,"
        click.echo(f"outbox    ok: {settings.outbox_shown} {said} {counts.dead} dead")
        for warning in warnings:
            click.echo(f"warning   {warning}")
    except NoOutboxError:
        path = Path(settings.outbox.removeprefix("sqlite:///"))
        if settings.on_sqlite and not os.access(path.parent, os.W_OK | os.X_OK):
            raise click.ClickException(f"outbox: {path} cannot be made") from None
        click.echo(
            f"outbox    ok: {settings.outbox_shown} is not there yet; `relay serve` makes it"
        )
    for destination in routes.destinations:
        try:
            destination.connect()
        except DestinationError as error:
            raise click.ClickException(f"{destination.name}: {destination.url}: {error}") from None
        click.echo(f"{destination.name:<9} ok: {destination.url} can be reached")
    receiving = [route.source for route in routes.receiving]
    for source in receiving:
        secret = "" if source.signs_body else "/<secret>"
        click.echo(f"webhook   https://<where relay is reached>/webhooks/{source.name}{secret}")
    if not receiving:
        raise click.ClickException("no source has a secret: relay would receive nothing")


@main.command("settings")
def settings_table() -> None:
    """Print the table of all settings."""
    click.echo("| variable | default | meaning |\n|---|---|---|")
    for variable in variables(*settings_models()):
        click.echo(f"| `{variable.name}` | {variable.default} | {variable.description} |")


@main.command("metrics")
def metrics_table() -> None:
    """Print the table of all metrics."""
    click.echo("| metric | kind | the question it answers |\n|---|---|---|")
    for metric in ALL:
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        click.echo(f"| `{metric.name}{labels}` | {metric.kind} | {metric.question} |")


def _listen(host: str, port: int, option: str) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        at_fault = option.replace("port", "host") if error.errno == errno.EADDRNOTAVAIL else option
        raise click.ClickException(
            f"cannot listen on {host}, port {port}: {error.strerror}; {at_fault} names another"
        ) from None

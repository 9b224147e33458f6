"""The commands that run relay: serve, forward, migrate."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Final

import click
import structlog
from prometheus_client import generate_latest

from relay import __version__
from relay.cli.app import configure_logs, load_settings, log_warnings, main
from relay.cli.listening import host_option, listen_or_exit, port_option
from relay.cli.outbox import open_outbox_or_exit, outbox_errors
from relay.errors import CrashError, OutboxBrokenError, OutboxError
from relay.forwarder.report import reporting
from relay.forwarder.runner import ForwarderRunner
from relay.metrics.definitions import (
    FORWARDER_LOG_LINES_DROPPED,
    FORWARDING,
    RECEIVER_LOG_LINES_DROPPED,
)
from relay.outbox.entries import Role
from relay.outbox.protocol import Outbox
from relay.process import systemd
from relay.process.files import raise_file_limit
from relay.process.threads import end_with_any_thread
from relay.receiver.metrics_page import MetricsPage, serving_metrics
from relay.routes import Routes
from relay.service import (
    DRAIN_SECONDS,
    Service,
    end_at_once,
    end_within,
    tune_garbage_collector,
)
from relay.settings import Settings

_END_SECONDS: Final = 15
"""How long a forwarder has to end: to get answers to its requests, and to settle entries."""

_log = structlog.get_logger()


@main.command()
@host_option
@port_option
@click.option(
    "--no-forward", is_flag=True, help="Receive only; `relay forward` forwards elsewhere."
)
def serve(host: str, port: int | None, *, no_forward: bool) -> None:
    """Receive webhooks and calls, and forward them, until SIGTERM or Ctrl-C."""
    raise_file_limit()
    settings, routes = load_settings()
    configure_logs(settings, dropped=RECEIVER_LOG_LINES_DROPPED.inc)
    log_warnings(routes)
    listener = listen_or_exit(host, settings.port if port is None else port, "--port")
    run_service(Service(settings, routes, listener, None if no_forward else os.environ))


def run_service(service: Service) -> None:
    """Run the service until it ends; on a failure, exit with the code for that failure."""
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
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve metrics on.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Port to serve /metrics and /healthz on; if unset, they are not served.",
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
    runner = ForwarderRunner(
        routes,
        retention=timedelta(days=settings.retention_days),
        stop_seconds=DRAIN_SECONDS,
        lineage=lineage,
        cut_short=end_at_once,
    )
    end_with_any_thread(runner.crash)
    with ExitStack() as stack:
        if metrics_port is not None:
            listener = listen_or_exit(metrics_host, metrics_port, "--metrics-port")
            page = MetricsPage([FORWARDING], token=settings.metrics_token)
            stack.enter_context(serving_metrics(page, listener))
        _leave_with_a_signal()
        if until_stdin_closes:
            stack.enter_context(_supervised(runner))
        outbox = stack.enter_context(open_outbox_or_exit(settings, patient=True))
        stack.enter_context(outbox_errors())
        # The forwarder of a relay that was killed ends only when its requests are answered.
        patience = DRAIN_SECONDS + 2 if until_stdin_closes else 0
        outbox.lock_role(Role.FORWARDER, patience=timedelta(seconds=patience))
        if after_crash and lineage is not None:
            outbox.count_crash(lineage)
        tune_garbage_collector()
        by_itself = partial(_log_start, settings, routes, outbox)
        runner.run(outbox, (lambda: None) if until_stdin_closes else by_itself)
    sys.exit(os.EX_IOERR if runner.broken else os.EX_SOFTWARE)


@main.command()
def migrate() -> None:
    """Update the outbox to this version; `relay serve` does it, too."""
    settings, _ = load_settings()
    configure_logs(settings)
    with open_outbox_or_exit(settings, create=True):
        click.echo(f"outbox ok: {settings.outbox_shown} is up to date")


def _log_start(settings: Settings, routes: Routes, outbox: Outbox) -> None:
    log_warnings(routes)
    for warning in outbox.warnings():
        _log.warning("outbox.warning", warning=warning)
    _log.info("forward.started", version=__version__, **settings.shown())


@contextmanager
def _supervised(runner: ForwarderRunner) -> Iterator[None]:
    """Report to the relay that has started this process, and end with it."""
    threading.Thread(target=_leave_with_stdin, daemon=True).start()
    counted = partial(generate_latest, FORWARDING)
    try:
        with reporting(counted, sys.stdout.fileno(), problem=runner.problem):
            yield
    except click.ClickException as error:
        # Nobody reads a sentence on a terminal here.
        _log.error("forward.ended", error=error.message)
        sys.exit(error.exit_code)


def _leave_with_a_signal() -> None:
    """End the process at the first SIGINT or SIGTERM; later ones must not cut the end short."""
    leaving = False

    def leave(_number: int, _frame: FrameType | None) -> None:
        nonlocal leaving
        if not leaving:
            leaving = True
            systemd.notify(systemd.STOPPING)
            end_within(_END_SECONDS)
            sys.exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def _leave_with_stdin() -> None:
    # Not through sys.stdin: this thread would hold its lock when Python ends.
    with suppress(OSError):  # an unreadable one counts as closed
        while os.read(0, 1024):
            pass
    # To the main thread, which sleeps: a signal to this one would not wake it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(_END_SECONDS)  # the main thread may hang, too
    end_at_once()

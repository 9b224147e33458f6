"""Builds the parts of `relay serve` from the settings, and runs them.

HTTP is served at once. Until the outbox is open, webhooks are answered 503 and `/readyz` says why.
"""

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, cast

import structlog
from starlette.routing import BaseRoute, Route

from relay import __version__
from relay.console import CALLS_PATH, HOME, Console, Endpoint, Links, print_link
from relay.errors import CrashError, OutboxBrokenError, RelayError
from relay.forwarder.forwarder import new_lineage
from relay.forwarder.supervisor import Supervisor
from relay.logs import drain
from relay.metrics.definitions import RECEIVING, WEBHOOKS
from relay.metrics.exporter import OutboxExporter
from relay.operations.waiting import stranded
from relay.outbox import open_outbox
from relay.outbox.entries import Role
from relay.outbox.opening import AwaitedOutbox
from relay.outbox.protocol import Outbox
from relay.process import systemd
from relay.process.threads import end_with_any_thread
from relay.receiver.app import create_app
from relay.receiver.backpressure import Capacity
from relay.receiver.body_reader import BODY_SECONDS
from relay.receiver.committer import Committer
from relay.receiver.endpoint import Webhooks
from relay.receiver.metrics_page import MetricsPage
from relay.receiver.server import base_url, serve_http
from relay.receiver.tracking_api import TrackingApi
from relay.routes import Routes
from relay.settings import Settings
from relay.sources import Source
from relay.sources.segment import SegmentSource

END_SECONDS: Final = 19
"""How long a shutdown may take, whatever hangs."""
DRAIN_SECONDS: Final = 8
"""How long requests to destinations have to be answered during a shutdown."""

_log: Final = structlog.get_logger()


def capacity_of(settings: Settings, outbox: Outbox) -> Capacity:
    """Return how much the outbox may hold."""
    return Capacity(outbox, max_backlog=settings.max_backlog, min_free_disk=settings.min_free_disk)


class Service:
    """A receiver, its forwarder and its pages, over one outbox.

    Args:
        settings: the settings of relay, its sources and its destinations.
        routes: every route.
        listener: the socket that accepts requests.
        environ: environment of the forwarder's process; None starts no forwarder.
        tell_link: called with each link that opens the console, if no password opens it.
    """

    def __init__(
        self,
        settings: Settings,
        routes: Routes,
        listener: socket.socket,
        environ: Mapping[str, str] | None,
        *,
        tell_link: Callable[[str], None] = print_link,
    ) -> None:
        self._settings = settings
        self._routes = routes
        self._listener = listener
        self._failure: RelayError | None = None
        self._leaving = False
        self._awaited = AwaitedOutbox(
            partial(
                open_outbox,
                settings.outbox,
                allow_ephemeral=settings.allow_ephemeral,
                create=True,
            ),
            opened=self._opened,
            unusable=self._end,
        )
        self._outbox = cast("Outbox", self._awaited)
        self._committer = Committer(self._outbox, broken=self._break)
        self._webhooks = Webhooks(routes, self._committer)
        self._tracking_api = TrackingApi(routes[SegmentSource.name], self._committer)
        self._exporter = OutboxExporter(
            self._outbox,
            [destination.name for destination in routes.destinations],
            max_backlog=settings.max_backlog,
            min_free_disk=settings.min_free_disk,
        )
        self._console = Console(
            self._outbox,
            routes,
            endpoints=[
                *(
                    Endpoint(each.name, _path(each, ""), settings.webhook_secret(each.name))
                    for each in self._taking_webhooks
                ),
                *(Endpoint(each.name, CALLS_PATH) for each in self._receiving if each.takes_calls),
            ],
            opened_by=settings.console_password or Links(base_url(listener), tell_link),
        )
        arguments = ["forward", "--until-stdin-closes", "--lineage", str(new_lineage())]
        self._forwarder = (
            Supervisor(arguments, environ, broken=self._forwarder_broke, lost=self._crash)
            if environ is not None
            else None
        )

    def run(self) -> None:
        """Receive and forward, until SIGTERM or Ctrl-C.

        Raises:
            OutboxUnusableError: the outbox will not open until an operator acts.
            OutboxBrokenError: the outbox can no longer be used in this process.
            CrashError: one of its threads has ended.
        """
        end_with_any_thread(self._crash)
        for source in self._receiving:  # from 0, so that the first one shows as growth
            WEBHOOKS.labels(source.name, "unavailable", "outbox")
        app = create_app(
            self._webhooks,
            self._tracking_api,
            committer=self._committer,
            outbox=self._outbox,
            capacity=capacity_of(self._settings, self._outbox),
            destinations=self._routes.destinations,
            problems=self._problems,
            warnings=lambda: stranded(self._outbox.counts(), self._routes),
            pages=self._pages(),
            started=self._start,
            healthy=partial(systemd.notify, systemd.ALIVE),
        )
        tune_garbage_collector()
        self._console.begin()
        try:
            serve_http(
                app,
                self._webhooks.handle_buffered,
                self._listener,
                grace_seconds=BODY_SECONDS,
                leaving=self._leave,
            )
        finally:
            if self._forwarder:
                self._forwarder.stop(DRAIN_SECONDS + 1)
            self._awaited.close()
        if self._failure:
            raise self._failure
        _log.info("serve.stopped")

    @property
    def _receiving(self) -> list[Source]:
        return [route.source for route in self._routes.receiving]

    @property
    def _taking_webhooks(self) -> list[Source]:
        return [source for source in self._receiving if source.takes_webhooks]

    def _pages(self) -> list[BaseRoute]:
        metrics_page = MetricsPage(
            [RECEIVING],
            self._exporter,
            token=self._settings.metrics_token,
            more=self._forwarder.metrics if self._forwarder else bytes,
        )
        return [Route("/metrics", metrics_page.answer), *self._console.routes]

    def _log_start(self) -> None:
        url = base_url(self._listener)
        webhooks = [f"{url}{_path(source, '***')}" for source in self._taking_webhooks]
        calls = {"calls": f"{url}/v1"} if self._tracking_api.is_served else {}
        _log.info(
            "serve.started",
            version=__version__,
            **self._settings.shown(),
            webhooks=webhooks,
            **calls,
            console=f"{url}{HOME}",
            console_opened_by="RELAY_CONSOLE_PASSWORD"
            if self._settings.console_password
            else "a link on standard output",
        )
        if not self._receiving:
            _log.warning("serve.receives_nothing", missing="any source's secret")

    def _start(self) -> None:
        self._awaited.start()
        systemd.notify(systemd.READY)

    def _opened(self, outbox: Outbox) -> None:
        """Lock the outbox for this process, and start the forwarder."""
        outbox.lock_role(Role.RECEIVER)
        for warning in outbox.warnings():
            _log.warning("outbox.warning", warning=warning)
        self._exporter.begin(outbox)
        if self._forwarder:
            self._forwarder.start()
        self._log_start()

    def _problems(self) -> list[str]:
        if self._forwarder is None:
            return []
        if not self._forwarder.running:
            return ["the forwarder is not running"]
        problem = self._forwarder.problem()
        return [f"the forwarder makes no progress: {problem}"] if problem else []

    def _leave(self) -> None:
        if not self._leaving:
            self._leaving = True
            end_within(END_SECONDS)
            systemd.notify(systemd.STOPPING)
        self._console.leave()
        if self._forwarder:
            self._forwarder.stop_soon()

    def _break(self, error: OutboxBrokenError) -> None:
        if self._failure is None:
            _log.critical("serve.outbox_broken", error=str(error))
        self._end(error)

    def _forwarder_broke(self) -> None:
        self._break(OutboxBrokenError("it can no longer be used in the forwarder's process"))

    def _crash(self) -> None:
        self._end(CrashError("a thread of relay has ended"))

    def _end(self, error: RelayError) -> None:
        """End the process; `run` raises the first error that ended it."""
        if self._failure is None:
            self._failure = error
            os.kill(os.getpid(), signal.SIGTERM)


def _path(source: Source, secret: str) -> str:
    return f"/webhooks/{source.name}" + ("" if source.signs_body else f"/{secret}")


def end_within(seconds: float) -> None:
    """End the process after so many seconds, even if its threads hang."""
    timer = threading.Timer(seconds, end_at_once)
    timer.daemon = True
    timer.start()


def end_at_once() -> None:
    """End the process at once; entries it had claimed are due again."""
    _log.critical("process.cut_short")
    drain()
    os._exit(os.EX_SOFTWARE)


def tune_garbage_collector() -> None:
    """Have the garbage collector ignore what exists by now, and run less often.

    Webhooks leave no cyclic garbage; looking for it took a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)

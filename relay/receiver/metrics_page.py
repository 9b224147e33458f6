"""The page `/metrics`, which Prometheus reads, and a server for it in a forwarder's process."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.auth import SecretCheck, bearer_token
from relay.metrics.exporter import OutboxExporter
from relay.receiver import server
from relay.receiver.single_flight import SingleFlight
from relay.receiver.wrong_credentials import CLOSE_CONNECTION, WrongCredentials

_WAIT_SECONDS: Final = 3.0


class MetricsPage:
    """The page `/metrics`.

    Args:
        registries: shown with prometheus_client's own metrics of this process.
        exporter: reads the outbox's metrics; None if they are not shown here.
        token: the token that a reader must send; None lets anyone read.
        more: returns further metrics, as text.
    """

    def __init__(
        self,
        registries: Sequence[CollectorRegistry],
        exporter: OutboxExporter | None = None,
        *,
        token: SecretStr | None,
        more: Callable[[], bytes] = bytes,
    ) -> None:
        self._registries = (REGISTRY, *registries)
        self._more = more
        self._exporter = exporter
        self._check = SecretCheck([token]) if token else None
        self._wrong_tokens = WrongCredentials("metrics", ["token"] if token else [])
        self._reading = SingleFlight(exporter.read if exporter else bytes)

    async def answer(self, request: Request) -> Response:
        """Answer `/metrics`."""
        authorization = request.headers.get("authorization", "").encode("latin-1")
        if self._check and not self._check.accepts(bearer_token(authorization) or b""):
            content = {"status": "refused", "error": "wrong or missing token"}
            headers = {"www-authenticate": "Bearer"}
            if "authorization" in request.headers and not await self._wrong_tokens.delay("token"):
                headers |= CLOSE_CONNECTION
            return JSONResponse(content, 401, headers)
        page = await run_in_threadpool(self._process_metrics) + self._more()
        if self._exporter:
            page += await self._outbox_metrics(self._exporter)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    def _process_metrics(self) -> bytes:
        return b"".join(map(generate_latest, self._registries))

    async def _outbox_metrics(self, exporter: OutboxExporter) -> bytes:
        try:
            return await self._reading.result(_WAIT_SECONDS)
        except TimeoutError:
            return exporter.away()


@contextmanager
def serving_metrics(metrics_page: MetricsPage, listener: socket.socket) -> Iterator[None]:
    """Serve `/metrics` and `/healthz` in a thread, for as long as the context lasts."""
    app = Starlette(routes=[Route("/healthz", _alive), Route("/metrics", metrics_page.answer)])
    with server.serving_in_thread(app, listener):
        yield


async def _alive(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "alive"})

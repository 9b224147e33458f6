"""The page that Prometheus reads, and a server for it where there is no other."""

import asyncio
import socket
import time
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
from relay.receiver.attempts import LATE, Attempts

_READ_EVERY_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 3.0


class MetricsPage:
    """The page `/metrics`.

    Args:
        registries: told beside what prometheus_client tells of this process.
        exporter: of the outbox, if it is told here.
        token: that a reader must bring; None lets anyone read.
        more: what else is told.
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
        self._attempts = Attempts("metrics", ["token"] if token else [])
        self._read_at = 0.0
        self._reading: asyncio.Task[bytes] | None = None

    async def answer(self, request: Request) -> Response:
        """All of it, for whoever may read it."""
        authorization = request.headers.get("authorization", "").encode("latin-1")
        if self._check and not self._check.accepts(bearer_token(authorization) or b""):
            content = {"status": "refused", "error": "wrong or missing token"}
            headers = {"www-authenticate": "Bearer"}
            if "authorization" in request.headers and not await self._attempts.hold_back("token"):
                headers |= LATE
            return JSONResponse(content, 401, headers)
        page = await run_in_threadpool(self._counted) + self._more()
        if self._exporter:
            page += await self._read(self._exporter)
        return Response(page, media_type=CONTENT_TYPE_LATEST)

    def _counted(self) -> bytes:
        return b"".join(map(generate_latest, self._registries))

    async def _read(self, exporter: OutboxExporter) -> bytes:
        # However many ask, an outbox that hangs holds one thread, and one that does not is read
        # once a second.
        if self._reading is None or (
            self._reading.done() and time.monotonic() - self._read_at >= _READ_EVERY_SECONDS
        ):
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(run_in_threadpool(exporter.read))
        await asyncio.wait([self._reading], timeout=_WAIT_SECONDS)
        return self._reading.result() if self._reading.done() else exporter.away()


@contextmanager
def serving_aside(metrics_page: MetricsPage, listener: socket.socket) -> Iterator[None]:
    """Serve the page, and `/healthz`, in a thread."""
    app = Starlette(routes=[Route("/healthz", _alive), Route("/metrics", metrics_page.answer)])
    with server.serving_aside(app, listener):
        yield


async def _alive(_request: Request) -> JSONResponse:
    return JSONResponse({"status": "alive"})

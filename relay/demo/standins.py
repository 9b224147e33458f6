"""The stand-ins for Segment, which is down now and then, and for Vero."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from relay.demo.display import Ledger

_OUTAGE_EVERY_SECONDS: Final = 30
_OUTAGE_SECONDS: Final = 4


class StandIn:
    """An HTTP server on loopback.

    Args:
        routes: what it serves.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self._app = Starlette(routes=routes)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve requests, in a thread."""
        server = uvicorn.Server(
            uvicorn.Config(self._app, lifespan="off", log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run, args=([self._listener],), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()


class SegmentStandIn(StandIn):
    """Segment's Tracking API; while it is `down` it answers 503."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__([Route("/v1/batch", self._batch, methods=["POST"])])
        self.down = False
        self._refused_some = False
        self._ledger = ledger

    async def _batch(self, request: Request) -> JSONResponse:
        body = await request.body()
        if self.down:
            self._refused_some = True
            return JSONResponse({"success": False}, status_code=503)
        after_outage, self._refused_some = self._refused_some, False
        messages = json.loads(gzip.decompress(body))["batch"]
        await run_in_threadpool(self._ledger.arrived, messages, after_outage=after_outage)
        return JSONResponse({"success": True})


class VeroStandIn(StandIn):
    """Vero's Track API, which takes everything."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__([Route("/api/v2/{path:path}", self._take, methods=["POST", "PUT"])])
        self._ledger = ledger

    async def _take(self, request: Request) -> JSONResponse:
        path, body = request.path_params["path"], json.loads(await request.body())
        await run_in_threadpool(self._ledger.requested, path, body)
        return JSONResponse({"status": 200, "message": "Success."})


def outages(segment: SegmentStandIn, ledger: Ledger, stopping: threading.Event) -> None:
    """Make Segment fail for a while, again and again, until `stopping` is set."""
    while not stopping.wait(_OUTAGE_EVERY_SECONDS):
        ledger.announce(f"Segment is down for {_OUTAGE_SECONDS} s: events wait on disk")
        segment.down = True
        stopping.wait(_OUTAGE_SECONDS)
        segment.down = False


@contextmanager
def playing(*plays: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each function in a thread; at the end, set its `stopping` and wait for it."""
    stopping = threading.Event()
    threads = [threading.Thread(target=play, args=(stopping,), daemon=True) for play in plays]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()

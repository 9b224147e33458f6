"""The stand-in for Segment, which is down now and then."""

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
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


class SegmentStandIn:
    """Segment's Tracking API on loopback; while it is `down` it answers 503."""

    def __init__(self, ledger: Ledger) -> None:
        self.down = False
        self._refused_some = False
        self._ledger = ledger
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Serve requests, in a thread."""
        app = Starlette(routes=[Route("/v1/batch", self._batch, methods=["POST"])])
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run, args=([self._listener],), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()

    async def _batch(self, request: Request) -> JSONResponse:
        body = await request.body()
        if self.down:
            self._refused_some = True
            return JSONResponse({"success": False}, status_code=503)
        after_outage, self._refused_some = self._refused_some, False
        messages = json.loads(gzip.decompress(body))["batch"]
        await run_in_threadpool(self._ledger.arrived, messages, after_outage=after_outage)
        return JSONResponse({"success": True})


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

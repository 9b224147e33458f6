"""The health pages: `/healthz` is about this process, `/readyz` about everything relay needs."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import JSONResponse

from relay.destinations import Destination
from relay.errors import OutboxError
from relay.outbox.protocol import Outbox
from relay.receiver.committer import WAIT_SECONDS, Committer
from relay.receiver.single_flight import SingleFlight

_NO_ANSWER: Final = "the outbox does not answer"
_LOG_IS_HELD: Final = (
    "a reader of the SQLite file keeps its log, of {} MiB by now, from being emptied: it grows"
    " until the reader is done"
)

_log: Final = structlog.get_logger()


class Liveness:
    """The page `/healthz`: whether the event loop runs, and webhooks are committed."""

    def __init__(self, committer: Committer, healthy: Callable[[], object]) -> None:
        self._committer = committer
        self._healthy = healthy
        self._problem: str | None = None

    async def watch(self) -> None:
        """Check once a second, until it is cancelled."""
        while True:
            problem = self._committer.check()
            if problem and not self._problem:
                _log.critical("receiver.unhealthy", reason=problem)
            self._problem = problem
            if not problem:
                self._healthy()
            await asyncio.sleep(1)

    async def answer(self, _request: Request) -> JSONResponse:
        """Answer `/healthz`."""
        if self._problem:
            content = {"status": "unhealthy", "reasons": [self._problem]}
            return JSONResponse(content, status_code=503)
        return JSONResponse({"status": "alive"})


class _Health(Struct, frozen=True):
    """Why relay is not ready, and what an operator should look at although relay is ready."""

    problems: Sequence[str]
    warnings: Sequence[str] = ()


class Readiness:
    """The page `/readyz`: whether webhooks can be stored and events forwarded.

    Both are checked at most once a second.

    Args:
        outbox: checked, by a write.
        destinations: while one is on hold, relay is not ready.
        problems: returns one sentence for each other reason why relay is not ready.
        warnings: returns one sentence for each thing that needs attention although relay is ready;
            may raise OutboxError.
    """

    def __init__(
        self,
        outbox: Outbox,
        destinations: Sequence[Destination],
        problems: Callable[[], Iterable[str]],
        warnings: Callable[[], Iterable[str]],
    ) -> None:
        self._outbox = outbox
        self._destinations = destinations
        self._problems = problems
        self._warnings = warnings
        # Anyone may ask, and each check is a write.
        self._check = SingleFlight(self._check_outbox)

    async def answer(self, _request: Request) -> JSONResponse:
        """Answer `/readyz`."""
        try:
            health = await self._check.result(WAIT_SECONDS)
        except TimeoutError:
            health = _Health([_NO_ANSWER])
        reasons = [*health.problems, *self._problems()]
        warnings = {"warnings": health.warnings} if health.warnings else {}
        if reasons:
            return JSONResponse(
                {"status": "unready", "reasons": reasons, **warnings}, status_code=503
            )
        return JSONResponse({"status": "ready", **warnings})

    def _check_outbox(self) -> _Health:
        try:
            self._outbox.check()
            held = [
                f"forwarding is on hold: {destination.title} answered {hold}"
                for destination in self._destinations
                if (hold := self._outbox.destination_status(destination.name).hold)
            ]
            warnings = [*self._warnings()]
            log = self._outbox.log_state()
        except OutboxError as error:
            return _Health([f"the outbox takes no writes: {error}"])
        if log and log.is_held:
            warnings.append(_LOG_IS_HELD.format(log.size_bytes // 2**20))
        return _Health(held, warnings)

"""Shares the result of one slow call among all callers that need it."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

FRESH_SECONDS: Final = 1.0
"""How long a result is used again, from the start of the call."""

_T = TypeVar("_T")


class SingleFlight(Generic[_T]):
    """A blocking call, made in a thread, once at a time and at most once a second.

    A call that hangs occupies only one thread, however many callers wait for it.

    Args:
        call: the blocking call.
        clock: seconds, monotonic.
    """

    def __init__(
        self, call: Callable[[], _T], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._call = call
        self._clock = clock
        self._started_at = 0.0
        self._task: asyncio.Task[_T] | None = None

    async def result(self, timeout: float) -> _T:  # noqa: ASYNC109 (the call goes on after it)
        """Return the result of the latest call, made now if there is none or it is not fresh.

        Raises:
            TimeoutError: the call has not ended after so many seconds; it goes on.
        """
        if self._task is None or (
            self._task.done() and self._clock() - self._started_at >= FRESH_SECONDS
        ):
            self._started_at = self._clock()
            self._task = asyncio.create_task(run_in_threadpool(self._call))
        task = self._task
        await asyncio.wait([task], timeout=timeout)
        if not task.done():
            raise TimeoutError
        return task.result()

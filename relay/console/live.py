"""Keeps pages up to date, by server-sent events."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from msgspec import json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from relay.errors import OutboxError

MAX_STREAMS: Final = 12
"""Pages that are kept up to date at the same time; others are when they are loaded anew."""

_LOOK_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 3_600  # a browser asks again


class Live:
    """Sends what pages show, each time that it is another."""

    def __init__(self) -> None:
        self._streams = 0
        self._leaving = False

    def leave(self) -> None:
        """End all of them, and begin no more."""
        self._leaving = True

    def stream(
        self,
        request: Request,
        render: Callable[[], Awaitable[str]],
        may_see: Callable[[], bool],
    ) -> Response:
        """What `render` returns, now and whenever it is another, for as long as one may see it.

        Raises:
            HTTPException: there are too many already.
        """
        if self._streams >= MAX_STREAMS or self._leaving:
            raise HTTPException(503, "Too many pages are kept up to date already.")
        headers = {"x-accel-buffering": "no"}  # nginx would wait for more
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=headers)
        self._streams += 1
        return _Stream(
            self._streamed(render, may_see),
            self._ended,
            media_type="text/event-stream",
            headers=headers,
        )

    def _ended(self) -> None:
        self._streams -= 1

    async def _streamed(
        self, render: Callable[[], Awaitable[str]], may_see: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        shown: str | None = None
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + _LONGEST_SECONDS
        while not self._leaving and clock() < give_up_at and may_see():
            now = shown
            with suppress(OutboxError):  # what is shown stays
                now = await render()
            if now is not None and now != shown:
                shown = now
                yield b"data: %b\n\n" % json.encode(now)
            else:
                yield b":\n\n"
            await asyncio.sleep(_LOOK_SECONDS)


class _Stream(StreamingResponse):
    """Tells when it has ended, however that comes about."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        ended: Callable[[], None],
        **options: Any,  # noqa: ANN401 (passed on)
    ) -> None:
        super().__init__(content, **options)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()

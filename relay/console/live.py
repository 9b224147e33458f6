"""Keeps pages up to date by server-sent events."""

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
"""Pages that are kept up to date at a time; others change when they are reloaded."""

_LOOK_SECONDS: Final = 1.0
_MAX_SECONDS: Final = 3_600  # then the browser connects again


class Live:
    """The streams that keep pages up to date, a limited number at a time."""

    def __init__(self) -> None:
        self._streams = 0
        self._leaving = False

    def leave(self) -> None:
        """End all streams, and begin no more."""
        self._leaving = True

    def stream(
        self,
        request: Request,
        render: Callable[[], Awaitable[str]],
        may_see: Callable[[], bool],
    ) -> Response:
        """Answer with what `render` returns, now and whenever it changes.

        Args:
            request: the browser's.
            render: returns what the page shows.
            may_see: checked before each look; the stream ends when it is False.

        Raises:
            HTTPException: there are too many streams already.
        """
        if self._streams >= MAX_STREAMS or self._leaving:
            raise HTTPException(503, "Too many pages are kept up to date already.")
        headers = {"x-accel-buffering": "no"}  # nginx would buffer it
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
        end_at = clock() + _MAX_SECONDS
        while not self._leaving and clock() < end_at and may_see():
            rendered = shown
            with suppress(OutboxError):  # the page stays as it is
                rendered = await render()
            if rendered is not None and rendered != shown:
                shown = rendered
                yield b"data: %b\n\n" % json.encode(rendered)
            else:
                yield b":\n\n"
            await asyncio.sleep(_LOOK_SECONDS)


class _Stream(StreamingResponse):
    """A response that calls back when it has ended, for whatever reason."""

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

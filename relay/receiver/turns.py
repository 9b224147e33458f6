"""Lets bodies with many events be accepted one after the other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from relay.receiver import answers

MAX_WAITING_BYTES: Final = 16 * 2**20
"""The most bytes of bodies that wait for their turns; beyond it bodies are refused."""


class Turns:
    """The turns of bodies: the events of one are accepted before those of the next.

    The events take several times the memory of the body that they came in.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._waiting_bytes = 0

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait for the turn of a body of so many bytes; it lasts as long as the context.

        Raises:
            RequestRefusedError: too many bytes wait already.
        """
        if self._waiting_bytes + size > MAX_WAITING_BYTES:
            raise answers.too_many_bodies(is_read=True)
        self._waiting_bytes += size
        try:
            async with self._lock:
                yield
        finally:
            self._waiting_bytes -= size

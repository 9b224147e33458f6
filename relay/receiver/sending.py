"""Sends answers over ASGI."""

import asyncio
from contextlib import suppress

from starlette.types import Receive, Send

from relay.receiver.answers import Answer
from relay.receiver.body_reader import BODY_SECONDS
from relay.receiver.buffered import Headers


async def send_answer(
    send: Send, answer: Answer, headers: Headers = (), *, drain: Receive | None = None
) -> None:
    """Send the answer; with `drain`, let the sender finish before the connection is closed.

    A connection closed while its sender still sends is reset, and the answer may be lost.

    Args:
        send: sends a part of the answer.
        answer: the answer.
        headers: sent besides those of the answer.
        drain: receives the rest of the request.
    """
    status, own, body = answer.encoded()
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    if drain:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        body = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(BODY_SECONDS):
                while (await drain()).get("more_body", False):
                    pass
    await send({"type": "http.response.body", "body": body})


async def send_no_content(send: Send, headers: Headers) -> None:
    """Send the answer 204 with these headers."""
    await send({"type": "http.response.start", "status": 204, "headers": [*headers]})
    await send({"type": "http.response.body", "body": b""})

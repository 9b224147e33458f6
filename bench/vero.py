"""A stand-in for Vero, as `uvicorn bench.vero:app`: takes every request after a while.

`BENCH_VERO_MILLISECONDS` says after how long. `/count` says how many requests it has taken, and
`/people` about how many people they were.
"""

import asyncio
import os
from typing import Any, Final

import msgspec

_SECONDS: Final = int(os.environ.get("BENCH_VERO_MILLISECONDS", "0")) / 1000
_HEADERS: Final = [(b"content-type", b"application/json")]
_ANSWER: Final = b'{"status":200,"message":"Success."}'

_people: set[str] = set()
_count = 0


class _Identity(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    identity: _Identity


_read: Final = msgspec.json.Decoder(_Event).decode


async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 (ASGI)
    """Take a request, or say what was taken."""
    global _count  # noqa: PLW0603 (one process, one count)
    if scope["type"] != "http":
        return
    answer = {"/count": str(_count), "/people": str(len(_people))}.get(scope["path"])
    if answer is None:
        body = b""
        more = True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await asyncio.sleep(_SECONDS)
        _count += 1
        _people.add(_read(body).identity.id)
    content = _ANSWER if answer is None else answer.encode()
    headers = [*_HEADERS, (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})

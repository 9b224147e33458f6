"""The stand-in for Segment, `python -m bench.segment --port N`, and the bench's view of it.

It shares the cores with what is measured, so it keeps bodies as they come and reads none of them.
"""

import asyncio
import gzip
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Final, cast

import click
import httptools
import msgspec
import uvloop

from bench.webhooks import number_of

_POLL_SECONDS: Final = 0.1
_PAUSE_SECONDS: Final = 0.3
_LENGTH_BYTES: Final = 4
_GZIP: Final = b"\x1f\x8b"


class _Properties(msgspec.Struct):
    email_id: str


class _Message(msgspec.Struct):
    properties: _Properties


class _Payload(msgspec.Struct):
    batch: list[_Message]


_decode = msgspec.json.Decoder(_Payload).decode


class StandIn:
    """The stand-in, in another process."""

    def __init__(self, port: int) -> None:
        self._port = port

    @property
    def url(self) -> str:
        """The value of `SEGMENT_HOST`."""
        return f"http://127.0.0.1:{self._port}"

    def set_well(self, *, well: bool) -> None:
        """Have it answer 200 from now on, or 503."""
        self._ask("/well" if well else "/outage")

    def delivered(
        self, first: int, complete: Callable[[Counter[int]], bool], *, patience: float
    ) -> Counter[int]:
        """Return how often each webhook from number `first` on was delivered.

        It returns when they are complete, or when nothing has come for `patience` seconds.
        """
        found: Counter[int] = Counter()
        count, since = -1, 0.0
        while True:
            latest, now = int(self._ask("/count")), time.monotonic()
            if latest != count:
                count, since = latest, now
            elif now - since >= _PAUSE_SECONDS:
                found.update(number for number in self._take() if number >= first)
                if complete(found) or now - since >= patience:
                    return found
            time.sleep(_POLL_SECONDS)

    def _take(self) -> Iterator[int]:
        """Yield the number of each message accepted since the last call."""
        answer = self._ask("/take")
        while answer:
            end = _LENGTH_BYTES + int.from_bytes(answer[:_LENGTH_BYTES], "big")
            body, answer = bytes(answer[_LENGTH_BYTES:end]), answer[end:]
            payload = gzip.decompress(body) if body.startswith(_GZIP) else body
            for message in _decode(payload).batch:
                yield number_of(message.properties.email_id)

    def _ask(self, path: str) -> memoryview:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            return memoryview(connection.getresponse().read())
        finally:
            connection.close()


class _State:
    """The state that all connections to the stand-in share."""

    def __init__(self) -> None:
        self.well = True
        self.count = 0
        self.bodies: list[bytes] = []

    def answer(self, path: bytes, body: bytes) -> tuple[int, bytes]:
        match path:
            case b"/v1/batch" if self.well:
                self.count += 1
                self.bodies.append(body)
                return 200, b'{"success":true}'
            case b"/v1/batch":
                return 503, b'{"code":"unavailable","message":"outage"}'
            case b"/well" | b"/outage":
                self.well = path == b"/well"
                return 200, b""
            case b"/count":
                return 200, b"%d" % self.count
            case b"/take":
                bodies, self.bodies = self.bodies, []
                return 200, b"".join(len(b).to_bytes(_LENGTH_BYTES, "big") + b for b in bodies)
            case _:
                return 404, b""


class _Connection(asyncio.Protocol):
    """A connection, with the callbacks of asyncio and of httptools."""

    def __init__(self, state: _State) -> None:
        self._state = state
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path = b""
        self._body: list[bytes] = []

    def on_url(self, path: bytes) -> None:
        self._path += path

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status, content = self._state.answer(self._path, b"".join(self._body))
        head = b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n" % (status, len(content))
        self._transport.write(head + content)


async def _serve(port: int) -> None:
    state = _State()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


@click.command()
@click.option("--port", type=int, required=True)
def main(port: int) -> None:
    """Answer as Segment's /v1/batch does."""
    uvloop.run(_serve(port))


if __name__ == "__main__":
    main()

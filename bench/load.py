"""The loads: wrk, or a client of our own that knows exactly which webhooks were answered 2xx."""

import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import uvloop

from bench.webhooks import body, templates

_WRK: Final = shutil.which("wrk")
_SCRIPT: Final = Path(__file__).with_name("webhooks.lua")

TOOL: Final = "wrk" if _WRK else "the bench's own client (wrk is not installed)"


@dataclass(frozen=True)
class Load:
    """What a load saw.

    Attributes:
        accepted: webhooks answered 2xx.
        per_second: of them.
        p50: milliseconds to an answer, the median.
        p99: the same, exceeded by one in a hundred.
        failed: webhooks answered otherwise or not at all.
    """

    accepted: int
    per_second: float
    p50: float
    p99: float
    failed: int


def load(url: str, *, connections: int, seconds: float, first: int) -> Load:
    """Post webhooks, numbered from `first` on, as quickly as they are answered."""
    if _WRK:
        return _wrk(_WRK, url, connections=connections, seconds=seconds, first=first)
    exact = post(url, connections=connections, seconds=seconds, first=first)
    percentiles = statistics.quantiles(exact.milliseconds, n=100)
    accepted = len(exact.accepted)
    return Load(
        accepted, accepted / exact.seconds, percentiles[49], percentiles[98], failed=exact.failed
    )


def _wrk(wrk: str, url: str, *, connections: int, seconds: float, first: int) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{template}\n" for template in templates())
        file.flush()
        options = ("-t1", f"-c{connections}", f"-d{round(seconds)}s", "-s", str(_SCRIPT))
        run = subprocess.run(  # noqa: S603 (our own command)
            (wrk, *options, url, "--", file.name, str(first)),
            capture_output=True,
            check=False,
            text=True,
        )
    if run.returncode:
        raise click.ClickException(f"wrk: {run.stderr or run.stdout}")
    told = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    accepted = told["requests"] - told["refused"]
    return Load(
        accepted,
        accepted / told["seconds"],
        told["p50"],
        told["p99"],
        failed=told["refused"] + told["broken"],
    )


@dataclass
class Posted:
    """What the exact client saw: the numbers accepted, and the time each answer took."""

    accepted: set[int] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0


def post(
    url: str,
    *,
    connections: int,
    seconds: float,
    first: int,
    kill: Callable[[], None] | None = None,
) -> Posted:
    """Post webhooks for so long; with `kill`, call it then, in the middle of the requests."""
    return uvloop.run(_post(url, connections, seconds, first, kill))


async def _post(
    url: str, connections: int, seconds: float, first: int, kill: Callable[[], None] | None
) -> Posted:
    posted = Posted()
    numbers = count(first)
    bodies = templates()
    address = urlsplit(url)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: %d\r\n\r\n"
    started = time.monotonic()
    end = started + seconds

    async def keep_posting() -> None:
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            while kill or time.monotonic() < end:
                number = next(numbers)
                content = body(bodies[number % len(bodies)], number)
                asked = time.perf_counter()
                writer.write((head % len(content)).encode() + content)
                status = await _status(reader)
                posted.milliseconds.append((time.perf_counter() - asked) * 1000)
                if 200 <= status < 300:  # noqa: PLR2004 (2xx)
                    posted.accepted.add(number)
                else:
                    posted.failed += 1
            writer.close()
        except (OSError, EOFError):
            posted.failed += 1  # killed, or else it shows

    if kill:
        asyncio.get_running_loop().call_later(seconds, kill)
    await asyncio.gather(*(keep_posting() for _ in range(connections)))
    posted.seconds = time.monotonic() - started
    return posted


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of one answer, which is read to its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split(maxsplit=2)[1])

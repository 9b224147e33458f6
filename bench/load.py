"""Loads: wrk, or a client of the bench's own that knows exactly which webhooks got a 2xx."""

import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import uvloop

from bench.webhooks import body

_WRK: Final = shutil.which("wrk")
_SCRIPT: Final = Path(__file__).with_name("webhooks.lua")

TOOL: Final = "wrk" if _WRK else "the bench's own client (wrk is not installed)"


@dataclass(frozen=True)
class Load:
    """The result of a load.

    Attributes:
        accepted: webhooks answered 2xx.
        per_second: webhooks answered 2xx, by the second.
        p50: median of the milliseconds to an answer.
        p99: milliseconds that one answer in a hundred exceeds.
        failed: webhooks answered otherwise or not at all.
    """

    accepted: int
    per_second: float
    p50: float
    p99: float
    failed: int


def load(url: str, bodies: Sequence[str], *, connections: int, seconds: float, first: int) -> Load:
    """Post the bodies in turn, numbered from `first` on, each once the one before is answered."""
    if _WRK:
        return _wrk(_WRK, url, bodies, connections=connections, seconds=seconds, first=first)
    exact = post(url, bodies, connections=connections, seconds=seconds, first=first)
    percentiles = statistics.quantiles(exact.milliseconds, n=100)
    accepted = len(exact.accepted)
    return Load(
        accepted, accepted / exact.seconds, percentiles[49], percentiles[98], failed=exact.failed
    )


def _wrk(
    wrk: str, url: str, bodies: Sequence[str], *, connections: int, seconds: float, first: int
) -> Load:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{template}\n" for template in bodies)
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
    result = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    accepted = result["requests"] - result["refused"]
    return Load(
        accepted,
        accepted / result["seconds"],
        result["p50"],
        result["p99"],
        failed=result["refused"] + result["broken"],
    )


@dataclass
class Posted:
    """The result of the exact client: the numbers accepted, and the time that each answer took."""

    accepted: set[int] = field(default_factory=set)
    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0


def post(
    url: str,
    bodies: Sequence[str],
    *,
    connections: int,
    seconds: float,
    first: int,
    kill: Callable[[], None] | None = None,
) -> Posted:
    """Post the bodies in turn for so many seconds; then call `kill`, if given, amid requests."""
    return uvloop.run(_post(url, bodies, connections, seconds, first, kill))


async def _post(
    url: str,
    bodies: Sequence[str],
    connections: int,
    seconds: float,
    first: int,
    kill: Callable[[], None] | None,
) -> Posted:
    posted = Posted()
    numbers = count(first)
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
            posted.failed += 1  # as after a kill; otherwise it shows in the table

    if kill:
        asyncio.get_running_loop().call_later(seconds, kill)
    await asyncio.gather(*(keep_posting() for _ in range(connections)))
    posted.seconds = time.monotonic() - started
    return posted


async def _status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; return its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head.split(maxsplit=2)[1])

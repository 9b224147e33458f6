"""Measures the way from Segment's libraries to Vero: `python -m bench.calls`.

1. What it costs to accept a call, beside a webhook, in rounds that alternate.
2. How many requests a second Vero gets, if each takes 50 ms.
3. How much longer the calls of many people take if one person has as many.

Load, relay and stand-in share the cores. Compare figures within one run only.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.request import urlopen

import click

from bench import load
from bench.peers import Process, uvicorn
from bench.webhooks import templates
from relay.destinations.vero import VeroDestination
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.outbox import open_outbox
from relay.outbox.entries import Arrival
from relay.routes import Route
from relay.sources.segment import SegmentSource
from relay.sources.segment.settings import SegmentSourceSettings

_KEY: Final = "a-write-key-for-the-bench"
_SECRET: Final = "a-secret-for-the-bench"  # noqa: S105 (guards nothing)
_GROUP: Final = 1_000
_LOAD_CONNECTIONS: Final = 64
_PATIENCE_SECONDS: Final = 60


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=8, show_default=True)
@click.option("--people", type=click.IntRange(100), default=2_000, show_default=True)
@click.option("--lane", type=click.IntRange(1), default=100_000, show_default=True)
def main(rounds: int, seconds: int, people: int, lane: int) -> None:
    """Measure the way from Segment's libraries to Vero."""
    _accept(rounds, seconds)
    taken, alone = _forward(people, milliseconds=50)
    _, beside = _forward(people, same=people, milliseconds=50)
    click.echo(
        f"\n8 connections, 50 ms a request: {taken / alone:,.0f} requests a second;"
        f" beside as many of one person: {beside / alone:.2f}x"
    )
    _, alone = _forward(lane)
    _, beside = _forward(lane, same=lane)
    click.echo(
        f"calls of {lane:,} people: {alone:.0f} s alone; {beside:.0f} s beside as many of one"
        f" person: {beside / alone:.2f}x"
    )


def _accept(rounds: int, seconds: int) -> None:
    """Print what it costs to accept webhooks, and calls."""
    loads = {
        "webhook": (f"/webhooks/vero/{_SECRET}", templates()),
        "call": ("/v1/track", [_call()]),
    }
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in loads}
    for _ in range(rounds):
        for name, (path, bodies) in loads.items():
            with tempfile.TemporaryDirectory(prefix="relay-bench-") as directory:
                environ = _environ(Path(directory), "http://127.0.0.1:1")
                arguments = ("-m", "relay", "serve", "--no-forward")
                with Process(arguments, environ, Path(directory, "relay.log")) as relay:
                    load.load(
                        relay.url + path, bodies, connections=_LOAD_CONNECTIONS, seconds=2, first=1
                    )
                    before = relay.cpu_seconds()
                    result = load.load(
                        relay.url + path,
                        bodies,
                        connections=_LOAD_CONNECTIONS,
                        seconds=seconds,
                        first=10**9,
                    )
                    cpu = (relay.cpu_seconds() - before) * 1e6 / max(1, result.accepted)
                    costs[name].append((result.per_second, cpu))
    for name, each in costs.items():
        rate, cpu = (statistics.median(values) for values in zip(*each, strict=True))
        click.echo(f"{name}s accepted: {rate:,.0f} a second, {cpu:.0f} us of CPU each")
    pairs = zip(costs["call"], costs["webhook"], strict=True)
    ratio = statistics.median(call[1] / webhook[1] for call, webhook in pairs)
    click.echo(f"CPU of a call: {ratio:.2f}x that of a webhook")


def _forward(people: int, *, same: int = 0, milliseconds: int = 0) -> tuple[int, float]:
    """Forward a call of each of the people, and `same` of one more.

    Return how many requests were taken until the people's calls all were, and in how many seconds.
    """
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        directory = Path(name)
        stand_in = {"BENCH_VERO_MILLISECONDS": str(milliseconds)}
        with Process(uvicorn("bench.vero:app"), stand_in, directory / "vero.log") as vero:
            environ = _environ(directory, vero.url)
            _fill(environ["RELAY_OUTBOX_URL"], people, same)
            started = time.monotonic()
            command = ("-m", "relay", "forward")
            with Process(command, environ, directory / "forward.log", listens=False):
                for _ in _while_growing(vero):
                    if _ask(vero, "/people") >= people + bool(same):
                        return _ask(vero, "/count"), time.monotonic() - started
    raise click.ClickException("not all was forwarded")


def _while_growing(vero: Process) -> Iterator[None]:
    count, since = -1, time.monotonic()
    while time.monotonic() - since < _PATIENCE_SECONDS:
        yield
        if (latest := _ask(vero, "/count")) != count:
            count, since = latest, time.monotonic()
        time.sleep(0.05)


def _ask(vero: Process, path: str) -> int:
    with urlopen(vero.url + path, timeout=10) as response:  # noqa: S310 (the stand-in's)
        return int(response.read())


def _fill(url: str, people: int, same: int) -> None:
    """Store the calls, those of the one person first."""
    with closing(open_outbox(url, allow_ephemeral=True, create=True)) as outbox:
        group: list[Arrival] = []
        for arrival in _arrivals(people, same):
            group.append(arrival)
            if len(group) == _GROUP:
                outbox.add(group)
                group = []
        outbox.add(group)


def _arrivals(people: int, same: int) -> Iterator[Arrival]:
    source = SegmentSource(SegmentSourceSettings())
    route = Route(source, VeroDestination(VeroDestinationSettings()))
    now = datetime.now(UTC)
    for number in range(people + same):
        person = "the-one" if number < same else str(number)
        arrival = route.accept((_call() % (person, number)).encode(), now)
        assert isinstance(arrival, Arrival)  # noqa: S101 (no such call is ignored)
        yield arrival


def _call() -> str:
    """Return a call with two places for numbers: the person's, and the call's own."""
    return json.dumps(
        {
            "type": "track",
            "userId": "customer-%s",
            "event": "Order Completed",
            "messageId": "bench-%s",
            "timestamp": datetime.now(UTC).isoformat(),
            "properties": {"plan": "pro", "price": 12.5, "items": [{"sku": "a"}, {"sku": "b"}]},
            "context": {"library": {"name": "bench", "version": "1"}},
            "writeKey": _KEY,
        },
        separators=(",", ":"),
    )


def _environ(directory: Path, vero_url: str) -> Mapping[str, str]:
    return {
        "SEGMENT_WRITE_KEY": "bench",
        "SEGMENT_HOST": "http://127.0.0.1:1",
        "RELAY_VERO_SECRET": _SECRET,
        "VERO_AUTH_TOKEN": "bench",
        "VERO_HOST": vero_url,
        "VERO_RATE": "1000",
        "RELAY_SEGMENT_WRITE_KEY": _KEY,
        "RELAY_OUTBOX_URL": f"sqlite:///{directory}/relay.db",
        "RELAY_ALLOW_EPHEMERAL": "1",
        "RELAY_LOG_LEVEL": "warning",
    }


if __name__ == "__main__":
    main()

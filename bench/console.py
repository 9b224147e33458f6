"""Times the console's pages over a full outbox: `python -m bench.console`.

Fills an outbox with a month of events, some of them dead letters and some still pending, and asks a
real relay for each page several times.
"""

import json
import statistics
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from random import Random
from urllib.parse import urlencode

import click
from tabulate import tabulate

from bench.peers import Process
from relay.destinations.segment import Segment, SegmentSettings
from relay.outbox import open_outbox
from relay.outbox.counters import APART
from relay.outbox.entries import Arrival
from relay.outbox.protocol import Outbox
from relay.routes import Route
from relay.sources.vero import Vero, VeroSettings

_KINDS = ("sent", "delivered", "opened", "clicked", "unsubscribed", "snoozed")
_WEIGHTS = (400, 380, 180, 28, 2, 10)
_MONTH = timedelta(days=30)
_PEOPLE = 50_000
_GROUP = 2_000
_PENDING = 20_000
_TIMES = 5
_RARELY = 20_011
_PASSWORD = "only-for-the-bench"  # noqa: S105 (made up)
_CREDENTIALS = "Basic " + b64encode(f":{_PASSWORD}".encode()).decode()


@click.command()
@click.option(
    "--outbox-url", help="URL of an empty database; otherwise a SQLite file made for this."
)
@click.option("--entries", type=click.IntRange(1), default=1_000_000, show_default=True)
def main(outbox_url: str | None, entries: int) -> None:
    """Time the console's pages."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-", dir=Path.cwd()) as directory:
        url = outbox_url or f"sqlite:///{directory}/relay.db"
        with closing(open_outbox(url, create=True)) as outbox:
            _fill(outbox, entries)
        environ = {
            "SEGMENT_WRITE_KEY": "bench",
            "RELAY_VERO_SECRET": "bench-0123456789abcdef",
            "RELAY_OUTBOX_URL": url,
            "RELAY_LOG_LEVEL": "error",
            "RELAY_CONSOLE_PASSWORD": _PASSWORD,
        }
        command = ("-m", "relay", "serve", "--no-forward")
        with Process(command, environ, Path(directory, "relay.log")) as relay:
            rows = [_timed(relay.port, path) for path in _paths(entries)]
    click.echo(tabulate(rows, ("page", "first", f"median of {_TIMES}, ms"), floatfmt=".0f"))


def _fill(outbox: Outbox, entries: int) -> None:
    """Store so many events, and settle all but the latest of them."""
    arrivals = _arrivals(entries)
    for start in range(0, entries, _GROUP):
        outbox.add([next(arrivals) for _ in range(min(_GROUP, entries - start))])
    while outbox.pending_exceed(_PENDING):
        outbox.ack(outbox.claim("segment", _GROUP, lease=timedelta(minutes=5)))
    outbox.aggregate_counters(datetime.now(UTC) - APART)  # as a forwarder does each minute


def _arrivals(entries: int) -> Iterator[Arrival]:
    rng = Random(7)  # noqa: S311 (it makes up events)
    segment = Segment(SegmentSettings.model_validate({"SEGMENT_WRITE_KEY": "bench"}))
    route = Route(Vero(VeroSettings()), segment)
    first = datetime.now(UTC) - _MONTH
    for number in count():
        at = first + _MONTH * min(1.0, number / entries)
        (kind,) = rng.choices(_KINDS, _WEIGHTS)
        if number % _RARELY == 0:
            kind = "bounced"
        person = f"person{number % _PEOPLE}"
        document = {
            "type": kind,
            f"{kind}_at": int(at.timestamp()),
            "message_id": f"{number}@mail.example.com",
            "user": {"id": person, "email": f"{person}@example.com"},
            "campaign": {"id": number % 50, "name": "Garden in spring", "type": "newsletter"},
            "user_agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X)",
        }
        arrival = route.accept(json.dumps(document).encode(), at)
        if isinstance(arrival, Arrival):
            yield arrival


def _paths(entries: int) -> list[str]:
    long_ago = datetime.now(UTC) - _MONTH / 2
    searches: list[dict[str, object]] = [
        {},
        {"before": entries // 2},
        {"state": "pending"},
        {"state": "dead"},
        {"state": "delivered"},
        {"reason": "unknown_type"},
        {"collection": "Email Opened"},
        {"collection": "Email Bounced"},
        {"collection": "Email Bounced", "state": "pending"},
        {"since": f"{long_ago:%Y-%m-%dT%H:%M}"},
        {"until": f"{long_ago:%Y-%m-%dT%H:%M}"},
        {"q": "person77@example.com"},
        {"q": "person77"},
        {"q": "nobody@example.com"},
        {"q": f"{entries // 3}@mail.example.com"},
    ]
    events = [f"/events?{urlencode(search)}" for search in searches]
    return ["/", *events, f"/events/{entries // 2}", "/dead", "/playground"]


def _timed(port: int, path: str) -> tuple[str, float, float]:
    first, *others = (_milliseconds(port, path) for _ in range(1 + _TIMES))
    return path, first, statistics.median(others)


def _milliseconds(port: int, path: str) -> float:
    started = time.perf_counter()
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", f"/console{path}", headers={"Authorization": _CREDENTIALS})
        response = connection.getresponse()
        response.read()
        if response.status != 200:  # noqa: PLR2004 (of HTTP)
            raise click.ClickException(f"{path} was answered {response.status}")
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    main()

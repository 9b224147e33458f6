"""Many forwarders on one PostgreSQL outbox: `python -m bench.forwarders --outbox-url URL`.

Fills the outbox, lets the forwarders empty it, and counts how often each message arrived, and how
fast. Segment's limit, 50 requests of 100 messages a second, holds for all forwarders together.
"""

import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import click

from bench.peers import STAND_IN, Process
from bench.segment import StandIn
from bench.webhooks import body, templates
from relay.outbox import open_outbox
from relay.outbox.entries import Arrival

_GROUP = 1_000
_FIRST = 10**9


@click.command()
@click.option("--outbox-url", required=True, help="URL of an empty database, for this alone.")
@click.option("--entries", type=click.IntRange(1), default=100_000, show_default=True)
@click.option("--forwarders", type=click.IntRange(1), default=10, show_default=True)
def main(outbox_url: str, entries: int, forwarders: int) -> None:
    """Empty an outbox with many forwarders, and count what arrives."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name, ExitStack() as processes:
        directory = Path(name)
        stand_in_process = Process(STAND_IN, {}, directory / "segment.log")
        stand_in = StandIn(processes.enter_context(stand_in_process).port)
        added_in = _fill(outbox_url, entries)
        click.echo(f"{entries:,} entries added in {added_in:.0f} s")
        environ = {
            "SEGMENT_WRITE_KEY": "bench",
            "SEGMENT_HOST": stand_in.url,
            "RELAY_OUTBOX_URL": outbox_url,
        }
        started = time.monotonic()
        running = [
            processes.enter_context(
                Process(
                    ("-m", "relay", "forward"), environ, directory / f"{number}.log", listens=False
                )
            )
            for number in range(forwarders)
        ]
        found = stand_in.delivered(_FIRST, lambda found: len(found) >= entries, patience=90)
        took = time.monotonic() - started
        cpu = sum(process.cpu_seconds() for process in running)
        repeated = sum(found.values()) - len(found)
        click.echo(
            f"{forwarders} forwarders: {len(found):,} delivered in {took:.0f} s"
            f" ({len(found) / took:,.0f} a second), {repeated:,} of them twice,"
            f" {max(0, entries - len(found)):,} not at all;"
            f" {cpu * 1e6 / entries:.0f} us of CPU each, without the server's"
        )


def _fill(outbox_url: str, entries: int) -> float:
    """Store so many webhooks; return how many seconds that took."""
    kinds = templates()
    outbox = open_outbox(outbox_url, create=True)
    started = time.monotonic()
    for first in range(_FIRST, _FIRST + entries, _GROUP):
        now = datetime.now(UTC)
        outbox.add(
            [
                Arrival(
                    source="vero",
                    destination="segment",
                    message_id=f"vero-{number}",
                    received_at=now,
                    body=body(kinds[number % len(kinds)], number),
                )
                for number in range(first, min(first + _GROUP, _FIRST + entries))
            ]
        )
    outbox.close()
    return time.monotonic() - started


if __name__ == "__main__":
    main()

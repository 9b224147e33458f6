"""Measures what relay and the script one would write instead cost and lose: `make bench`.

All peers get the same load and forward to the same stand-in for Segment, in rounds that alternate
between the peers. Load, peer and stand-in share the cores. Compare figures within one run only.
"""

import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from operator import ge, le
from pathlib import Path
from typing import Final

import apsw
import click

from bench.load import TOOL
from bench.measure import SCENARIOS, Cost, Loss, Scenario, cost, loss
from bench.peers import BARE, RELAY, SCRIPT, STAND_IN, Process
from bench.segment import StandIn

_PEERS: Final = (SCRIPT, RELAY, BARE)
_BARS: Final = (
    ("CPU", "cpu", "<=", 0.7),
    ("webhooks/s", "per_second", ">=", 1.8),
    ("p99", "p99", "<=", 1.0),
)
_LEGEND: Final = """\
CPU: user and system time of all processes of a peer until what it accepted is delivered.
In brackets: the ratio to the script in the same round. Figures and ratios are medians.
relay sends at most 50 requests a second, as Segment asks; the rest waits in its outbox."""
_SYNCS: Final = 200


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--seconds", type=click.IntRange(1), default=8, show_default=True, help="Of load in a round."
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 64),
    show_default=True,
    help="Of the load; may be given several times.",
)
def main(rounds: int, seconds: int, connections: tuple[int, ...]) -> None:
    """Measure relay beside the script one would write instead."""
    if not Path("/proc/self/stat").exists():
        raise click.ClickException("CPU is read from /proc, which only Linux has")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        tempfile.TemporaryDirectory(prefix="relay-bench-") as directory,
        Process(STAND_IN, {}, Path(directory, "segment.log")) as process,
    ):
        click.echo(f"{_machine(Path(directory))}\n\n{_LEGEND}")
        stand_in = StandIn(process.port)
        bars: list[str] = []
        for number in sorted(set(connections)):
            costs = _costs(stand_in, rounds=rounds, seconds=seconds, connections=number)
            click.echo(f"\nconnections: {number}; rounds: {rounds} of {seconds} s")
            _print_costs(costs)
            bars = [f"\nat {number} connections", *_bars(costs)]
        losses = {}
        for scenario in SCENARIOS:
            for peer in (SCRIPT, RELAY):
                _progress(f"{scenario.name}: {peer.name}")
                losses[scenario, peer.name] = loss(peer, stand_in, scenario)
        click.echo("\nlost")
        _print_losses(losses)
        click.echo("\n".join(bars))


def _machine(directory: Path) -> str:
    took = []
    with (directory / "sync").open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            file.write(bytes(1024))
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - started) * 1000)
    return (
        f"{os.cpu_count()} cores (load average {os.getloadavg()[0]:.1f} at the start),"
        f" Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()},"
        f" fdatasync {statistics.median(took):.2f} ms, load by {TOOL}"
    )


def _costs(
    stand_in: StandIn, *, rounds: int, seconds: int, connections: int
) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {peer.name: [] for peer in _PEERS}
    for number in range(1, rounds + 1):
        for peer in _PEERS:
            _progress(f"connections: {connections}, round {number}: {peer.name}")
            costs[peer.name].append(cost(peer, stand_in, connections=connections, seconds=seconds))
    return costs


def _each(rounds: Sequence[Cost], name: str) -> list[float]:
    return [float(getattr(cost, name)) for cost in rounds]


def _ratio(costs: dict[str, list[Cost]], peer: str, name: str) -> float:
    """Return the median of the rounds' ratios: what disturbs a whole round cancels out."""
    rounds = zip(_each(costs[peer], name), _each(costs[SCRIPT.name], name), strict=True)
    return statistics.median(own / script for own, script in rounds)


def _print_costs(costs: dict[str, list[Cost]]) -> None:
    columns = (
        ("CPU us/webhook", "cpu", 0),
        ("webhooks/s", "per_second", 0),
        ("p50 ms", "p50", 2),
        ("p99 ms", "p99", 2),
        ("peak RSS MB", "rss", 0),
    )
    rows = []
    for peer, rounds in costs.items():
        row = [peer]
        for _, name, digits in columns:
            value = statistics.median(_each(rounds, name))
            row.append(f"{value:,.{digits}f} ({_ratio(costs, peer, name):.2f}x)")
        row += [f"{sum(_each(rounds, name)):,.0f}" for name in ("lost", "failed")]
        rows.append(row)
    _print_table(["", *(title for title, *_ in columns), "lost", "not 2xx"], rows)


def _print_losses(losses: dict[tuple[Scenario, str], Loss]) -> None:
    _print_table(
        ["", "", "accepted", "lost", "repeated"],
        [
            [scenario.name, peer, f"{loss.accepted:,}", f"{loss.lost:,}", f"{loss.repeated:,}"]
            for (scenario, peer), loss in losses.items()
        ],
    )


def _bars(costs: dict[str, list[Cost]]) -> list[str]:
    lines = []
    for title, name, relation, bound in _BARS:
        ratio = _ratio(costs, RELAY.name, name)
        held = (le if relation == "<=" else ge)(ratio, bound)
        verdict = "held" if held else "MISSED"
        lines.append(f"{title} {relation} {bound}x script: {ratio:.2f}x {verdict}")
    return lines


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        click.echo("  ".join(cells).rstrip())


def _progress(text: str) -> None:
    click.echo(f"... {text}", err=True)


if __name__ == "__main__":
    main()

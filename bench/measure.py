"""Measures what a peer costs under load, and what it loses when it is killed or Segment is down."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from bench import load
from bench.peers import Peer, Process
from bench.segment import StandIn
from bench.webhooks import templates

_WARM_UP_SECONDS: Final = 2
_LOSS_CONNECTIONS: Final = 32
_LOSS_SECONDS: Final = 3

# Each load numbers its webhooks from the next of these on. All numbers have ten digits.
_first_numbers: Final = count(10**9, 10**7)


@dataclass(frozen=True)
class Cost:
    """The cost of one peer in one round.

    Attributes:
        cpu: microseconds of user and system time for each webhook accepted and forwarded.
        per_second: webhooks accepted, by the second of the load.
        p50: median of the milliseconds to an answer.
        p99: milliseconds that one answer in a hundred exceeds.
        rss: the most megabytes held.
        lost: accepted and not delivered.
        failed: answered other than 2xx, or not at all.
    """

    cpu: float
    per_second: float
    p50: float
    p99: float
    rss: float
    lost: float
    failed: float


@dataclass(frozen=True)
class Scenario:
    """A way to lose webhooks."""

    name: str
    outage: bool
    killed: bool


SCENARIOS: Final = (
    Scenario("killed, Segment well", outage=False, killed=True),
    Scenario(f"Segment down for {_LOSS_SECONDS} s", outage=True, killed=False),
    Scenario("killed while Segment is down", outage=True, killed=True),
)


@dataclass(frozen=True)
class Loss:
    """The fate of the webhooks accepted; `repeated` deliveries share a `messageId`."""

    accepted: int
    lost: int
    repeated: int


def cost(peer: Peer, stand_in: StandIn, *, connections: int, seconds: int) -> Cost:
    """Load a fresh process of the peer until all it accepted has been delivered."""
    with _running(peer, stand_in) as process:
        _load(peer, process, stand_in, connections=connections, seconds=_WARM_UP_SECONDS)
        before = process.cpu_seconds()
        result, lost = _load(peer, process, stand_in, connections=connections, seconds=seconds)
        return Cost(
            cpu=(process.cpu_seconds() - before) * 1e6 / max(1, result.accepted),
            per_second=result.per_second,
            p50=result.p50,
            p99=result.p99,
            rss=process.peak_rss() / 1e6,
            lost=lost,
            failed=result.failed,
        )


def _load(
    peer: Peer, process: Process, stand_in: StandIn, *, connections: int, seconds: int
) -> tuple[load.Load, int]:
    """Return the result of the load, and how many webhooks were answered 2xx and not delivered."""
    first = next(_first_numbers)
    url = process.url + peer.path
    result = load.load(url, templates(), connections=connections, seconds=seconds, first=first)
    if not peer.forwards:
        return result, 0
    # wrk does not count the requests under way at its end, so a few more may be delivered.
    found = stand_in.delivered(
        first, lambda found: len(found) >= result.accepted, patience=peer.patience
    )
    return result, max(0, result.accepted - len(found))


def loss(peer: Peer, stand_in: StandIn, scenario: Scenario) -> Loss:
    """Post exactly counted webhooks through the scenario, and wait for the deliveries."""
    first = next(_first_numbers)
    with _running(peer, stand_in) as process:
        stand_in.set_well(well=not scenario.outage)
        accepted = load.post(
            process.url + peer.path,
            templates(),
            connections=_LOSS_CONNECTIONS,
            seconds=_LOSS_SECONDS,
            first=first,
            kill=process.kill if scenario.killed else None,
        ).accepted
        stand_in.set_well(well=True)
        if scenario.killed:
            process.start()
        found = stand_in.delivered(
            first, lambda found: accepted <= found.keys(), patience=peer.patience
        )
    repeated = sum(found.values()) - len(found)
    return Loss(accepted=len(accepted), lost=len(accepted - found.keys()), repeated=repeated)


@contextmanager
def _running(peer: Peer, stand_in: StandIn) -> Iterator[Process]:
    with (
        tempfile.TemporaryDirectory(prefix="relay-bench-") as directory,
        peer.process(stand_in.url, Path(directory)) as process,
    ):
        yield process

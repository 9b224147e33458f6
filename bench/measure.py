"""What a peer costs under load, and what it loses when it is killed or Segment is down."""

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

_WARM_UP_SECONDS: Final = 2
_LOSS_CONNECTIONS: Final = 32
_LOSS_SECONDS: Final = 3

# Each load numbers its webhooks from here on; all numbers have ten digits.
_first_numbers: Final = count(10**9, 10**7)


@dataclass(frozen=True)
class Cost:
    """One peer in one round.

    Attributes:
        cpu: microseconds of user and system time for each webhook accepted and forwarded.
        per_second: webhooks accepted, during the load.
        p50: milliseconds to an answer, the median.
        p99: the same, exceeded by one in a hundred.
        rss: megabytes held at the most.
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
    """What became of the webhooks accepted; `repeated` deliveries share a `messageId`."""

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
    """What the load saw, and how many webhooks it was answered 2xx for have not come out."""
    first = next(_first_numbers)
    url = process.url + peer.path
    result = load.load(url, connections=connections, seconds=seconds, first=first)
    if not peer.forwards:
        return result, 0
    # wrk leaves the requests under way at its end uncounted, so there may be a few more.
    found = stand_in.delivered(
        first, lambda found: len(found) >= result.accepted, patience=peer.patience
    )
    return result, max(0, result.accepted - len(found))


def loss(peer: Peer, stand_in: StandIn, scenario: Scenario) -> Loss:
    """Post exactly counted webhooks through the scenario, until what is left has come out."""
    first = next(_first_numbers)
    with _running(peer, stand_in) as process:
        stand_in.set_well(well=not scenario.outage)
        accepted = load.post(
            process.url + peer.path,
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

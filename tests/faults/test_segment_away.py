import gc
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from relay.backoff import full_jitter
from relay.destinations.segment import Segment
from relay.forwarder.forwarder import Forwarder
from relay.outbox import open_outbox
from tests.faults.segment import (
    Fault,
    Relay,
    Road,
    for_ever,
    reset,
    reset_after_reading,
    reset_while_reading,
    says,
    silent,
)
from tests.harness.certificates import certificate, speaking_tls
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Message
from tests.harness.processes import within
from tests.harness.routes import routes, segment_at
from tests.harness.stores import Store

Times = Callable[[int, int], int]

DAY = timedelta(days=1).total_seconds()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 16\r\n\r\n"


@pytest.fixture
def road(server: SegmentServer) -> Iterator[Road]:
    with closing(Road(server)) as road:
        yield road


@pytest.fixture
def relay(store: Store, road: Road) -> Iterator[Relay]:
    relay = Relay(store, road.host())
    with closing(relay.outbox):
        yield relay


def bound(failures: int) -> float:
    """How long the wait may be after so many failures and one more."""
    return min(2.0 ** min(failures, 9), 300)


def probes(relay: Relay, server: SegmentServer, until: float, *, asked: int = 0) -> list[float]:
    """When each request came while Segment is away and asks for so many seconds, up to then."""
    server.judge = lambda _batch: Answer(503, {"Retry-After": str(asked)})
    came = [0.0]
    while came[-1] < until:
        came.append(relay.step())
        assert len(server.received) == 1  # nothing but the one probe
        server.received.clear()  # days of them would fill the memory
    return came[1:]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("days", "minutes", "asked"), [(1, 20, 0), (8, 60, 1_800)])
@pytest.mark.slow
def test_what_happens_while_segment_is_away_for_days_arrives_when_it_is_back(
    relay: Relay, server: SegmentServer, times: Times, days: int, minutes: int, asked: int
) -> None:
    relay.point_at(server.url)
    days = times(min(days, 3), days)
    relay.every = times(minutes, 5) * 60
    asked = times(asked, 0)
    relay.add(1)
    came = probes(relay, server, days * DAY, asked=asked)
    waits = [later - earlier for earlier, later in pairwise(came)]
    relay.every = 0
    relay.add(5_100)  # more than the requests of a second can carry
    waiting = relay.fates()
    back: list[float] = []

    def judge(_batch: list[Message]) -> Answer:
        back.append(relay.clock.monotonic())
        return Answer()

    server.judge = judge
    relay.forward()

    expected = [max(bound(failures), asked) for failures in range(len(waits))]
    assert waits == pytest.approx(expected, abs=0.01)
    assert waiting == {"pending": len(relay.happened)}
    assert relay.broken_promises(server) == []
    assert len(back) > 51
    assert all(later - earlier > 0.999 for earlier, later in zip(back, back[50:], strict=False))


@pytest.mark.slow
def test_an_outage_takes_no_memory_and_probes_come_at_random_within_their_bounds(
    relay: Relay, server: SegmentServer, times: Times
) -> None:
    relay.point_at(server.url, jitter=full_jitter)
    relay.every = times(60, 5) * 60
    relay.add(1)
    came = probes(relay, server, 3600)
    tracemalloc.start()
    came += probes(relay, server, times(6, 192) * 3600)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    waits = [later - earlier for earlier, later in pairwise(came)]
    server.judge = lambda _batch: Answer()
    relay.forward()

    assert all(wait < bound(failures) + 0.01 for failures, wait in enumerate(waits))
    assert max(waits) > 200
    assert min(waits[9:]) < 100
    assert grown < 400 * len(came)
    assert relay.broken_promises(server) == []


@pytest.mark.parametrize(
    "fault", [says(b"", OK + b'{"success":true}', seconds=0.01), says(OK, b"cut off")]
)
def test_an_answer_that_comes_slowly_or_is_cut_off_behind_its_head_is_one(
    relay: Relay, road: Road, fault: Fault
) -> None:
    relay.add(100)
    road.fault = fault
    relay.step()

    assert relay.fates() == {"delivered": 100}


def waits_until_it_is_well(relay: Relay, server: SegmentServer, heal: Callable[[], None]) -> None:
    """It waits as it does for a Segment that is down, and all of it arrives in the end."""
    relay.add(100)
    waits, meanwhile, hold = (
        relay.waits(4),
        relay.fates(),
        relay.outbox.destination_status("segment").hold,
    )
    heal()
    relay.forward()

    assert waits == [1, 2, 4]
    assert meanwhile == {"pending": 100}
    assert hold is None
    assert relay.broken_promises(server) == []


FAULTS = {
    "reset": reset,
    "reset while it reads": reset_while_reading,
    "reset when it has read": reset_after_reading,
    "closed": says(b""),
    "closed in the status": says(b"HTTP/1.1 20"),
    "closed in the reason": says(b"HTTP/1.1 503 Service Unavail"),
    "closed in the head": says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Le"),
    "closed in the body": says(BUSY, b"cut off"),
    "slow": says(BUSY, b"try again later.", seconds=0.01),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_connection_that_fails_keeps_everything_waiting(
    relay: Relay, server: SegmentServer, road: Road, fault: Fault
) -> None:
    def heal() -> None:
        road.fault = None

    road.fault = fault
    waits_until_it_is_well(relay, server, heal)


def test_a_closed_port_keeps_everything_waiting(
    relay: Relay, server: SegmentServer, road: Road
) -> None:
    road.close()
    waits_until_it_is_well(relay, server, road.open)


def test_a_name_that_cannot_be_resolved_keeps_everything_waiting(
    relay: Relay, server: SegmentServer, road: Road
) -> None:
    relay.point_at("http://does-not-exist.invalid")
    waits_until_it_is_well(relay, server, lambda: relay.point_at(road.host()))


def test_a_proxy_that_is_gone_keeps_everything_waiting(
    relay: Relay, server: SegmentServer, road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in for the proxy is asked for Segment, and stands in for that, too."""
    monkeypatch.setenv("http_proxy", road.host())
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    relay.point_at("http://segment.example.com")
    road.close()
    waits_until_it_is_well(relay, server, road.open)
    paths = {request.path for request in server.received}

    assert paths == {"http://segment.example.com/v1/batch"}


@pytest.mark.parametrize("fault", ["expired", "of another host", "not trusted"])
def test_an_invalid_certificate_keeps_everything_waiting(
    relay: Relay,
    server: SegmentServer,
    road: Road,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    certificates = {
        "expired": certificate(tmp_path, days=-1),
        "of another host": certificate(tmp_path, "127.0.0.2"),
        "good": certificate(tmp_path),
    }
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(b"".join(path.read_bytes() for path in certificates.values()))
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    certificates["not trusted"] = certificate(tmp_path)

    def heal() -> None:
        road.tls = speaking_tls(certificates["good"])

    road.tls = speaking_tls(certificates[fault])
    relay.point_at(road.host("https"))
    waits_until_it_is_well(relay, server, heal)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "silent": silent,
    "in the head": for_ever(b"HTTP/1.1 503 Service Unavailable\r\nX-Excuse: ", b"x"),
    "in the body": for_ever(BUSY.replace(b"16", b"1000000"), b"x"),
    "in the body of a 200": for_ever(OK.replace(b"16", b"1000000"), b"x"),
    "in the size of a chunk": for_ever(CHUNKED + b"1;", b"x"),
    "in the trailer": for_ever(CHUNKED + b"0\r\n", b"X-Excuse: x\r\n"),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_that_does_not_end_is_not_awaited_for_ever(
    relay: Relay, server: SegmentServer, road: Road, fault: Fault
) -> None:
    """Whether Segment has taken the batch is unknown: it is sent again under the same ids."""
    relay.point_at(road.host(), timeout_seconds=1)
    relay.add(1)
    road.fault = fault
    began_at = time.monotonic()
    relay.step()
    awaited = time.monotonic() - began_at
    meanwhile, answer = relay.fates(), relay.outbox.destination_status("segment").answer
    road.fault = None
    relay.forward()

    assert awaited < 60
    assert meanwhile == {"pending": 1}
    assert answer == "TimeoutError"
    assert relay.broken_promises(server) == []


def test_endless_answers_to_all_workers_stop_no_other(
    relay: Relay, server: SegmentServer, road: Road
) -> None:
    began: list[int] = []

    def trailer_of_the_first(connection: socket.socket) -> None:
        began.append(1)
        if len(began) <= Segment.limits.in_flight:
            for_ever(CHUNKED + b"0\r\n", b"X-Excuse: x\r\n")(connection)
        road.pass_on(connection)

    road.fault = trailer_of_the_first
    relay.add(100 * (Segment.limits.in_flight + 1))
    segment = segment_at(road.host(), timeout_seconds=1)
    with closing(open_outbox(relay.store.url, allow_ephemeral=True)) as outbox:
        forwarder = Forwarder(outbox, segment, routes(destination=segment))
        forwarder.start()
        settled = within(
            60, lambda: relay.fates() == {"delivered": 100 * (Segment.limits.in_flight + 1)}
        )
        forwarder.stop(10)

    assert settled
    assert len(began) > Segment.limits.in_flight
    assert relay.broken_promises(server) == []

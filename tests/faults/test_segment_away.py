import gc
import ssl
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from relay.pacing import full_jitter
from tests.fakes import Answer, SegmentServer
from tests.faults.segment import (
    Fault,
    Relay,
    Road,
    reset,
    reset_after_reading,
    reset_while_reading,
    says,
    silent,
)
from tests.oracle import Message
from tests.processes import Store

Times = Callable[[int, int], int]

DAY = timedelta(days=1).total_seconds()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 16\r\n\r\n"


@pytest.fixture(params=["sqlite_store", "postgres_store"])
def store(request: pytest.FixtureRequest) -> Store:
    kept: Store = request.getfixturevalue(request.param)
    return kept


@pytest.fixture
def server() -> Iterator[SegmentServer]:
    with SegmentServer() as server:
        yield server


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


@pytest.mark.parametrize(("days", "minutes", "asked"), [(1, 20, 0), (8, 60, 1_800)])
def test_what_happens_while_segment_is_away_for_days_arrives_when_it_is_back(
    relay: Relay, server: SegmentServer, times: Times, days: int, minutes: int, asked: int
) -> None:
    relay.point_at(server.url)
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


def test_an_outage_takes_no_memory_and_probes_come_at_random_within_their_bounds(
    relay: Relay, server: SegmentServer, times: Times
) -> None:
    relay.point_at(server.url, jitter=full_jitter)
    relay.every = times(60, 5) * 60
    relay.add(1)
    came = probes(relay, server, 3600)
    tracemalloc.start()
    came += probes(relay, server, times(12, 192) * 3600)
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
    waits, meanwhile, hold = relay.waits(4), relay.fates(), relay.outbox.standing().hold
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


def certificate(directory: Path, address: str = "127.0.0.1", *, days: int = 1) -> Path:
    """The file of a new certificate, signed by itself, and its key; it ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    number = x509.random_serial_number()
    # No two have the same name, or one of them would be looked at for the other.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{number:x}")])
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), number)
        .not_valid_before(end - timedelta(days=30))
        .not_valid_after(end)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{number:x}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def speaking_tls(certificate: Path) -> ssl.SSLContext:
    """As a server with this certificate does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("fault", ["expired", "of another host", "not trusted"])
def test_a_certificate_that_is_no_good_keeps_everything_waiting(
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


ENDLESS = {
    "silent": silent,
    "in the head": says(b"HTTP/1.1 503 Service Unavailable\r\nX-Excuse: ", b"x" * 90, seconds=1),
    "in the body": says(BUSY.replace(b"16", b"1000"), b"x" * 90, seconds=1),
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_that_does_not_end_is_not_awaited_for_ever(
    relay: Relay, server: SegmentServer, road: Road, times: Times, fault: Fault
) -> None:
    if not times(0, 1):
        pytest.skip("waits for as long as relay does: with --long")
    relay.add(1)
    road.fault = fault
    began_at = time.monotonic()
    relay.step()
    awaited = time.monotonic() - began_at
    meanwhile = relay.fates()
    road.fault = None
    relay.forward()

    assert awaited < 60  # of 90: relay gives the answer 15 s to begin, and 15 s to end
    assert meanwhile == {"pending": 1}
    assert relay.broken_promises(server) == []

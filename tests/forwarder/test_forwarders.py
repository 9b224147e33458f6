import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from relay.destinations.segment import Segment, SegmentSettings
from relay.forwarder import claims
from relay.forwarder.forwarder import Forwarder
from relay.forwarder.forwarders import Forwarders
from relay.forwarder.unsettled import UnsettledEntries
from relay.outbox.entries import CRASHES_BEFORE_ISOLATION, Arrival, Entry, Role
from relay.outbox.sqlite.store import SqliteOutbox
from relay.routes import Routes
from relay.sources.vero import Vero, VeroSettings
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import within
from tests.harness.routes import WRITE_KEY

LEASE = timedelta(minutes=1)


class OtherSource(Vero):
    name: ClassVar[str] = "other"
    destination: ClassVar[str] = "other"


class OtherDestination(Segment):
    name: ClassVar[str] = "other"
    title: ClassVar[str] = "Another Segment"


@pytest.fixture
def other() -> Iterator[SegmentServer]:
    """The other destination."""
    with SegmentServer() as server:
        yield server


def routes(server: SegmentServer, other: SegmentServer) -> Routes:
    """Routes to both destinations."""

    def settings(url: str) -> SegmentSettings:
        variables = {"SEGMENT_WRITE_KEY": WRITE_KEY, "SEGMENT_HOST": url}
        return SegmentSettings.model_validate(variables)

    sources = [Vero(VeroSettings()), OtherSource(VeroSettings())]
    destinations = [Segment(settings(server.url)), OtherDestination(settings(other.url))]
    return Routes(sources, destinations)


def arrival(source: str, destination: str, number: int) -> Arrival:
    body = b'{"type":"opened","message_id":"mail-%d","user":{"id":%d}}' % (number, number)
    return Arrival(source, destination, f"{source}-{number}", datetime.now(UTC), body)


def add_suspect(path: Path) -> None:
    """Store an event for Segment over which processes have crashed."""
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("vero", "segment", 1)])
    for _ in range(CRASHES_BEFORE_ISOLATION):
        with closing(SqliteOutbox(path)) as outbox:
            outbox.lock_role(Role.FORWARDER)
            assert outbox.claim("segment", 1, lease=LEASE)


def test_each_destination_gets_its_own(
    tmp_path: Path, server: SegmentServer, other: SegmentServer
) -> None:
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add([arrival("vero", "segment", n) for n in range(5)])
        outbox.add([arrival("other", "other", n) for n in range(3)])
        both = Forwarders(outbox, routes(server, other))
        both.start()
        delivered = within(60, lambda: (len(server.accepted), len(other.accepted)) == (5, 3))
        both.stop(10)

    assert delivered
    assert {message["messageId"][:4] for message in server.accepted} == {"vero"}
    assert {message["messageId"][:5] for message in other.accepted} == {"other"}


def test_a_destination_that_is_silent_holds_up_no_other(
    tmp_path: Path, server: SegmentServer, other: SegmentServer
) -> None:
    over = threading.Event()

    def judge(_batch: list[dict[str, Any]]) -> Answer:
        over.wait(60)
        return Answer()

    server.judge = judge
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add([arrival("vero", "segment", n) for n in range(500)])
        both = Forwarders(outbox, routes(server, other))
        both.start()
        outbox.add([arrival("other", "other", n) for n in range(3)])
        delivered = within(50, lambda: len(other.accepted) == 3)
        over.set()
        both.stop(10)

    assert delivered


def test_a_suspect_is_sent_while_the_process_has_no_other_entry_claimed(
    tmp_path: Path, server: SegmentServer, other: SegmentServer
) -> None:
    """A crash then casts suspicion on no entry of another destination."""
    path = tmp_path / "relay.db"
    add_suspect(path)
    answered, sent = threading.Event(), threading.Event()
    under_way: list[str] = []
    seen: list[list[str]] = []

    def judge_other(_batch: list[dict[str, Any]]) -> Answer:
        under_way.append("other")
        answered.wait(60)
        under_way.remove("other")
        return Answer()

    def judge(_batch: list[dict[str, Any]]) -> Answer:
        seen.append([*under_way])
        sent.set()
        return Answer()

    server.judge, other.judge = judge, judge_other
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("other", "other", n) for n in range(3)])
        unsettled, to_both = UnsettledEntries(), routes(server, other)
        second, first = (
            Forwarder(outbox, destination, to_both, unsettled=unsettled)
            for destination in to_both.destinations
        )
        first.start()
        busy = within(60, lambda: bool(under_way))
        second.start()
        too_early = sent.wait(2)
        answered.set()
        in_time = sent.wait(60)
        for forwarder in (first, second):
            forwarder.stop(10)

    assert busy
    assert not too_early
    assert in_time
    assert seen == [[]]


def entry(number: int, destination: str) -> Entry:
    return Entry(number, "vero", destination, str(number), datetime.now(UTC), 1, 7, b"{}")


def test_nothing_is_claimed_for_another_destination_while_one_is_isolated() -> None:
    unsettled = UnsettledEntries()
    with unsettled.isolating("segment") as isolated:
        own = unsettled.claim("segment", lambda: [entry(1, "segment")])
        others = unsettled.claim("other", lambda: [entry(2, "other")])
        with unsettled.isolating("other") as twice:
            pass
        still = unsettled.claim("other", lambda: [entry(3, "other")])
    afterwards = unsettled.claim("other", lambda: [entry(4, "other")])

    assert (isolated, twice) == (True, False)
    assert own is not None
    assert others is None
    assert still is None
    assert afterwards is not None
    assert [each.id for each in unsettled.of("other")] == [4]


def test_many_suspects_of_one_destination_let_the_others_forward(
    tmp_path: Path, server: SegmentServer, other: SegmentServer
) -> None:
    path, count = tmp_path / "relay.db", 60
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("vero", "segment", n) for n in range(count)])
    for _ in range(CRASHES_BEFORE_ISOLATION):
        with closing(SqliteOutbox(path)) as outbox:
            outbox.lock_role(Role.FORWARDER)
            assert len(outbox.claim("segment", count, lease=LEASE)) == count
    server.judge = lambda _batch: Answer(delay=0.2)
    with closing(SqliteOutbox(path)) as outbox:
        both = Forwarders(outbox, routes(server, other))
        both.start()
        begun = within(60, lambda: len(server.accepted) > 0)
        outbox.add([arrival("other", "other", n) for n in range(3)])
        delivered = within(60, lambda: len(other.accepted) == 3)
        suspects_sent = len(server.accepted)
        both.stop(10)

    assert begun
    assert delivered
    assert suspects_sent < count / 2


def test_no_suspect_is_sent_once_relay_stops(
    tmp_path: Path, server: SegmentServer, other: SegmentServer
) -> None:
    """After a crash relay would suspect what the other forwarder still has claimed, too."""
    path = tmp_path / "relay.db"
    add_suspect(path)
    answered = threading.Event()
    under_way: list[str] = []

    def judge_other(_batch: list[dict[str, Any]]) -> Answer:
        under_way.append("other")
        answered.wait(60)
        return Answer()

    other.judge = judge_other
    with closing(SqliteOutbox(path)) as outbox:
        outbox.add([arrival("other", "other", n) for n in range(3)])
        unsettled, to_both = UnsettledEntries(), routes(server, other)
        second, first = (
            Forwarder(outbox, destination, to_both, unsettled=unsettled)
            for destination in to_both.destinations
        )
        first.start()
        busy = within(60, lambda: bool(under_way))
        second.start()
        isolated = within(60, lambda: unsettled.is_isolated_from("other"))
        for forwarder in (first, second):
            forwarder.stop_soon()
        second.stop(10)
        answered.set()
        first.stop(10)

    assert busy
    assert isolated
    assert server.accepted == []


def test_a_claim_that_fails_leaves_nothing_unsettled(
    tmp_path: Path, server: SegmentServer, other: SegmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a suspect of another destination would wait for it for ever."""

    def fail(*_: object) -> None:
        raise MemoryError

    unsettled, to_both = UnsettledEntries(), routes(server, other)
    with closing(SqliteOutbox(tmp_path / "relay.db")) as outbox:
        outbox.add([arrival("vero", "segment", n) for n in range(3)])
        forwarder = Forwarder(outbox, to_both.destinations[0], to_both, unsettled=unsettled)
        with monkeypatch.context() as patched:
            patched.setattr(claims, "in_batches", fail)
            with pytest.raises(MemoryError):
                forwarder.step()
        left = len(unsettled)
        forwarder.step()

    assert left == 0
    assert len(server.accepted) == 3

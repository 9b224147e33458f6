import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import responses
from itertools import pairwise
from math import ceil, log2
from random import Random

import pytest

from tests.faults.segment import (
    Fault,
    Relay,
    Road,
    email_id,
    reset,
    reset_after_reading,
    reset_while_reading,
    says,
)
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.oracle import Judge, Message
from tests.harness.stores import Store

Times = Callable[[int, int], int]

LOGIN = b"<!DOCTYPE html><title>Log in to go on</title>"


@pytest.fixture
def relay(store: Store, server: SegmentServer) -> Iterator[Relay]:
    relay = Relay(store, server.url)
    with closing(relay.outbox):
        yield relay


def well(_batch: list[Message]) -> Answer:
    return Answer()


@pytest.mark.parametrize(
    ("asked", "seconds", "slack"),
    [
        (None, 0, 0),
        ("30", 30, 0),
        ("-5", 0, 0),
        ("as soon as you like", 0, 0),
        ("315360000", 3_600, 0),
        ("a date", 600, 20),
    ],
)
def test_in_a_storm_of_429_each_request_waits_as_long_as_segment_asks(
    relay: Relay, server: SegmentServer, asked: str | None, seconds: int, slack: int
) -> None:
    """A date is compared with the time of day, which goes on meanwhile: hence the slack."""

    def storm(_batch: list[Message]) -> Answer:
        in_ten_minutes = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
        retry_after = in_ten_minutes if asked == "a date" else asked
        return Answer(429, {"Retry-After": retry_after} if retry_after else {})

    server.judge = storm
    relay.add(150)
    waits, requests, waiting = relay.waits(13), len(server.received), relay.fates()
    server.judge = well
    relay.forward()

    expected = [max(min(2**failures, 300), seconds) for failures in range(12)]
    assert waits == pytest.approx(expected, abs=slack)
    assert requests == 13
    assert waiting == {"pending": 150}
    assert relay.broken_promises(server) == []


@pytest.mark.parametrize("status", [401, 403, 404, 505])
def test_an_hour_of_refusals_costs_a_probe_a_minute_and_ends_by_itself(
    relay: Relay, server: SegmentServer, status: int
) -> None:
    server.judge = lambda _batch: Answer(status)
    relay.every = 300
    relay.add(20)
    waits, requests, waiting, hold = (
        relay.waits(61),
        len(server.received),
        relay.fates(),
        relay.outbox.destination_status("segment").hold,
    )
    server.judge = well
    relay.forward()

    assert waits == [60] * 60
    assert requests == 61
    assert waiting == {"pending": 20 + 12}
    assert str(hold).startswith(str(status))
    assert relay.outbox.destination_status("segment").hold is None
    assert relay.broken_promises(server) == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_holds_everything_and_where_it_points_hears_nothing(
    relay: Relay, server: SegmentServer, status: int
) -> None:
    relay.add(150)
    with SegmentServer() as elsewhere:
        there = {"Location": f"{elsewhere.url}/v1/batch"}
        server.judge = lambda _batch: Answer(status, there)
        waits, waiting, hold = (
            relay.waits(3),
            relay.fates(),
            relay.outbox.destination_status("segment").hold,
        )
        server.judge = well
        relay.forward()

    assert elsewhere.received == []
    assert waits == [60, 60]
    assert waiting == {"pending": 150}
    assert str(hold).startswith(str(status))
    assert relay.broken_promises(server) == []


@pytest.mark.parametrize(
    "fault",
    [
        says(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + LOGIN),
        says(b"HTTP/1.1 200 OK\r\n\r\n\n" + LOGIN),
        says(b"HTTP/1.1 203 Non-Authoritative Information\r\nContent-Length: 99\r\n\r\n" + LOGIN),
    ],
)
def test_a_portal_that_answers_200_with_its_page_holds_everything(
    relay: Relay, server: SegmentServer, fault: Fault
) -> None:
    relay.add(150)
    with closing(Road(server)) as road:
        road.fault = fault
        relay.point_at(road.host())
        waits, waiting, hold = (
            relay.waits(3),
            relay.fates(),
            relay.outbox.destination_status("segment").hold,
        )
        road.fault = None
        relay.forward()

    assert waits == [60, 60]
    assert waiting == {"pending": 150}
    assert "a page of HTML" in str(hold)
    assert relay.outbox.destination_status("segment").hold is None
    assert relay.broken_promises(server) == []


@pytest.mark.parametrize("body", ['{"success":false}', '{"error":"invalid source"}'])
def test_a_200_that_denies_it_holds_everything_and_says_why(
    relay: Relay, server: SegmentServer, body: str
) -> None:
    relay.add(150)
    server.judge = lambda _batch: Answer(200, body=body.encode())
    waits, waiting, hold = (
        relay.waits(3),
        relay.fates(),
        relay.outbox.destination_status("segment").hold,
    )
    server.received.clear()
    server.judge = well
    relay.forward()

    assert waits == [60, 60]
    assert waiting == {"pending": 150}
    assert hold == f"200 OK, but it says {body}"
    assert relay.outbox.destination_status("segment").hold is None
    assert relay.broken_promises(server) == []


def refuses(status: int, guilty: set[str]) -> Judge:
    def judge(batch: list[Message]) -> Answer:
        found = guilty & {email_id(message) for message in batch}
        return Answer(status, body=f"not {min(found)}".encode()) if found else Answer()

    return judge


def details(relay: Relay) -> dict[str, str | None]:
    """What is said of each dead letter, by email id."""
    entries = relay.store.stored()
    return {
        json.loads(entry.body)["message_id"]: entry.detail
        for entry in entries
        if entry.state == "dead"
    }


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_guilty_among_a_hundred_are_found_in_few_requests(
    relay: Relay, server: SegmentServer, times: Times, status: int, count: int
) -> None:
    rng = Random(count)  # noqa: S311 (it plays dice)
    guilty: set[str] = set()
    server.judge = refuses(status, guilty)
    requests = [0]
    for _ in range(times(3, 200)):
        guilty.update(rng.sample(relay.add(100), count))
        relay.forward()
        requests.append(len(server.received))
    most = max(after - before for before, after in pairwise(requests))
    phrase = responses[status]  # which differs between versions of Python

    assert relay.broken_promises(server, rejected=guilty) == []
    assert details(relay) == {name: f"{status} {phrase}: not {name}" for name in guilty}
    assert most <= 1 + 2 * count * ceil(log2(100))


def test_a_limit_of_segments_own_is_found_and_only_what_is_over_it_by_itself_dies(
    relay: Relay, server: SegmentServer
) -> None:
    """What may go, and what is refused, is told apart by nothing but the answers."""

    def judge(batch: list[Message]) -> Answer:
        return Answer(413 if len(json.dumps(batch)) > 4_000 else 200, body=b"4000 at the most")

    server.judge = judge
    relay.add(70)
    large = relay.add(1, subject="x" * 4_000)
    relay.add(29)
    relay.forward()

    assert relay.broken_promises(server, rejected=large) == []
    assert {*details(relay).values()} == {f"413 {responses[413]}: 4000 at the most"}


@pytest.mark.parametrize("problem", [Answer(401), Answer(429), Answer(0)])
def test_an_outage_in_the_middle_of_halving_makes_no_dead_letter(
    relay: Relay, server: SegmentServer, problem: Answer
) -> None:
    guilty = {relay.add(100)[70]}
    server.answers.extend([Answer(400), Answer(), Answer(400), problem, problem])
    server.judge = refuses(400, guilty)
    relay.step()
    relay.step()
    meanwhile = relay.fates()
    relay.forward()

    assert meanwhile == {"delivered": 50, "pending": 50}
    assert relay.broken_promises(server, rejected=guilty) == []


def test_everything_arrives_over_a_way_that_fails_now_and_then(
    relay: Relay, server: SegmentServer, times: Times
) -> None:
    """Where an answer is lost, and only there, Segment gets copies, which have one `messageId`."""
    rng = Random(7)  # noqa: S311 (it plays dice)

    def judge(_batch: list[Message]) -> Answer:
        return Answer(502 if rng.random() < 0.1 else 200, {"Connection": "close"})

    def fail(connection: socket.socket) -> None:
        chance = rng.random()
        if chance < 0.2:
            rng.choice([reset, reset_while_reading, reset_after_reading])(connection)
        elif chance < 0.3:
            rng.choice([road.pass_on_and_reset, road.pass_on_and_lose_the_answer])(connection)
        else:
            road.pass_on(connection)

    server.judge = judge
    with closing(Road(server)) as road:
        road.fault = fail
        relay.point_at(road.host())
        for _ in range(times(200, 4_000)):
            relay.add(rng.randint(1, 5))
            relay.step()
        relay.forward()
    taken = [request for request in server.received if request.answer.status == 200]
    lost = [request for request in taken if request.connection in road.lost]
    doubted = Counter(email_id(message) for request in lost for message in request.batch)

    assert len(lost) > 5
    assert relay.broken_promises(server, doubted=doubted) == []

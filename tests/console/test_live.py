import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from relay.console.live import MAX_STREAMS
from tests.cli.desk import Desk, webhook
from tests.console.client import at_work, cookie, live, look, shown
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess, within
from tests.harness.stores import SqliteStore

pytestmark = pytest.mark.slow

LIVE = "/console/live/overview"
PATHS = ["/console/", "/console/events", "/console/dead", "/console/static/console.js"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One relay for all tests here."""
    yield from at_work(SqliteStore(tmp_path_factory.mktemp("live") / "relay.db"))


@pytest.fixture
def relay(desk: Desk) -> RelayProcess:
    """The relay of the desk."""
    return desk.relay


def test_a_new_event_appears_by_itself(desk: Desk) -> None:
    with live(desk.relay, "/console/live/events?q=user-appears") as response:
        before = shown(response)
        desk.delivered(webhook("appears"))

        assert before.count("<tr id=") == 0
        assert shown(response).count("<tr id=") == 1


def test_head_of_a_live_page_ends(relay: RelayProcess) -> None:
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=10)) as connection:
        for _ in range(2):
            connection.request("HEAD", LIVE, headers={"Cookie": cookie(relay)})
            response = connection.getresponse()

            assert (response.status, response.read()) == (200, b"")
            assert response.headers["content-type"].startswith("text/event-stream")


def test_webhooks_are_received_while_the_console_is_used(desk: Desk) -> None:
    bodies = [webhook("meanwhile", number) for number in range(50)]
    with ThreadPoolExecutor(4) as people:
        looks = [people.submit(look, desk.relay, path) for path in PATHS * 10]
        ids = desk.delivered(*bodies)

    assert {each.result().status for each in looks} == {200}
    assert sorted(message["messageId"] for message in desk.arrivals("meanwhile")) == sorted(ids)


def test_the_number_of_live_pages_is_limited(relay: RelayProcess) -> None:
    def open_one(_number: int) -> socket.socket:
        connection = relay.connect()
        head = f"GET {LIVE} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie(relay)}\r\n\r\n"
        connection.sendall(head.encode())
        return connection

    for _ in range(2):  # when they are closed, there is room again
        with ExitStack() as opened, ThreadPoolExecutor(MAX_STREAMS + 8) as people:
            connections = [*people.map(open_one, range(MAX_STREAMS + 8))]
            for connection in connections:
                opened.enter_context(connection)
            statuses = sorted(connection.recv(12)[-3:] for connection in connections)

            assert statuses == [b"200"] * MAX_STREAMS + [b"503"] * 8
        assert within(20, lambda: _is_free(relay))


def _is_free(relay: RelayProcess) -> bool:
    with ExitStack() as opened:
        each = [opened.enter_context(live(relay, LIVE)) for _ in range(MAX_STREAMS)]
        return {response.status for response in each} == {200}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_relay_ends_while_live_pages_are_open(tmp_path: Path, number: signal.Signals) -> None:
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "relay.db", segment.url) as relay,
        live(relay, LIVE) as overview,
        live(relay, "/console/live/events?q=somebody") as events,
    ):
        assert "Waiting for your first webhook" in shown(overview)
        assert "no such events" in shown(events)

        relay.terminate(number)

        assert relay.wait(8) == 0
        for response in (overview, events):
            response.read()  # to its proper end: what is cut off cannot be read
        assert not any(line["level"] in {"error", "critical"} for line in relay.log())

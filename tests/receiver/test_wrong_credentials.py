import asyncio
import base64
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.metrics.definitions import WRONG_CREDENTIALS
from relay.receiver.wrong_credentials import DELAY_SECONDS, MAX_DELAYED, WrongCredentials
from tests.harness.fakes import Clock, SegmentServer
from tests.harness.processes import RelayProcess

pytestmark = pytest.mark.slow

PASSWORD = "a-password-for-the-tests"
FLOOD = MAX_DELAYED + 64


def credentials(password: str) -> str:
    return "Basic " + base64.b64encode(f":{password}".encode()).decode()


def counted(page: str) -> float:
    return sum(
        sample.value
        for metric in WRONG_CREDENTIALS.collect()
        for sample in metric.samples
        if sample.labels["page"] == page and sample.name.endswith("_total")
    )


def test_a_limited_number_of_answers_is_delayed() -> None:
    async def flood() -> tuple[int, list[bool]]:
        wrong_credentials = WrongCredentials("flooded", ["word"])
        tasks = [asyncio.create_task(wrong_credentials.delay("word")) for _ in range(FLOOD)]
        await asyncio.sleep(0)
        waiting = [task for task in tasks if not task.done()]
        at_once = [task.result() for task in tasks if task.done()]
        for task in waiting:  # the client has gone
            task.cancel()
        await asyncio.wait(waiting)
        freed = asyncio.create_task(wrong_credentials.delay("word"))
        await asyncio.sleep(0)
        assert not freed.done()
        freed.cancel()
        return len(waiting), at_once

    assert asyncio.run(flood()) == (MAX_DELAYED, [False] * (FLOOD - MAX_DELAYED))
    assert counted("flooded") == FLOOD + 1


def test_many_wrong_attempts_are_logged_in_few_lines() -> None:
    clock = Clock()

    async def guess(times: int) -> list[int]:
        with capture_logs() as lines:
            tasks = [asyncio.create_task(wrong_credentials.delay("word")) for _ in range(times)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
        return [line["within_a_minute"] for line in lines if line["log_level"] == "warning"]

    wrong_credentials = WrongCredentials("logged", ["word"], clock=clock.monotonic)

    assert asyncio.run(guess(2_500)) == [1, 10, 100, 1_000]
    assert asyncio.run(guess(2_500)) == []

    clock.sleep(60)

    assert asyncio.run(guess(15)) == [1, 10]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    """Return a relay whose console has a password."""
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "relay.db", segment.url, RELAY_CONSOLE_PASSWORD=PASSWORD) as relay,
    ):
        yield relay


def console(connection: HTTPConnection, password: str) -> int:
    connection.request("GET", "/console/", headers={"Authorization": credentials(password)})
    response = connection.getresponse()
    response.read()
    return response.status


def test_wrong_guesses_on_one_connection_are_answered_late(relay: RelayProcess) -> None:
    began = time.monotonic()
    with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
        wrong = [console(connection, f"{PASSWORD}{number}") for number in range(3)]
        took = time.monotonic() - began
        right = console(connection, PASSWORD)

    assert (wrong, right) == ([401] * 3, 200)
    assert took >= 3 * DELAY_SECONDS


def test_wrong_guesses_do_not_lock_out_the_operator(relay: RelayProcess) -> None:
    wrong = {"Authorization": credentials("the-password-of-somebody-else")}
    with ExitStack() as opened:
        address = ("127.0.0.1", relay.port)
        guessers, operator = [
            [opened.enter_context(closing(HTTPConnection(*address, timeout=30))) for _ in range(n)]
            for n in (FLOOD, 1)
        ]
        for number in range(3):
            for guesser in guessers:
                guesser.request("GET", "/console/", headers=wrong)
            right = console(operator[0], PASSWORD)
            taken = relay.post(b'{"type": "opened", "user": {"id": %d}}' % number)
            answers = [guesser.getresponse() for guesser in guessers]

            assert (right, taken.status) == (200, 200)
            assert {(answer.status, len(answer.read()) > 0) for answer in answers} == {(401, True)}
        operator[0].request("GET", "/metrics")
        metrics = operator[0].getresponse().read().decode()

    lines = [line for line in relay.log() if line["event"] == "credentials.wrong"]
    count = f'relay_wrong_credentials_total{{credential="password",page="console"}} {3.0 * FLOOD}'
    assert count in metrics
    assert 1 <= len(lines) <= 3 * 4
    assert {line["credential"] for line in lines} == {"password"}

"""The Procfile's own commands, in the environment that Heroku gives them."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.harness.fakes import SegmentServer
from tests.harness.postgres import PostgresServer
from tests.harness.processes import PATH, SECRET, WRITE_KEY, Reply, ask, closed_port, within
from tests.harness.webhooks import opened

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def commands() -> Mapping[str, list[str]]:
    """Return each process type's command."""
    lines = (ROOT / "Procfile").read_text("utf-8").splitlines()
    parts = (line.partition(":") for line in lines)
    return {process: shlex.split(command) for process, _, command in parts}


def config(database: str, segment: SegmentServer, dyno: str, port: int) -> dict[str, str]:
    """Return the environment of a dyno.

    The server of the tests has no TLS, which relay requires on a dyno unless the URL forbids it.
    """
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DYNO": dyno,
        "PORT": str(port),
        "DATABASE_URL": database.replace("postgresql://", "postgres://") + "?sslmode=disable",
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": segment.url,
        "RELAY_VERO_SECRET": SECRET,
    }


@contextmanager
def dyno(command: list[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command for as long as the block runs; check that it ends as Heroku wants."""
    with subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.DEVNULL) as process:  # noqa: S603 (the Procfile's)
        try:
            yield process
            process.terminate()

            assert process.wait(30) == 0
        finally:
            process.kill()


def reply(port: int, method: str, path: str, body: bytes | None = None) -> Reply | None:
    """Return the answer; None if nothing listens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(connection), suppress(OSError, HTTPException):
        return ask(connection, method, path, body)
    return None


def ready(port: int) -> bool:
    answer = reply(port, "GET", "/readyz")
    return answer is not None and answer.status == 200


def test_a_web_dyno_alone_receives_and_forwards(
    postgres: PostgresServer, commands: Mapping[str, list[str]]
) -> None:
    database, port = postgres.create_database(), closed_port()
    with SegmentServer() as segment:
        environ = config(database, segment, "web.1", port)
        released = subprocess.run(commands["release"], cwd=ROOT, env=environ, check=False)  # noqa: S603 (the Procfile's)
        with dyno(commands["web"], environ):
            assert within(30, lambda: ready(port))
            answers = [
                reply(port, "POST", PATH, opened(number, user={"id": number}))
                for number in range(20)
            ]
            arrived = within(30, lambda: len(segment.accepted) == 20)
    postgres.drop_database(database)

    assert released.returncode == 0
    assert [answer and answer.content["status"] for answer in answers] == ["accepted"] * 20
    assert arrived
    assert {message["userId"] for message in segment.accepted} == {str(n) for n in range(20)}


def test_web_and_worker_dynos_share_the_work(
    postgres: PostgresServer, commands: Mapping[str, list[str]]
) -> None:
    database, ports = postgres.create_database(), [closed_port(), closed_port()]
    with SegmentServer() as segment:
        environs = [config(database, segment, f"web.{n}", port) for n, port in enumerate(ports, 1)]
        worker = config(database, segment, "worker.1", closed_port())
        receive_only = [*commands["web"], "--no-forward"]
        with dyno(receive_only, environs[0]), dyno(receive_only, environs[1]):
            assert within(30, lambda: all(map(ready, ports)))
            for number in range(20):
                reply(ports[number % 2], "POST", PATH, opened(number))
            copies = [reply(port, "POST", PATH, opened(0)) for port in ports]
            waiting = len(segment.accepted)
            with dyno(commands["worker"], worker):
                arrived = within(30, lambda: len(segment.accepted) == 20)
    postgres.drop_database(database)

    assert [copy and copy.content["status"] for copy in copies] == ["duplicate"] * 2
    assert waiting == 0
    assert arrived

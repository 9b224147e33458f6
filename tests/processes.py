"""relay as a real process on loopback, and what it leaves in its outbox."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import apsw

SECRET = "a-secret-for-the-tests"
WRITE_KEY = "a-write-key-for-the-tests"
PATH = f"/webhooks/vero/{SECRET}"

_ROOT = Path(__file__).parents[1]
_START_SECONDS = 30
_STORED = """
    SELECT provider, message_id, state, due_at, attempts, reason, detail, body
    FROM entries ORDER BY id
"""


@dataclass(frozen=True)
class StoredEntry:
    """A row of an outbox, as it stands in the file."""

    provider: str
    message_id: str
    state: str
    due_at: int | None
    attempts: int
    reason: str | None
    detail: str | None
    body: bytes


def stored(outbox: Path) -> list[StoredEntry]:
    """Everything in the outbox, oldest first."""
    return [StoredEntry(*row) for row in run_sql(outbox, _STORED)]


def run_sql(outbox: Path, statement: str) -> list[Any]:
    """Run a statement behind relay's back.

    Through apsw: two builds of SQLite in one process take each other's locks on a file away.
    """
    with closing(apsw.Connection(str(outbox))) as connection:
        connection.set_busy_timeout(10_000)
        return connection.execute(statement).fetchall()


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` to its end in an environment with nothing else in it."""
    return subprocess.run(  # noqa: S603 (its own Python and its own arguments)
        [sys.executable, "-m", "relay", *arguments],
        cwd=_ROOT,
        env=_clean(environ),
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
        check=False,
    )


@dataclass(frozen=True)
class Reply:
    """An answer over HTTP.

    Attributes:
        headers: by lower-case name.
    """

    status: int
    headers: Mapping[str, str]
    content: dict[str, Any]


class WholeConnection(HTTPConnection):
    """Sends each request in one piece; its parent sends the body after the head, in another."""

    _piece = b""

    def send(self, data: bytes) -> None:  # type: ignore[override]  # only bytes are sent here
        """Keep it until the answer is asked for."""
        self._piece += data

    def getresponse(self) -> HTTPResponse:
        """Send the request, then await its answer."""
        super().send(self._piece)
        self._piece = b""
        return super().getresponse()


class RelayProcess:
    """`relay serve` on a port of its own, killed at the end unless it has ended before.

    Attributes:
        outbox: its file.
        port: where it listens.
        connection: how it is connected to.
    """

    connection: type[HTTPConnection] = WholeConnection

    def __init__(self, outbox: Path, segment_url: str, *, port: int = 0, **environ: str) -> None:
        self.outbox = outbox
        self.port = port
        self._environ = {
            "SEGMENT_WRITE_KEY": WRITE_KEY,
            "SEGMENT_HOST": segment_url,
            "RELAY_VERO_SECRET": SECRET,
            "RELAY_OUTBOX_URL": f"sqlite:///{outbox}",
            **environ,
        }
        # A file, because a pipe that nobody empties would stop relay.
        self._log = outbox.with_suffix(f".{time.monotonic_ns()}.log")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 (its own Python and a port)
                [sys.executable, "-m", "relay", "serve", "--port", str(self.port)],
                cwd=_ROOT,
                env=_clean(self._environ),
                stderr=log,
                start_new_session=True,  # so that its forwarder can be killed with it
            )
        try:
            self._await_readiness()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _await_readiness(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            started = [line for line in self.log() if line["event"] == "serve.started"]
            if started:
                for url in started[0]["webhooks"]:
                    self.port = urlsplit(url).port or self.port
                with suppress(OSError, HTTPException):
                    if self.ask("GET", "/readyz").status == 200:
                        return
            time.sleep(0.01)
        raise AssertionError(f"relay did not start:\n{self._log.read_text()}")

    def log(self) -> list[dict[str, Any]]:
        """Every complete line it has logged."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request over a connection of its own."""
        with closing(self.connection("127.0.0.1", self.port, timeout=30)) as connection:
            return ask(connection, method, path, body, headers)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Post one webhook."""
        return self.ask("POST", PATH, body, headers)

    def connect(self) -> socket.socket:
        """A connection to write to byte by byte."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def listens(self) -> bool:
        """Whether it takes connections."""
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return False
        return True

    def kill(self) -> None:
        """End it and its forwarder at once, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def forwarder(self) -> int:
        """The process id of its forwarder, once there is one."""
        found: list[str] = []

        def started() -> bool:
            for children in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
                found.extend(children.read_text().split())
            return bool(found)

        assert within(_START_SECONDS, started)
        return int(found[0])

    def kill_forwarder(self) -> None:
        """End its forwarder at once."""
        with suppress(ProcessLookupError):
            os.kill(self.forwarder(), signal.SIGKILL)

    def kill_alone(self) -> None:
        """End it at once, but not its forwarder."""
        self._process.kill()
        self._process.wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        return self._process.wait(seconds)


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def ask(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One request over an open connection."""
    connection.request(method, path, body, headers or {})
    return read_reply(connection.getresponse())


def read_reply(response: HTTPResponse) -> Reply:
    """What was answered: JSON and no secret, whatever was asked."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    content = json.loads(response.read() or b"{}")
    assert headers["content-type"] == "application/json"
    assert SECRET not in str((headers, content))
    return Reply(response.status, headers, content)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **environ}

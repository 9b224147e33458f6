"""relay as real processes on loopback, and requests to them."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

from tests.harness.preloaded import ForkedRelay
from tests.harness.stores import SqliteStore, Store

SECRET = "a-secret-for-the-tests"
WRITE_KEY = "a-write-key-for-the-tests"
PATH = f"/webhooks/vero/{SECRET}"

PYTHON = (sys.executable, "-m", "relay")
"""The command that runs relay, as its users do."""

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 30


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `relay` to its end in an environment with nothing else in it."""
    with TemporaryFile() as out, TemporaryFile() as err:
        relay = ForkedRelay(arguments, _clean(environ), stdout=out, stderr=err)
        try:
            code = relay.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            relay.kill()
            raise
        texts = [_text(file) for file in (out, err)]
    return subprocess.CompletedProcess(["relay", *arguments], code, *texts)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


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
        """Keep the data until `getresponse`."""
        self._piece += data

    def getresponse(self) -> HTTPResponse:
        """Send the request, then await its answer."""
        super().send(self._piece)
        self._piece = b""
        return super().getresponse()


class RelayProcess:
    """`relay serve` on a port of its own, killed at the end unless it has ended before.

    Attributes:
        store: the store of its outbox.
        port: where it listens.
        connection: the class of connections to it.
    """

    connection: type[HTTPConnection] = WholeConnection

    def __init__(
        self,
        outbox: Path | Store,
        segment_url: str,
        *,
        port: int = 0,
        options: Sequence[str] = (),
        **environ: str,
    ) -> None:
        self.store = SqliteStore(outbox) if isinstance(outbox, Path) else outbox
        self.port = port
        self._options = options
        self._environ = {
            "SEGMENT_WRITE_KEY": WRITE_KEY,
            "SEGMENT_HOST": segment_url,
            "RELAY_VERO_SECRET": SECRET,
            "RELAY_OUTBOX_URL": self.store.url,
            **environ,
        }
        # A file, because a pipe that nobody empties would stop relay.
        self._log = self.store.logs / f"relay.{time.monotonic_ns()}.log"
        self._out = self._log.with_suffix(".out")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log, self._out.open("wb") as out:
            self._process = self._start(out, log)
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

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def outbox(self) -> Path:
        """The file of a SQLite outbox."""
        assert isinstance(self.store, SqliteStore)
        return self.store.path

    def _program(self) -> Sequence[str] | None:
        """Return the words that execute relay; None forks it, which is quicker."""
        return None

    def _start(self, out: IO[bytes], log: IO[bytes]) -> ForkedRelay | subprocess.Popen[bytes]:
        """Start it, in a session of its own, so that its forwarder can be killed with it."""
        environ, program = _clean(self._environ), self._program()
        if program is None:
            return ForkedRelay(self._command(), environ, stdout=out, stderr=log)
        return subprocess.Popen(  # noqa: S603 (its own program and a port)
            [*program, *self._command()],
            cwd=_ROOT,
            env=environ,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )

    def _command(self) -> list[str]:
        return ["serve", "--port", str(self.port), *self._options]

    def _await_readiness(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._ready():
                return
            time.sleep(0.01)
        raise AssertionError(f"relay did not start:\n{self._log.read_text()}")

    def _ready(self) -> bool:
        started = [line for line in self.log() if line["event"] == "serve.started"]
        if started:
            for url in started[0]["webhooks"]:
                self.port = urlsplit(url).port or self.port
            with suppress(OSError, HTTPException):
                return self.ask("GET", "/readyz").status == 200
        return False

    def log(self) -> list[dict[str, Any]]:
        """Return every complete line that it has logged."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def links(self) -> list[str]:
        """Return the links to the console that it has printed, oldest first."""
        return re.findall(r"^Console: (\S+)$", self._out.read_text(), re.MULTILINE)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request over a new connection; return the answer."""
        with closing(self.connection("127.0.0.1", self.port, timeout=30)) as connection:
            return ask(connection, method, path, body, headers)

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Post one webhook; return the answer."""
        return self.ask("POST", PATH, body, headers)

    def connect(self) -> socket.socket:
        """Open a connection to write to byte by byte."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def listens(self) -> bool:
        """Return whether it accepts connections."""
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return False
        return True

    def kill(self) -> None:
        """Kill it and its forwarder, as a power cut would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def forwarder(self) -> int:
        """Wait for its forwarder; return the forwarder's process id."""
        found: list[str] = []

        def started() -> bool:
            for children in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
                with suppress(OSError):  # a thread that has ended meanwhile
                    found.extend(children.read_text().split())
            return bool(found)

        assert within(_START_SECONDS, started)
        return int(found[0])

    def kill_forwarder(self) -> None:
        """Kill its forwarder."""
        with suppress(ProcessLookupError):
            os.kill(self.forwarder(), signal.SIGKILL)

    def kill_alone(self) -> None:
        """Kill it, but not its forwarder."""
        self._process.kill()
        self._process.wait()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal to end."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Send it SIGTERM and wait until it has ended."""
        self.terminate()
        self.wait(_START_SECONDS)

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Wait until it ends; return its exit code."""
        return self._process.wait(seconds)


class ExecutedRelay(RelayProcess):
    """`python -m relay serve`, for what depends on how it starts."""

    def _program(self) -> Sequence[str]:
        return PYTHON


class ForwarderProcess(RelayProcess):
    """`relay forward`, killed at the end unless it has ended before."""

    def _command(self) -> list[str]:
        return ["forward"]

    def _ready(self) -> bool:
        return any(line["event"] == "forward.started" for line in self.log())

    def suspend(self) -> None:
        """Stop it for now, as on a machine that sleeps or is out of memory."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)


def closed_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    pause = 0.01
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)  # asking costs the time that relay needs
    return true


def ask(
    connection: HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one request over an open connection; return the answer."""
    connection.request(method, path, body, headers or {})
    return read_reply(connection.getresponse())


def read_reply(response: HTTPResponse) -> Reply:
    """Return the answer. Assert that it is JSON and holds no secret."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    content = json.loads(response.read() or b"{}")
    assert headers["content-type"] == "application/json"
    assert SECRET not in str((headers, content))
    return Reply(response.status, headers, content)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **environ}

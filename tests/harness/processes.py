"""relay as real processes on loopback, and what they leave in their outbox."""

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
from typing import IO, Any, Protocol, Self
from urllib.parse import urlsplit

import apsw

from tests.harness.postgres import query
from tests.harness.preloaded import ForkedRelay

SECRET = "a-secret-for-the-tests"
WRITE_KEY = "a-write-key-for-the-tests"
PATH = f"/webhooks/vero/{SECRET}"

PYTHON = (sys.executable, "-m", "relay")
"""Executes relay, as its users do."""

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 30
_STORED = """
    SELECT source, message_id, state, {due_at}, attempts, reason, detail, body
    FROM entries ORDER BY id
"""


@dataclass(frozen=True)
class StoredRow:
    """A row of an outbox, as it stands in the store.

    Attributes:
        due_at: in epoch milliseconds.
    """

    source: str
    message_id: str
    state: str
    due_at: int | None
    attempts: int
    reason: str | None
    detail: str | None
    body: bytes


class Store(Protocol):
    """Where the entries of an outbox are, seen from behind relay's back."""

    @property
    def url(self) -> str:
        """What `RELAY_OUTBOX_URL` is set to."""
        ...

    @property
    def logs(self) -> Path:
        """The directory for the logs of its processes."""
        ...

    def stored(self) -> list[StoredRow]:
        """Everything in it, oldest first."""
        ...

    def run_sql(self, statement: str) -> list[Any]:
        """Run a statement on its tables."""
        ...


@dataclass(frozen=True)
class SqliteStore:
    """See `Store`."""

    path: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    @property
    def logs(self) -> Path:
        return self.path.parent

    def stored(self) -> list[StoredRow]:
        return [StoredRow(*row) for row in self.run_sql(_STORED.format(due_at="pending_since"))]

    def run_sql(self, statement: str) -> list[Any]:
        """Through apsw: two builds of SQLite in one process take each other's file locks away."""
        with closing(apsw.Connection(str(self.path))) as connection:
            connection.set_busy_timeout(10_000)
            return connection.execute(statement).fetchall()


@dataclass(frozen=True)
class PostgresStore:
    """See `Store`."""

    url: str
    logs: Path

    def stored(self) -> list[StoredRow]:
        milliseconds = "(extract(epoch FROM due_at) * 1000)::bigint"
        return [StoredRow(*row) for row in self.run_sql(_STORED.format(due_at=milliseconds))]

    def run_sql(self, statement: str) -> list[Any]:
        return query(self.url, statement, search_path="relay")


def pending(store: Store) -> int:
    """How many entries are still to be forwarded."""
    ((count,),) = store.run_sql("SELECT count(*) FROM entries WHERE state = 'pending'")
    return int(count)


def stored(outbox: Path) -> list[StoredRow]:
    """Everything in the SQLite outbox, oldest first."""
    return SqliteStore(outbox).stored()


def run_sql(outbox: Path, statement: str) -> list[Any]:
    """Run a statement on a SQLite outbox behind relay's back."""
    return SqliteStore(outbox).run_sql(statement)


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
        store: of its outbox.
        port: where it listens.
        connection: how it is connected to.
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
        """Every complete line it has logged."""
        lines = self._log.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def links(self) -> list[str]:
        """The links to the console that it has printed, oldest first."""
        return re.findall(r"^Console: (\S+)$", self._out.read_text(), re.MULTILINE)

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
                with suppress(OSError):  # a thread that has ended meanwhile
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

    def end(self) -> None:
        """Ask it to end and await that, so that it is measured what of relay it has run."""
        self.terminate()
        self.wait(_START_SECONDS)

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit code."""
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
        """Let it do nothing, as a machine does that is out of memory or asleep."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on, as if no time had passed."""
        self._process.send_signal(signal.SIGCONT)


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
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

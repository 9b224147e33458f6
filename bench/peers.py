"""Processes: starts each, reads what it costs, and lets none outlive the bench."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import click

_ROOT: Final = Path(__file__).parent.parent
_SECRET: Final = "a-secret-for-the-bench"  # noqa: S105 (guards nothing)
_START_SECONDS: Final = 20
_TICK: Final = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Peer:
    """A program that takes webhooks.

    Attributes:
        name: in the tables.
        arguments: of Python; `--port N` is added.
        path: where webhooks are posted.
        forwards: whether it forwards them to Segment.
        patience: seconds without a delivery after which the rest counts as lost.
    """

    name: str
    arguments: tuple[str, ...]
    path: str = "/webhooks/vero"
    forwards: bool = True
    patience: float = 10  # the script's longest backoff here is 4 s

    def process(self, segment_url: str, directory: Path) -> "Process":
        """Return a process of it, not started yet, which keeps its files in the directory."""
        environ = {
            "SEGMENT_WRITE_KEY": "bench",
            "SEGMENT_HOST": segment_url,
            "RELAY_VERO_SECRET": _SECRET,
            "RELAY_OUTBOX_URL": f"sqlite:///{directory}/relay.db",
            "RELAY_ALLOW_EPHEMERAL": "1",
        }
        return Process(self.arguments, environ, directory / f"{self.name}.log")


def uvicorn(app: str) -> tuple[str, ...]:
    """Return the arguments that serve an ASGI application."""
    choices = ("--loop", "uvloop", "--http", "httptools", "--no-access-log")
    return ("-m", "uvicorn", app, *choices, "--log-level", "warning")


SCRIPT: Final = Peer("script", uvicorn("bench.script:app"))
RELAY: Final = Peer(
    "relay",
    ("-m", "relay", "serve"),
    path=f"/webhooks/vero/{_SECRET}",
)
BARE: Final = Peer("bare", uvicorn("bench.bare:app"), forwards=False)
STAND_IN: Final = ("-m", "bench.segment")


class Process:
    """A Python process on a port of its own, inside `with`.

    It leads a session of its own, so that all its children are found and ended with it.
    """

    def __init__(
        self,
        arguments: tuple[str, ...],
        environ: Mapping[str, str],
        log: Path,
        *,
        listens: bool = True,
    ) -> None:
        self.port = _free_port()
        self._listens = listens
        port = ("--port", str(self.port)) if listens else ()
        self._command = (sys.executable, *arguments, *port)
        ours = ("SEGMENT_", "RELAY_", "VERO_", "PORT", "DYNO", "DATABASE_URL")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self._environ = {**kept, **environ}
        self._log = log

    @property
    def url(self) -> str:
        """The base URL at which it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own command)
                self._command,
                cwd=_ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._await_listening()
        except BaseException:
            self.kill()
            raise

    def _await_listening(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self._listens and not _listens(self.port):
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                why = "does not listen" if ended is None else f"ended with {ended}"
                end_of_log = self._log.read_text(errors="replace")[-2_000:]
                raise click.ClickException(f"{' '.join(self._command)}: {why}\n{end_of_log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it and all its children by SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def cpu_seconds(self) -> float:
        """Return the user and system time of it and its children up to now."""
        return _TICK * sum(sum(map(int, stat[11:15])) for _, stat in self._tree())

    def peak_rss(self) -> int:
        """Return the most memory that it and its children have held, in bytes."""
        lines = (
            line
            for process, _ in self._tree()
            for line in (process / "status").read_text().splitlines()
        )
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

    def _tree(self) -> Iterator[tuple[Path, list[str]]]:
        """Yield the folder of each process of the session, and its `stat` from the state on."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                stat = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(stat[3]) == self._process.pid:
                yield process, stat


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True

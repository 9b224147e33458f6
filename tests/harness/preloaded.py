"""relay started as a fork of a process that has imported it already: at a tenth of the cost.

A fork runs and ends as `python -m relay` does, but what it has imported is not cleared at its end.
What imports and starts Python is tested elsewhere.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Final

from tests.harness.spare import fork_spare

_ROOT: Final = Path(__file__).parents[2]
_PASSED_ON: Final = ("PATH",)
_NUMBER: Final = struct.Struct("q")
_LARGEST_REQUEST: Final = 2**17
_IMPORTED_WHEN_NEEDED: Final = (
    "anyio._backends._asyncio",
    "relay.destinations.segment",
    "relay.outbox.postgres.store",
    "relay.sources.customerio",
    "relay.sources.vero",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
)
"""Modules that relay imports only once it runs."""


class ForkedRelay:
    """A running `relay`, to be waited for as a `subprocess.Popen` is.

    Attributes:
        pid: of the process, which leads a session of its own.
        returncode: as of `Popen`; None while it runs.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
    ) -> None:
        self.returncode: int | None = None
        reading, writing = os.pipe()
        self._news = os.fdopen(reading, "rb", buffering=0)
        request = json.dumps([*arguments, dict(environ)]).encode()
        try:
            files = [stdout.fileno(), stderr.fileno(), writing]
            socket.send_fds(_server().requests, [request], files)
        finally:
            os.close(writing)
        self.pid = self._read_number()

    def __del__(self) -> None:
        self._news.close()

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None and select.select([self._news], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            if not select.select([self._news], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("relay", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._read_number())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it the signal unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and that is not reported yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def _read_number(self) -> int:
        number: int
        (number,) = _NUMBER.unpack(self._news.read(_NUMBER.size) or b"")
        return number


class _Server:
    """The process that is forked. It ends with this one, which holds the other end of its input."""

    def __init__(self) -> None:
        self.requests, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(  # noqa: S603 (its own Python and its own module)
                [sys.executable, "-m", __name__],
                cwd=_ROOT,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                stdin=its.fileno(),
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )


@cache
def _server() -> _Server:
    """Start it when it is first needed."""
    return _Server()


def _serve(requests: socket.socket) -> list[str]:
    """Fork for each request. Return the arguments of one in its fork, and never here."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        request, files, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, 3)
        if not request:
            sys.exit()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            out, err, news = files
            if pid := os.fork():
                _report(pid, news)
            os.close(news)
            arguments: list[str]
            *arguments, environ = json.loads(request)
            _become(environ, out, err)
            return arguments
        for file in files:
            os.close(file)


def _report(pid: int, news: int) -> None:
    """Write the process id of a child and, once it has ended, its wait status; then end."""
    os.write(news, _NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    os.write(news, _NUMBER.pack(status))
    os._exit(0)


def _become(environ: Mapping[str, str], out: int, err: int) -> None:
    """Take the place that a new process with this environment and these files has."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, out, err)):
        os.dup2(file, number)
        os.close(file)
    # Ignored where the tests run in the background of a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    time.tzset()


def _main() -> None:
    from relay.cli import main  # noqa: PLC0415 (only here, not where requests are made)

    for name in _IMPORTED_WHEN_NEEDED:
        import_module(name)
    gc.freeze()
    requests = socket.socket(fileno=os.dup(0))
    sys.argv[1:] = _serve(requests)
    codes: list[object] = []
    atexit.register(_end, codes)  # runs after all functions that relay registers
    if "serve" in sys.argv and "--no-forward" not in sys.argv:
        fork_spare()
    try:
        main(prog_name="relay")
    except SystemExit as error:
        codes.append(error.code)
        raise


def _end(codes: Sequence[object]) -> None:
    """End with the exit code, if there is one.

    Python would clear all modules. In a fork that copies their memory, at the cost of ten forks.
    """
    for code in codes:
        if isinstance(code, int):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


if __name__ == "__main__":
    _main()

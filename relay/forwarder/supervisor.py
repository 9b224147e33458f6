"""Runs the forwarder in a second process, so that receiving never waits for forwarding.

In one process both would share Python's global lock, and a webhook would wait for rendering,
compression and settling of those before it.
"""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import structlog

import relay
from relay.forwarder.report import Report, read_reports

RESTART_SECONDS: Final = 1.0
LONGEST_RESTART_SECONDS: Final = 30.0
SILENCE_SECONDS: Final = 15
"""A process that has reported nothing for this long hangs."""
FIRST_SILENCE_SECONDS: Final = 60
"""How long it has for its first report: a busy machine starts Python slowly."""

_LOOK_SECONDS: Final = 1.0
_MOST_READ: Final = 2**16
_KILL_SECONDS: Final = 1.0

_log = structlog.get_logger()


def own_command() -> list[str]:
    """Return the command that runs this same relay, with no import from the working directory.

    It names relay's code by its path: by name alone, Python might find another relay.
    """
    flag = "-I" if sys.flags.isolated else "-P"
    main = Path(relay.__file__).resolve().with_name("__main__.py")
    return [sys.executable, flag, str(main)]


def own_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for this relay's own command.

    In `PYTHONPATH` an empty or relative entry means the working directory, and is left out.
    systemd's socket is for this process alone.
    """
    own = {name: value for name, value in environ.items() if name != "NOTIFY_SOCKET"}
    if "PYTHONPATH" in own:
        entries = own["PYTHONPATH"].split(os.pathsep)
        own["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, entries))
    return own


class Supervisor:
    """A supervisor of the process `relay <arguments>`: restarts it when it ends or hangs.

    Its standard input is a pipe from this process. So it ends whenever this process ends.

    After a process that hung, or ended without being asked to, the next one is started with
    `--after-crash`.

    Args:
        arguments: arguments of the command.
        environ: its environment.
        broken: called when it ends with `EX_IOERR`: a restart would not help.
        lost: called when the supervisor itself ends without being asked to.
        silence_seconds: how long it may report nothing.
        command: the program that takes the arguments; by default this same relay.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        broken: Callable[[], object] = lambda: None,
        lost: Callable[[], object] = lambda: None,
        silence_seconds: int = SILENCE_SECONDS,
        command: Sequence[str] | None = None,
    ) -> None:
        self._broken = broken
        self._lost = lost
        self._silence_seconds = silence_seconds
        self._report = Report()
        self._arguments = list(arguments)
        self._command = list(command or own_command())
        self._environ = own_environ(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._hung = False
        self._crashed = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def running(self) -> bool:
        """Whether the process runs at this moment, and does not hang."""
        return not self._hung and self._process is not None and self._process.returncode is None

    def metrics(self) -> bytes:
        """Return the metrics that the process reported last, even if it has ended since."""
        return self._report.metrics

    def problem(self) -> str | None:
        """Return why it makes no progress, as it reported last; None if it does."""
        return self._report.problem

    def start(self) -> None:
        """Start the process, now and whenever it ends."""
        self._thread.start()

    def stop_soon(self) -> None:
        """Ask the process to end."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """End the process; when this returns it has ended, unless even the kernel cannot end it.

        Args:
            timeout: seconds that it has to end by itself.
        """
        self.stop_soon()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        if self._process is not None:
            self._process.kill()
        self._thread.join(_KILL_SECONDS)

    def _supervise(self) -> None:
        pause = RESTART_SECONDS
        try:
            while not self._stopping.is_set():
                try:
                    self._run()
                    pause = RESTART_SECONDS
                except Exception as error:  # noqa: BLE001 (out of files or memory: it may pass)
                    kind = type(error).__name__
                    _log.error("supervisor.failed", kind=kind, error=str(error))
                    pause = min(2 * pause, LONGEST_RESTART_SECONDS)
                self._stopping.wait(pause)
        finally:
            if not self._stopping.is_set():
                self._lost()

    def _run(self) -> None:
        """Run the process once, until it ends or is killed.

        Raises:
            OSError: it cannot be started.
        """
        command = [*self._command, *self._arguments]
        command += ["--after-crash"] if self._crashed else []
        with subprocess.Popen(  # noqa: S603 (its own Python and its own arguments)
            command, env=self._environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            self._process = process
            try:
                if self._stopping.is_set():  # since before it was started
                    process.terminate()
                for report in read_reports(self._output(process)):
                    self._report = report
                process.wait(self._silence_seconds)
            finally:
                if process.poll() is None and not self._stopping.is_set():
                    process.kill()
        if not self._stopping.is_set():
            self._crashed = True
            _log.error("supervisor.process_died", command=self._arguments, code=process.returncode)
            if process.returncode == os.EX_IOERR:
                self._broken()

    def _output(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """Yield what it writes, until it closes its output, or is killed for its silence.

        Silence is counted in looks and not by a clock: while the whole machine was suspended, so
        was this process.
        """
        assert process.stdout  # noqa: S101 (it is a pipe)
        output = process.stdout.fileno()
        poller = select.poll()
        poller.register(output, select.POLLIN)
        silent, most = 0, max(self._silence_seconds, FIRST_SILENCE_SECONDS)
        while silent < most or self._stopping.is_set():  # stopping has a time limit of its own
            if not poller.poll(_LOOK_SECONDS * 1000):
                silent += 1
                continue
            piece = os.read(output, _MOST_READ)
            if not piece:
                return
            silent, most = 0, self._silence_seconds
            self._hung = False
            yield piece
        self._hung = True
        _log.critical("supervisor.process_hung", silent_seconds=silent)
        process.kill()

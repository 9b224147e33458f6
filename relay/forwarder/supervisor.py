"""A second process of relay's own, so that receiving never waits for forwarding.

In one process both would share Python's global lock, and a webhook would wait for mapping,
compression and settlement of those before it.

What the other process counts it tells this one, as text through its standard output, where nothing
else is written: logs go to standard error. That it tells anything shows that it lives.
"""

import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog

import relay

RESTART_SECONDS: Final = 1.0
LONGEST_RESTART_SECONDS: Final = 30.0
TELL_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 15
"""A process that has told nothing for so long hangs."""
FIRST_SILENCE_SECONDS: Final = 60
"""How long it has to tell something for the first time: a busy machine starts Python slowly."""

_TROUBLE: Final = b"# TROUBLE "
"""Begins the first line of a text, where there is something to tell but numbers."""
_END: Final = b"# EOF\n"
"""The line that ends a text: in what Prometheus reads it is the last one, if there is one."""
_LOOK_SECONDS: Final = 1.0
_MOST_READ: Final = 2**16
_KILL_SECONDS: Final = 1.0

_log = structlog.get_logger()


def own_command() -> list[str]:
    """The command that runs this very relay, with no import from the working directory.

    Its code is named by its place: by its name alone, another one might be found.
    """
    flag = "-I" if sys.flags.isolated else "-P"
    main = Path(relay.__file__).resolve().with_name("__main__.py")
    return [sys.executable, flag, str(main)]


def own_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for this relay's own command.

    In `PYTHONPATH` an empty or relative entry means the working directory, and is left out.
    systemd's socket is for this process alone.
    """
    own = {name: value for name, value in environ.items() if name != "NOTIFY_SOCKET"}
    if "PYTHONPATH" in own:
        entries = own["PYTHONPATH"].split(os.pathsep)
        own["PYTHONPATH"] = os.pathsep.join(filter(os.path.isabs, entries))
    return own


class Supervisor:
    """`relay <arguments>` beside this process: started again when it ends or hangs.

    Its standard input is a pipe from here, so that it ends with this process, however that ends.

    One that ended without being asked to, or hung, left undone what it had in hand; the next one is
    told so by `--after-crash`.

    Args:
        arguments: of the command.
        environ: its environment.
        broken: called when it ends with `EX_IOERR`: starting it alone again would not help.
        lost: called when nothing starts it again any more, and nobody has asked for that.
        silence_seconds: for how long it may tell nothing.
        command: what takes the arguments; by default this very relay.
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
        self._told = b""
        self._problem: str | None = None
        self._arguments = list(arguments)
        self._command = list(command or own_command())
        self._environ = own_environ(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._hung = False
        self._crashed = False
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="companion", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it runs at this moment, and does not hang."""
        return not self._hung and self._process is not None and self._process.returncode is None

    def told(self) -> bytes:
        """The text that it told last; when it has died, until the next one tells its own."""
        return self._told

    def problem(self) -> str | None:
        """Why it does not get on, in its own words; None if it does. As old as `told`."""
        return self._problem

    def start(self) -> None:
        """Start it, now and whenever it ends."""
        self._keeper.start()

    def stop_soon(self) -> None:
        """Ask it to end."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """End it; when this returns it is gone, unless not even the system can end it.

        Args:
            timeout: seconds that it has to end by itself.
        """
        self.stop_soon()
        if not self._keeper.is_alive():
            return
        self._keeper.join(timeout)
        if self._process is not None:
            self._process.kill()
        self._keeper.join(_KILL_SECONDS)

    def _keep(self) -> None:
        pause = RESTART_SECONDS
        try:
            while not self._stopping.is_set():
                try:
                    self._run()
                    pause = RESTART_SECONDS
                except Exception as error:  # noqa: BLE001 (out of files or memory: it may pass)
                    kind = type(error).__name__
                    _log.error("companion.failed", kind=kind, error=str(error))
                    pause = min(2 * pause, LONGEST_RESTART_SECONDS)
                self._stopping.wait(pause)
        finally:
            if not self._stopping.is_set():
                self._lost()

    def _run(self) -> None:
        """Run it once, until it ends or is ended.

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
                if self._stopping.is_set():  # told so while it was being started
                    process.terminate()
                for text in texts(self._pieces(process)):
                    self._hear(text)
                process.wait(self._silence_seconds)
            finally:
                if process.poll() is None and not self._stopping.is_set():
                    process.kill()
        if not self._stopping.is_set():
            self._crashed = True
            _log.error("companion.died", command=self._arguments, code=process.returncode)
            if process.returncode == os.EX_IOERR:
                self._broken()

    def _hear(self, text: bytes) -> None:
        first, _, rest = text.partition(b"\n")
        in_trouble = first.startswith(_TROUBLE)
        self._problem = first.removeprefix(_TROUBLE).decode() if in_trouble else None
        self._told = rest if in_trouble else text

    def _pieces(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """What it tells, until it closes its output, or is ended for its silence.

        Silence is counted in looks and not by a clock: where the whole machine was suspended, so
        was this process.
        """
        assert process.stdout  # noqa: S101 (it is a pipe)
        output = process.stdout.fileno()
        poller = select.poll()
        poller.register(output, select.POLLIN)
        silent, most = 0, max(self._silence_seconds, FIRST_SILENCE_SECONDS)
        while silent < most or self._stopping.is_set():  # it is stopped in a time of its own
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
        _log.critical("companion.hung", silent_seconds=silent)
        process.kill()


def texts(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The texts that were told in these pieces, each once it is whole; not one that is cut off."""
    begun = b""
    for piece in pieces:
        *whole, begun = (begun + piece).split(_END)
        yield from whole


def _trouble_line(problem: str | None) -> bytes:
    if problem is None:
        return b""
    return _TROUBLE + " ".join(problem.split()).encode(errors="replace") + b"\n"


@contextmanager
def publish_metrics(
    text: Callable[[], bytes], output: int, *, problem: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Tell the text to the process that started this one: at once, each second, and at the end.

    Args:
        text: what is to be told, as it is by then.
        output: the descriptor to write to; past Python's own file, whose lock a thread that nobody
            listens to would hold for ever.
        problem: why this process does not get on; None if it does.
    """
    ended = threading.Event()

    def tell() -> None:
        last, why = False, None  # a start takes a moment: what it waits for is no trouble yet
        with suppress(OSError):  # nobody listens any more, and this process is told otherwise
            while True:
                rest = _trouble_line(why) + text() + _END
                while rest:
                    rest = rest[os.write(output, rest) :]
                if last:
                    return
                last = ended.wait(TELL_SECONDS)
                why = problem()

    teller = threading.Thread(target=tell, name="telling", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join(TELL_SECONDS)

"""A second process of relay's own, so that receiving never waits for forwarding.

In one process both would share Python's global lock, and a webhook would wait for mapping,
compression and settlement of those before it.

What the other process counts it tells this one, as text through its standard output, where nothing
else is written: logs go to standard error.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final

import structlog

RESTART_SECONDS: Final = 1.0
TELL_SECONDS: Final = 1.0

_END: Final = b"# EOF\n"
"""The line that ends a text: in what Prometheus reads it is the last one, if there is one."""

_log = structlog.get_logger()


class Companion:
    """`relay <arguments>` beside this process: started again when it dies, ended with this one.

    Its standard input is a pipe from here, so that it notices however this process ends.

    Args:
        arguments: of the command.
        environ: its environment.
        broken: called when it ends with `EX_IOERR`: starting it alone again would not help.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        broken: Callable[[], object] = lambda: None,
    ) -> None:
        self._broken = broken
        self._told = b""
        self._command = [sys.executable, "-m", "relay", *arguments]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="companion", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it runs at this moment."""
        return self._process is not None and self._process.returncode is None

    def told(self) -> bytes:
        """The text that it told last; when it has died, until the next one tells its own."""
        return self._told

    def start(self) -> None:
        """Start it, now and whenever it dies."""
        self._keeper.start()

    def stop_soon(self) -> None:
        """Ask it to end."""
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()

    def stop(self, timeout: float) -> None:
        """End it; when this returns it is gone.

        Args:
            timeout: seconds that it has to end by itself.
        """
        self.stop_soon()
        self._keeper.join(timeout)
        if self._process is not None:
            self._process.kill()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            with subprocess.Popen(  # noqa: S603 (its own Python and its own arguments)
                self._command, env=self._environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as self._process:
                if self._stopping.is_set():  # told so while it was being started
                    self._process.terminate()
                for text in texts(self._process.stdout or ()):
                    self._told = text
                code = self._process.wait()
            if not self._stopping.is_set():
                _log.error("companion.died", command=self._command[2:], code=code)
                if code == os.EX_IOERR:
                    self._broken()
                self._stopping.wait(RESTART_SECONDS)


def texts(output: Iterable[bytes]) -> Iterator[bytes]:
    """The texts in lines that were told, each once it is whole; nothing of one that is cut off."""
    text: list[bytes] = []
    for line in output:
        if line == _END:
            yield b"".join(text)
            text = []
        else:
            text.append(line)


@contextmanager
def telling(text: Callable[[], bytes], output: int) -> Iterator[None]:
    """Tell the text to the process that started this one: once a second, and at the end.

    Args:
        text: what is to be told, as it is by then.
        output: the descriptor to write to; past Python's own file, whose lock a thread that nobody
            listens to would hold for ever.
    """
    ended = threading.Event()

    def tell() -> None:
        last = False
        with suppress(OSError):  # nobody listens any more, and this process is told otherwise
            while not last:
                last = ended.wait(TELL_SECONDS)
                rest = text() + _END
                while rest:
                    rest = rest[os.write(output, rest) :]

    teller = threading.Thread(target=tell, name="telling", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join(TELL_SECONDS)

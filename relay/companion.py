"""A second process of relay's own, so that receiving never waits for forwarding.

In one process both would share Python's global lock, and a webhook would wait for mapping,
compression and settlement of those before it.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

RESTART_SECONDS: Final = 1.0

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
        self._command = [sys.executable, "-m", "relay", *arguments]
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="companion", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it runs at this moment."""
        return self._process is not None and self._process.returncode is None

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
                self._command, env=self._environ, stdin=subprocess.PIPE
            ) as self._process:
                if self._stopping.is_set():  # told so while it was being started
                    self._process.terminate()
                code = self._process.wait()
            if not self._stopping.is_set():
                _log.error("companion.died", command=self._command[2:], code=code)
                if code == os.EX_IOERR:
                    self._broken()
                self._stopping.wait(RESTART_SECONDS)

"""The first forwarder of a forked `relay serve`, forked along with it instead of executed.

Each one that is started after it is executed, as all of them are outside the tests.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any, ClassVar, Final

_LARGEST_REQUEST: Final = 2**17


def fork_spare() -> None:
    """Fork a child that waits until this process starts another relay, and becomes that one.

    Return in both. Call it before there are threads or open outboxes: none of them is forked well.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        its.close()
        _SpareFirst.spare = (pid, ours)
        subprocess.Popen = _SpareFirst  # type: ignore[misc, assignment]
        return
    ours.close()
    request, files, _, _ = socket.recv_fds(its, _LARGEST_REQUEST, 2)
    if not request:
        os._exit(0)
    its.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    command, environ = json.loads(request)
    os.environ.clear()
    os.environ.update(environ)
    # Its own Python, a flag and the path of relay's code come first.
    sys.argv[1:] = command[3:]


class _SpareFirst(subprocess.Popen[bytes]):
    """A child process: the spare one the first time."""

    spare: ClassVar[tuple[int, socket.socket] | None] = None

    def _execute_child(self, *values: Any) -> None:  # noqa: ANN401 (as its parent takes them)
        if self.spare is None:
            super()._execute_child(*values)  # type: ignore[misc]
            return
        (self.pid, spare), _SpareFirst.spare = self.spare, None
        command, environ, stdin, stdout = values[0], values[6], values[10], values[13]
        with spare, suppress(BrokenPipeError):  # it may have been killed
            socket.send_fds(spare, [json.dumps([command, environ]).encode()], [stdin, stdout])
        self._child_created = True
        os.close(stdin)
        os.close(stdout)

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from relay.logs.writer import BackgroundWriter
from tests.harness.fakes import SegmentServer
from tests.harness.processes import PATH, SECRET, WRITE_KEY, Reply, ask, closed_port, within
from tests.harness.webhooks import opened

pytestmark = pytest.mark.slow

_LINES = 500
_SMALLEST_PIPE = 4096
_FILLS_THE_PIPE = 8


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that holds a few lines."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _SMALLEST_PIPE)
    yield reading, writing
    os.close(reading)


def read_until(reading: int, complete: Callable[[bytes], bool]) -> bytes:
    """Return what comes until it is complete, or nothing comes for 30 s."""
    text = b""
    while not complete(text) and select.select([reading], [], [], 30)[0]:
        text += os.read(reading, 2**16)
    return text


def numbered(number: int) -> str:
    return f"{number:06} {'x' * 992}\n"


def test_a_stalled_reader_blocks_no_writer_and_dropped_lines_are_counted_and_reported(
    pipe: tuple[int, int],
) -> None:
    reading, writing = pipe
    counted: list[int] = []

    def report_dropped(lines: int) -> None:
        writer.write(f"{lines} dropped\n")

    writer = BackgroundWriter(
        writing, dropped=counted.append, resumed=report_dropped, max_waiting_bytes=50_000
    )
    for number in range(_LINES):
        writer.write(numbered(number))
        if number == _FILLS_THE_PIPE:  # a thread that is woken late would take more lines
            assert within(60, lambda: not select.select([], [writing], [], 0)[1])
    text = read_until(reading, lambda text: text.endswith(b"dropped\n"))
    *lines, report = text.decode().splitlines(keepends=True)
    writer.write("afterwards\n")

    assert 50 <= len(lines) < 60
    assert lines == [numbered(number) for number in range(len(lines))]
    assert report == f"{_LINES - len(lines)} dropped\n"
    assert sum(counted) == _LINES - len(lines)
    assert read_until(reading, lambda text: text.endswith(b"\n")) == b"afterwards\n"


def test_draining_waits_until_everything_is_written(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    writer = BackgroundWriter(writing)
    writer.write("first\n")
    writer.write("second \ud800\n")
    writer.drain(60)

    assert os.read(reading, 1000) == b"first\nsecond \\ud800\n"


def test_draining_ends_although_nothing_is_read(pipe: tuple[int, int]) -> None:
    writer = BackgroundWriter(pipe[1])
    writer.write("x" * 100_000)
    writer.drain(0.1)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_non_blocking_pipe_gets_the_whole_text(pipe: tuple[int, int], seconds: float) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    writer = BackgroundWriter(writing)
    writer.write("x" * 99_999 + "\n")
    time.sleep(seconds)  # either may come first

    assert read_until(reading, lambda text: text.endswith(b"\n")) == b"x" * 99_999 + b"\n"


def test_a_reader_that_is_gone_makes_no_writer_fail() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    counted: list[int] = []
    resumed: list[int] = []
    writer = BackgroundWriter(writing, dropped=counted.append, resumed=resumed.append)
    writer.write("one\n")
    writer.write("two\nthree\n")
    writer.drain(60)

    assert counted == [1, 2]
    assert resumed == []


def test_lines_of_two_writers_on_one_pipe_stay_whole(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = [letter * (select.PIPE_BUF - 1) + "\n" for letter in "ab"]
    writers = [BackgroundWriter(writing) for _ in lines]
    for writer, line in zip(writers, lines, strict=True):
        for _ in range(100):
            writer.write(line)
    text = read_until(reading, lambda text: text.count(b"\n") == 200).decode()

    assert sorted(text.splitlines(keepends=True)) == [lines[0]] * 100 + [lines[1]] * 100


_CRASHES = """
import sys
from relay import logs
logs.configure()
print("said before", file=sys.stderr)
def crash():
    raise RuntimeError("this is why")
if sys.argv[1:]:
    import threading
    thread = threading.Thread(target=crash)
    thread.start()
    thread.join()
else:
    crash()
"""


@pytest.mark.parametrize("arguments", [[], ["in a thread"]])
def test_a_crash_is_written_after_all_lines_before_it(arguments: list[str]) -> None:
    done = subprocess.run(  # noqa: S603 (its own Python)
        [sys.executable, "-c", _CRASHES, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, *traceback = done.stderr.splitlines()

    assert first == "said before"
    assert traceback[-1] == "RuntimeError: this is why"
    assert any("in crash" in line for line in traceback)


@contextmanager
def stalled_relay(
    outbox: Path, segment: str, pipe: tuple[int, int], level: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A relay whose log is read until it has started, and no further; and its port."""
    reading, writing = pipe
    environ = {
        "PATH": os.environ["PATH"],
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": segment,
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{outbox}",
        "RELAY_LOG_LEVEL": level,
    }
    command = [sys.executable, "-m", "relay", "serve", "--port", "0"]
    with subprocess.Popen(command, env=environ, stderr=writing) as process:  # noqa: S603 (its own Python)
        os.close(writing)
        try:
            started = read_until(reading, lambda text: b"serve.started" in text and text[-1] == 10)
            (line,) = [line for line in started.splitlines() if b"serve.started" in line]
            yield process, int(json.loads(line)["webhooks"][0].split(":")[2].partition("/")[0])
        finally:
            process.kill()


def ask_once(
    port: int, method: str, path: str, body: bytes | None = None, timeout: float = 30
) -> Reply:
    """Ask on a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=timeout)) as connection:
        return ask(connection, method, path, body)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("level", ["debug", "info"])
def test_a_stalled_log_reader_stops_neither_webhooks_nor_forwarding_nor_the_end(
    tmp_path: Path, pipe: tuple[int, int], level: str, number: signal.Signals
) -> None:
    with (
        SegmentServer() as server,
        stalled_relay(tmp_path / "relay.db", server.url, pipe, level) as (process, port),
    ):
        for mail in range(40):
            # A connection for each: relay closes one that is idle while the forwarder is slow.
            reply = ask_once(port, "POST", PATH, opened(mail))
            assert reply.content["status"] == "accepted"
            # One at a time, so that each is a line of the forwarder's.
            assert within(60, lambda: len(server.accepted) > mail)  # noqa: B023 (it is called now)
        assert ask_once(port, "GET", "/healthz").status == 200
        began = time.monotonic()
        process.send_signal(number)

        assert process.wait(60) == 0
        assert time.monotonic() - began < 20
        assert len(server.accepted) == 40


def test_a_reader_that_resumes_gets_every_line_in_order(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    with (
        SegmentServer() as server,
        stalled_relay(tmp_path / "relay.db", server.url, pipe, "debug") as (process, port),
        closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection,
    ):
        for mail in range(100):
            ask(connection, "POST", PATH, opened(mail))
        connection.close()
        process.terminate()
        text = read_until(pipe[0], lambda text: b"serve.stopped" in text)
        lines = [json.loads(line) for line in text.splitlines()]
        times = [line["timestamp"] for line in lines if line["event"] == "webhook.accepted"]

        assert len(times) == 100
        assert times == sorted(times)


def test_relay_runs_with_its_standard_error_closed(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{tmp_path}/relay.db",
    }
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m relay migrate 2>&-', sys.executable],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stdout.startswith("outbox ok")) == (0, True)


def fill(writing: int) -> None:
    """Leave no room in the pipe."""
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)


def answers(port: int) -> bool:
    """Return whether a relay on this port stores a webhook."""
    with suppress(OSError, HTTPException):
        return ask_once(port, "POST", PATH, opened(1), timeout=5).status == 200
    return False


def environment(outbox: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": f"http://127.0.0.1:{closed_port()}",
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{outbox}",
    }


def test_relay_starts_although_its_output_is_not_read(
    tmp_path: Path, pipe: tuple[int, int]
) -> None:
    """As in a container whose log has stalled: both outputs are one pipe."""
    _, writing = pipe
    fill(writing)
    port = closed_port()
    command = [sys.executable, "-m", "relay", "serve", "--port", str(port)]
    environ = environment(tmp_path / "relay.db")
    with subprocess.Popen(command, env=environ, stdout=writing, stderr=writing) as process:  # noqa: S603 (its own Python)
        try:
            assert within(60, lambda: answers(port))
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(writing)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_relay_runs_and_ends_cleanly_with_standard_files_closed(
    tmp_path: Path, closed: str
) -> None:
    port = closed_port()
    command = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable]
    command += ["-m", "relay", "serve", "--port", str(port)]
    environ = environment(tmp_path / "relay.db")
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:  # noqa: S603 (its own Python)
        try:
            assert within(60, lambda: answers(port))
            files = Path(f"/proc/{process.pid}/fd")
            places = [str((files / str(number)).readlink()) for number in range(3)]
            process.terminate()
            assert process.wait(60) == 0
            assert not any(place.startswith(("socket:", "anon_inode:")) for place in places)
        finally:
            process.kill()

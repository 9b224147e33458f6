"""A part of a relay process hangs, or has ended."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.fakes import SegmentServer
from tests.harness.processes import ExecutedRelay, ForwarderProcess, RelayProcess, within
from tests.harness.webhooks import opened


class FaultyRelay(RelayProcess):
    """A `relay serve --no-forward` with a fault."""

    fault = ""

    def _program(self) -> list[str]:
        return [sys.executable, "-m", "tests.faults.hanging", self.fault]


class FaultyForwarder(ForwarderProcess):
    """A `relay forward` with a fault."""

    fault = ""

    def _program(self) -> list[str]:
        return [sys.executable, "-m", "tests.faults.hanging", self.fault]


class Systemd:
    """The socket on which systemd receives notifications."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(30)

    def heard(self) -> str:
        """Return the next message."""
        return self._socket.recv(1000).decode()

    def falls_silent(self) -> bool:
        """Return whether no message comes for some seconds."""
        self._socket.settimeout(5)
        for _ in range(30):
            try:
                self._socket.recv(1000)
            except TimeoutError:
                return True
        return False

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "notify"))
    yield systemd
    systemd.close()


@pytest.mark.parametrize("fault", ["claiming hangs", "claiming fails"])
def test_a_forwarder_that_gets_nowhere_ends_itself(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyForwarder, "fault", fault)
    file = tmp_path / "relay.db"
    with SegmentServer() as server:
        with RelayProcess(file, server.url, options=["--no-forward"]) as relay:
            relay.post(opened(1))
        with FaultyForwarder(file, server.url) as forwarder:
            assert forwarder.wait(60) == os.EX_SOFTWARE
            # Between these two and after them, workers may log that they fail.
            ends = {"forward.stuck", "process.cut_short"}
            events = [line["event"] for line in forwarder.log()]
            assert [event for event in events if event in ends] == [
                "forward.stuck",
                "process.cut_short",
            ]
        with ForwarderProcess(file, server.url):
            assert within(60, lambda: len(server.accepted) == 1)


def test_a_forwarder_ends_with_any_of_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyForwarder, "fault", "claiming ends")
    file = tmp_path / "relay.db"
    with SegmentServer() as server:
        with RelayProcess(file, server.url, options=["--no-forward"]):
            pass
        with FaultyForwarder(file, server.url) as forwarder:
            assert forwarder.wait(60) == os.EX_SOFTWARE
            assert "thread.died" in [line["event"] for line in forwarder.log()]


def test_a_commit_that_never_ends_makes_relay_unhealthy_and_stops_the_watchdog_messages(
    tmp_path: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyRelay, "fault", "committing hangs")
    path, file, options = str(tmp_path / "notify"), tmp_path / "relay.db", ["--no-forward"]
    with FaultyRelay(file, "http://127.0.0.1:9", options=options, NOTIFY_SOCKET=path) as relay:
        before = relay.ask("GET", "/healthz")
        assert relay.post(opened(1)).status == 503
        assert within(60, lambda: relay.ask("GET", "/healthz").status == 503)

        assert before.content == {"status": "alive"}
        assert relay.ask("GET", "/healthz").content == {
            "status": "unhealthy",
            "reasons": ["a commit has been under way for more than 2 s"],
        }
        assert systemd.falls_silent()
        relay.terminate()
        assert relay.wait(20) == 0


def test_relay_ends_with_its_committing_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FaultyRelay, "fault", "committing ends")
    options = ["--no-forward"]
    with FaultyRelay(tmp_path / "relay.db", "http://127.0.0.1:9", options=options) as relay:
        assert relay.post(opened(1)).status == 503
        assert relay.wait(60) == os.EX_SOFTWARE


@pytest.mark.parametrize("process", [FaultyRelay, FaultyForwarder])
@pytest.mark.slow
def test_relay_ends_in_time_although_the_outbox_never_closes(
    tmp_path: Path, process: type[RelayProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "fault", "closing hangs")
    file = tmp_path / "relay.db"
    with SegmentServer() as server:
        with RelayProcess(file, server.url, options=["--no-forward"]):
            pass
        with process(file, server.url) as relay:
            relay.terminate()

            assert relay.wait(30) == os.EX_SOFTWARE


def test_a_check_that_fails_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyRelay, "fault", "looking fails")
    options = ["--no-forward"]
    with FaultyRelay(tmp_path / "relay.db", "http://127.0.0.1:9", options=options) as relay:
        assert within(
            60, lambda: relay.ask("GET", "/readyz").content.get("reasons") == ["this is why"]
        )


def test_systemd_is_notified_when_relay_is_ready_alive_and_stopping(
    tmp_path: Path, systemd: Systemd
) -> None:
    path = str(tmp_path / "notify")
    with (
        SegmentServer() as server,
        ExecutedRelay(tmp_path / "relay.db", server.url, NOTIFY_SOCKET=path) as relay,
    ):
        forwarder = Path(f"/proc/{relay.forwarder()}/environ")
        assert within(20, lambda: b"RELAY_OUTBOX_URL" in forwarder.read_bytes())
        variables = forwarder.read_bytes()
        began = [systemd.heard() for _ in range(3)]
        relay.terminate()
        ended = {systemd.heard() for _ in iter(systemd.heard, "STOPPING=1")}

        assert b"NOTIFY_SOCKET" not in variables
        assert began == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
        assert ended <= {"WATCHDOG=1"}
        assert relay.wait(20) == 0


def test_systemd_is_notified_by_a_lone_forwarder_too(tmp_path: Path, systemd: Systemd) -> None:
    path, file = str(tmp_path / "notify"), tmp_path / "relay.db"
    with SegmentServer() as server:
        with RelayProcess(file, server.url, options=["--no-forward"]):
            pass
        with ForwarderProcess(file, server.url, NOTIFY_SOCKET=path) as forwarder:
            began = [systemd.heard() for _ in range(3)]
            forwarder.terminate(signal.SIGTERM)
            for _ in iter(systemd.heard, "STOPPING=1"):
                pass

            assert began == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
            assert forwarder.wait(20) == 0

import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import psycopg
import pytest

import relay
from relay.forwarder.supervisor import Supervisor
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import (
    SECRET,
    WRITE_KEY,
    ForwarderProcess,
    RelayProcess,
    closed_port,
    run,
    within,
)
from tests.harness.stores import PostgresStore, Store
from tests.harness.webhooks import opened

pytestmark = pytest.mark.slow


def _runs(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # dead, though nobody has asked yet


def reasons(relay: RelayProcess) -> list[str]:
    """Why it is not ready."""
    reasons: list[str] = relay.ask("GET", "/readyz").content.get("reasons", [])
    return reasons


def codes_of_the_dead(relay: RelayProcess) -> list[int]:
    """Exit codes of the forwarders that have died."""
    died = "supervisor.process_died"
    return [line["code"] for line in relay.log() if line["event"] == died]


def test_a_forwarder_that_dies_is_started_again(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        first = relay.forwarder()
        os.kill(first, signal.SIGKILL)
        answer = relay.post(opened(1))

        assert answer.content["status"] == "accepted"
        assert within(20, lambda: len(server.accepted) == 1)
        assert relay.forwarder() != first
        assert [
            line["code"] for line in relay.log() if line["event"] == "supervisor.process_died"
        ] == [-9]


def test_metrics_of_a_dead_forwarder_stay_until_the_next_one_reports(
    tmp_path: Path,
) -> None:
    def sent(relay: RelayProcess) -> list[str]:
        with closing(HTTPConnection("127.0.0.1", relay.port, timeout=30)) as connection:
            connection.request("GET", "/metrics")
            page = connection.getresponse().read().decode()
        return re.findall(
            r'^relay_messages_total{answer="accepted",destination="segment"} (.*)$',
            page,
            re.MULTILINE,
        )

    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        for mail in range(2):
            relay.post(opened(mail))
        assert within(20, lambda: sent(relay) == ["2.0"])
        os.kill(relay.forwarder(), signal.SIGKILL)
        assert within(
            20, lambda: any(line["event"] == "supervisor.process_died" for line in relay.log())
        )
        afterwards = sent(relay)
        relay.post(opened(3))

        assert afterwards == ["2.0"]
        assert within(20, lambda: sent(relay) == ["1.0"])


def test_relay_is_not_ready_without_its_forwarder(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:

        def unready() -> bool:
            with suppress(ProcessLookupError):
                os.kill(relay.forwarder(), signal.SIGKILL)
            readiness = relay.ask("GET", "/readyz")
            return readiness.content.get("reasons") == ["the forwarder is not running"]

        assert within(20, unready)


def test_a_forwarder_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        forwarder = relay.forwarder()
        relay.post(opened(1))
        assert within(20, lambda: len(server.accepted) == 1)  # it is up, and its main thread asleep
        relay.kill_alone()

        assert within(20, lambda: not _runs(forwarder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_an_orderly_end(tmp_path: Path, number: signal.Signals) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        forwarder = relay.forwarder()
        relay.terminate(number)
        code = relay.wait(20)

        assert code == 0
        assert not _runs(forwarder)


def test_further_signals_do_not_cut_the_shutdown_short(tmp_path: Path) -> None:
    asked = threading.Event()

    def judge(_batch: object) -> Answer:
        asked.set()
        return Answer(delay=1)

    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        server.judge = judge
        relay.post(opened(1))
        forwarder = relay.forwarder()
        assert asked.wait(20)
        while _runs(forwarder):
            with suppress(ProcessLookupError):
                os.kill(forwarder, signal.SIGTERM)

        events = [line["event"] for line in relay.log()]
        assert "forward.outbox_failed" not in events
        assert events.count("forward.sent") + events.count("forward.released") == 1


@pytest.mark.parametrize(
    ("command", "role"),
    [(["serve", "--port", "0"], "receives into"), (["forward"], "forwards from")],
)
def test_a_second_process_in_a_role_is_refused_and_does_not_disturb_the_first(
    tmp_path: Path, command: list[str], role: str
) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        forwarder = relay.forwarder()
        relay.post(opened(1))
        assert within(20, lambda: len(server.accepted) == 1)  # it has taken its role
        refused = run(
            *command,
            SEGMENT_WRITE_KEY=WRITE_KEY,
            SEGMENT_HOST=server.url,
            RELAY_VERO_SECRET=SECRET,
            RELAY_OUTBOX_URL=relay.store.url,
        )
        relay.post(opened(2))

        assert refused.returncode == 1
        assert refused.stderr == (
            f"Error: outbox: another process {role} {relay.outbox}: one can; PostgreSQL takes any"
            " number\n"
        )
        assert within(20, lambda: len(server.accepted) == 2)
        assert relay.forwarder() == forwarder


def test_a_file_takes_one_receiver_and_one_forwarder(
    tmp_path: Path,
) -> None:
    file = tmp_path / "relay.db"
    with (
        SegmentServer() as server,
        RelayProcess(file, server.url, options=["--no-forward"]) as relay,
        ForwarderProcess(file, server.url),
    ):
        relay.post(opened(1))

        assert within(20, lambda: len(server.accepted) == 1)


def test_a_forwarder_that_hangs_makes_relay_unready_and_is_replaced(store: Store) -> None:
    with SegmentServer() as server, RelayProcess(store, server.url) as relay:
        relay.post(opened(1))
        assert within(20, lambda: len(server.accepted) == 1)
        hanging = relay.forwarder()
        os.kill(hanging, signal.SIGSTOP)

        assert within(60, lambda: "the forwarder is not running" in reasons(relay))
        # Not before: it may have been stopped while it wrote to the file.
        assert within(60, lambda: relay.post(opened(2)).status == 200)
        # What it had posted and not settled is sent again, under its id.
        assert within(60, lambda: len({each["messageId"] for each in server.accepted}) == 2)
        assert within(60, lambda: reasons(relay) == [])
        assert relay.forwarder() != hanging
        assert [
            line["code"] for line in relay.log() if line["event"] == "supervisor.process_died"
        ] == [-9]


def test_relay_is_not_ready_while_its_forwarder_cannot_lock_the_file(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        os.kill(relay.forwarder(), signal.SIGKILL)
        with (tmp_path / "relay.db-forwarder").open("ab") as taken:
            fcntl.flock(taken, fcntl.LOCK_EX)
            relay.post(opened(1))
            waits = ["the forwarder makes no progress: it waits for the outbox"]

            assert within(60, lambda: reasons(relay) == waits)
        assert within(60, lambda: reasons(relay) == [])
        assert within(60, lambda: len(server.accepted) == 1)


def test_relay_is_not_ready_while_the_throttle_is_locked_by_a_stranger(
    postgres_store: PostgresStore,
) -> None:
    """The receiver, which only reads it, finds nothing wrong."""
    with (
        SegmentServer() as server,
        RelayProcess(postgres_store, server.url) as relay,
    ):
        throttles = "SELECT destination FROM relay.throttles"
        assert within(60, lambda: bool(postgres_store.run_sql(throttles)))
        with psycopg.connect(postgres_store.url) as stranger:
            stranger.execute(f"{throttles} FOR UPDATE")
            relay.post(opened(1))
            cancelled = "PostgreSQL: canceling statement due to statement timeout"

            assert within(
                60, lambda: reasons(relay) == [f"the forwarder makes no progress: {cancelled}"]
            )
        assert within(60, lambda: reasons(relay) == [])
        assert within(60, lambda: len(server.accepted) == 1)


def test_a_forwarder_that_cannot_be_started_is_started_once_it_can(tmp_path: Path) -> None:
    with SegmentServer() as server, RelayProcess(tmp_path / "relay.db", server.url) as relay:
        before = resource.prlimit(relay.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        relay.kill_forwarder()
        failures = [{"error": "[Errno 24] Too many open files", "kind": "OSError"}] * 2

        def failed() -> list[dict[str, str]]:
            lines = [line for line in relay.log() if line["event"] == "supervisor.failed"]
            return [{"error": line["error"], "kind": line["kind"]} for line in lines]

        assert within(60, lambda: failed()[:2] == failures)
        resource.prlimit(relay.pid, resource.RLIMIT_NOFILE, before)

        assert within(60, lambda: relay.ask("GET", "/readyz").status == 200)
        relay.post(opened(1))
        assert within(60, lambda: len(server.accepted) == 1)


_HANGS_THE_FIRST_TIME = """
import sys, time
starts = open(sys.argv[1], "r+")
first = not starts.read()
starts.write(" ".join(sys.argv[2:]) + ".")
starts.close()
while True:
    sys.stdout.write("# EOF\\n")
    sys.stdout.flush()
    time.sleep(10_000 if first else 0.1)
"""


def test_a_silent_process_is_killed_and_the_next_knows_of_the_crash(
    tmp_path: Path,
) -> None:
    script, starts = tmp_path / "script.py", tmp_path / "starts"
    script.write_text(_HANGS_THE_FIRST_TIME)
    starts.touch()
    command = [sys.executable, str(script)]
    supervisor = Supervisor([str(starts), "forward"], {}, command=command, silence_seconds=2)
    supervisor.start()
    try:
        assert within(60, lambda: starts.read_text().startswith("forward.forward --after-crash."))
        assert within(60, lambda: supervisor.running)
    finally:
        supervisor.stop(0)


def test_a_process_that_closes_its_output_and_stays_is_killed(tmp_path: Path) -> None:
    script, starts = tmp_path / "script.py", tmp_path / "starts"
    script.write_text(
        "import os, sys, time; open(sys.argv[1], 'a').write('.'); os.close(1); time.sleep(999)"
    )
    command = [sys.executable, str(script)]
    supervisor = Supervisor([str(starts)], {}, command=command, silence_seconds=1)
    supervisor.start()
    try:
        assert within(60, lambda: starts.exists() and len(starts.read_text()) >= 2)
    finally:
        supervisor.stop(0)


def test_the_end_of_the_supervisor_itself_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # pytest's would fail the test
    lost = threading.Event()
    command = [sys.executable, "-c", f"raise SystemExit({os.EX_IOERR})"]
    supervisor = Supervisor([], {}, command=command, broken=sys.exit, lost=lost.set)
    supervisor.start()

    assert lost.wait(60)


_TELLS_WHO_IMPORTS_IT = """
import os
with open({!r}, "a") as output:
    output.write(f"{{os.getpid()}}\\n")
"""


@pytest.mark.parametrize("python_path", ["", ":", ".", "{elsewhere}:"])
def test_a_forwarder_is_this_very_relay_and_imports_nothing_from_the_working_directory(
    tmp_path: Path, python_path: str
) -> None:
    imported, trapped, here = tmp_path / "imported", tmp_path / "trapped", tmp_path / "here"
    trapped.touch()
    here.mkdir()
    mine = tmp_path / "mine"
    shutil.copytree(Path(relay.__file__).parent, mine / "relay")
    with (mine / "relay" / "forwarder" / "forwarder.py").open("a") as code:
        code.write(_TELLS_WHO_IMPORTS_IT.format(str(imported)))
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": python_path.format(elsewhere=tmp_path / "elsewhere"),
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": f"http://127.0.0.1:{closed_port()}",
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{tmp_path}/relay.db",
    }
    command = [sys.executable, "-P", str(mine / "relay" / "__main__.py"), "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=here, env=environ, stderr=subprocess.DEVNULL) as process:  # noqa: S603 (its own Python)

        def importing() -> set[int]:
            pids = imported.read_text().split() if imported.exists() else []
            return {int(pid) for pid in pids} - {process.pid}

        try:
            assert within(60, lambda: len(importing()) == 1)
            (first,) = importing()
            for name in ("structlog", "sitecustomize", "relay", "json"):
                (here / f"{name}.py").write_text(_TELLS_WHO_IMPORTS_IT.format(str(trapped)))
            os.kill(first, signal.SIGKILL)

            assert within(60, lambda: len(importing()) == 2)
            assert trapped.read_text() == ""
        finally:
            process.terminate()
            process.wait(60)

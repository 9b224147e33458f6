import json
import signal
import socket
from pathlib import Path

import pytest

from relay import __version__
from tests.harness.fakes import SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, run, within

COMMANDS = ["serve", "demo", "check", "settings"]


def environ(path: Path, **changed: str) -> dict[str, str]:
    """Return the variables that relay needs, with these changes."""
    return {
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": "http://127.0.0.1:1",
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{path / 'relay.db'}",
        **changed,
    }


def test_the_version_is_printed() -> None:
    done = run("--version")

    assert (done.returncode, done.stdout) == (0, f"relay, version {__version__}\n")


def test_help_names_every_command() -> None:
    done = run("--help")

    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = run(command, "-h")

    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: relay {command} [OPTIONS]")


@pytest.mark.parametrize("command", ["serve", "check"])
def test_all_faulty_settings_are_reported_at_once_without_secrets(command: str) -> None:
    done = run(
        command,
        SEGMENT_REGION="mars",
        SEGMENT_HOST="https://ann:open-sesame@events.example.com",
        RELAY_VERO_SECRET="too-short",
        RELAY_VERO_SECRETS="a-mistyped-variable",
        PORT="eighty",
    )
    lines = done.stderr.splitlines()

    assert done.returncode == 2
    assert sorted(line.partition(":")[0] for line in lines) == [
        "PORT",
        "RELAY_VERO_SECRET",
        "RELAY_VERO_SECRETS",
        "SEGMENT_HOST",
        "SEGMENT_REGION",
        "SEGMENT_WRITE_KEY",
    ]
    assert done.stdout == ""
    for secret in ("too-short", "a-mistyped-variable", "open-sesame"):
        assert secret not in done.stderr


def test_settings_prints_every_variable_although_none_is_set() -> None:
    done = run("settings")
    variables = [line.split("`")[1] for line in done.stdout.splitlines()[2:]]

    assert done.returncode == 0
    assert {"SEGMENT_WRITE_KEY", "SEGMENT_HOST", "RELAY_OUTBOX_URL", "PORT"} <= {*variables}
    assert {"RELAY_VERO_SECRET", "RELAY_VERO_TESTS", "RELAY_VERO_LOOP"} <= {*variables}


def test_check_prints_success_and_the_webhook_url(tmp_path: Path) -> None:
    with SegmentServer() as server:
        variables = environ(tmp_path, SEGMENT_HOST=server.url)
        run("migrate", **variables)
        done = run("check", **variables)
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}

    assert done.returncode == 0
    assert lines.keys() == {"settings", "outbox", "segment", "webhook"}
    assert "0 pending, 0 delivered, 0 dead" in lines["outbox"]
    assert server.url in lines["segment"]
    assert "/webhooks/vero/<secret>" in lines["webhook"]
    assert not server.received
    for secret in (SECRET, WRITE_KEY):
        assert secret not in done.stdout + done.stderr


def test_check_creates_no_outbox_and_names_the_command_that_does(tmp_path: Path) -> None:
    with SegmentServer() as server:
        done = run("check", **environ(tmp_path, SEGMENT_HOST=server.url))

    assert done.returncode == 0
    assert "does not exist yet; `relay serve` creates it" in done.stdout
    assert [*tmp_path.iterdir()] == []


def test_check_warns_of_files_that_other_users_can_read(tmp_path: Path) -> None:
    with SegmentServer() as server:
        variables = environ(tmp_path, SEGMENT_HOST=server.url)
        run("migrate", **variables)
        (path,) = tmp_path.glob("*.db")
        path.chmod(0o644)
        done = run("check", **variables)

    assert done.returncode == 0
    assert f"{path} has mode 0644" in done.stdout
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"SEGMENT_HOST": "http://127.0.0.1:1"}, "segment: http://127.0.0.1:1: "),
        ({"RELAY_OUTBOX_URL": "sqlite:////nowhere/relay.db"}, "outbox: /nowhere/relay.db cannot"),
        ({"RELAY_OUTBOX_URL": "sqlite:////dev/null/relay.db"}, "outbox: /dev/null/relay.db cannot"),
        ({"RELAY_VERO_SECRET": ""}, "no source has a secret"),
    ],
)
def test_check_reports_a_problem_in_one_line(
    tmp_path: Path, changed: dict[str, str], error: str
) -> None:
    with SegmentServer() as server:
        done = run("check", **environ(tmp_path, **{"SEGMENT_HOST": server.url, **changed}))

    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {error}")
    assert len(done.stderr.splitlines()) == 1


def test_serve_does_not_start_if_the_outbox_cannot_be_opened(tmp_path: Path) -> None:
    done = run("serve", **environ(tmp_path, RELAY_OUTBOX_URL="sqlite:////nowhere/relay.db"))

    assert done.returncode == 1
    assert done.stderr.startswith("Error: outbox: /nowhere/relay.db cannot be opened")


@pytest.mark.parametrize("by_variable", [True, False])
def test_serve_reports_a_port_that_is_taken(tmp_path: Path, *, by_variable: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        if by_variable:
            done = run("serve", **environ(tmp_path, PORT=port))
        else:
            done = run("serve", "--port", port, **environ(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("Error: cannot listen on 127.0.0.1")
    assert f"{port}: Address already in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("host", ["", " ", "*", "[::]", "300.1.1.1", "192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize(
    ("command", "option"),
    [(["serve"], "--host"), (["forward", "--metrics-port", "9"], "--metrics-host")],
)
def test_a_host_that_is_not_this_machines_is_reported(
    tmp_path: Path, command: list[str], option: str, host: str
) -> None:
    run("migrate", **environ(tmp_path))

    done = run(*command, option, host, **environ(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: cannot listen on {host}, port ")
    assert done.stderr.endswith(
        f": it is not an address of this machine; choose another with {option}\n"
    )


def test_serve_forwards_a_webhook_and_logs_no_private_data(tmp_path: Path) -> None:
    webhook = {
        "type": "opened",
        "message_id": "mail-1",
        "user": {"id": 42, "email": "ann@example.com"},
    }
    with (
        SegmentServer() as server,
        RelayProcess(tmp_path / "relay.db", server.url, RELAY_LOG_LEVEL="debug") as relay,
    ):
        reply = relay.post(json.dumps(webhook).encode())
        arrived = within(20, lambda: len(server.accepted) == 1)
        relay.terminate()

        assert relay.wait(20) == 0
    events = [line["event"] for line in relay.log()]
    text = json.dumps(relay.log())

    assert arrived
    assert server.accepted[0]["messageId"] == reply.content["message_id"]
    assert events[0] == "serve.started"
    assert events[-1] == "serve.stopped"
    assert {"webhook.accepted", "forward.sent"} <= {*events}
    for private in (SECRET, WRITE_KEY, "ann@example.com"):
        assert private not in text


def test_pending_entries_of_an_earlier_run_are_forwarded(tmp_path: Path) -> None:
    outbox = tmp_path / "relay.db"
    with RelayProcess(outbox, "http://127.0.0.1:1") as relay:
        relay.post(b'{"type": "opened", "message_id": "mail-1", "user": {"id": 42}}')
        relay.terminate()

        assert relay.wait(20) == 0
    with SegmentServer() as server, RelayProcess(outbox, server.url):
        assert within(20, lambda: len(server.accepted) == 1)


def test_ctrl_c_stops_serve_with_exit_code_0(tmp_path: Path) -> None:
    with RelayProcess(tmp_path / "relay.db", "http://127.0.0.1:1") as relay:
        relay.terminate(signal.SIGINT)

        assert relay.wait(20) == 0
    assert {line["level"] for line in relay.log()} == {"info"}

import secrets
import socket
from contextlib import closing
from pathlib import Path

import pytest

from relay.process.systemd import ALIVE, READY, notify


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"@relay-{secrets.token_hex(8)}" if request.param == "abstract" else f"{tmp_path}/notify"


def listener(address: str) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(address.replace("@", "\0"))
    listening.settimeout(30)
    return listening


def test_a_state_reaches_systemd(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with closing(listener(address)) as listening:
        notify(READY)

        assert listening.recv(1000) == b"READY=1"


def test_a_systemd_that_does_not_read_does_not_block(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with closing(listener(address)):
        for _ in range(10_000):  # more than the socket buffers
            notify(ALIVE)


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify"])
def test_without_a_socket_of_systemd_nothing_is_sent(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)

    notify(READY)

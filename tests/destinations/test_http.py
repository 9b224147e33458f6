import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from relay.destinations.http import HttpClient
from relay.errors import HttpError, SettingsError, UnusableUrlError
from tests.faults.segment import Fault, Road, for_ever, silent
from tests.harness.certificates import certificate, speaking_tls
from tests.harness.fakes import Answer, SegmentServer
from tests.harness.processes import closed_port, within

pytestmark = pytest.mark.slow

SECONDS = 1.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def road(server: SegmentServer) -> Iterator[Road]:
    road = Road(server)
    yield road
    road.close()


@pytest.fixture
def in_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    return monkeypatch.setenv


def post(client: HttpClient, host: str, body: bytes = b'{"batch":[]}') -> bytes:
    return client.request("POST", f"{host}/v1/batch", body=body).body


def open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def takes_nothing(connection: socket.socket) -> None:
    connection.recv(1, socket.MSG_PEEK)
    threading.Event().wait(30)


ENDLESS = {
    "silent": silent,
    "status": for_ever(b"HTTP/1.1 200 O", b"K"),
    "continue": for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "head": for_ever(b"HTTP/1.1 200 OK\r\nX-Excuse: ", b"x"),
    "lines of the head": for_ever(b"HTTP/1.1 200 OK\r\n", b"X-Excuse: x\r\n", seconds=0.2),
    "body": for_ever(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
    "body without a length": for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "chunks": for_ever(CHUNKED, b"1\r\nx\r\n"),
    "size of a chunk": for_ever(CHUNKED + b"1;", b"x"),
    "trailer": for_ever(CHUNKED + b"0\r\n", b"X-Excuse: x\r\n"),
    "trailer at full speed": for_ever(CHUNKED + b"0\r\n", b"X-Excuse: x\r\n" * 500, seconds=0),
    "takes nothing": takes_nothing,
}


@pytest.mark.parametrize("fault", ENDLESS.values(), ids=ENDLESS)
def test_a_request_ends_within_its_time_limit_whatever_the_peer_does(
    server: SegmentServer, road: Road, fault: Fault
) -> None:
    road.fault = fault
    client, files = HttpClient(road.host(), SECONDS), open_files()
    began_at = time.monotonic()
    with pytest.raises(HttpError, match=r"^TimeoutError$"):
        post(client, road.host(), os.urandom(30_000_000) if fault is takes_nothing else b"{}")
    elapsed = time.monotonic() - began_at
    road.fault = None
    answer = post(client, road.host())
    road.close()

    assert SECONDS <= elapsed < 25 * SECONDS
    assert answer == b'{"success":true}'
    assert len(server.received) == 1
    assert within(
        20, lambda: open_files() <= files + 4
    )  # both ends of the kept connection, on both sides of the road


HELLO = b"\x16\x03\x03\x40\x00\x02"
"""The beginning of a server's TLS handshake."""


@pytest.mark.parametrize("fault", [takes_nothing, for_ever(HELLO, b"\0", reads=False)])
def test_a_tls_handshake_ends_within_its_time_limit(road: Road, fault: Fault) -> None:
    road.fault = fault
    host = road.host("https")

    with pytest.raises(HttpError, match=r"^TimeoutError$"):
        post(HttpClient(host, SECONDS), host)


def tunnel_to_nowhere(connection: socket.socket) -> None:
    """Answer CONNECT as a proxy does, then begin a TLS handshake that never ends."""
    connection.recv(2**16)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    connection.recv(1)
    for_ever(HELLO, b"\0", reads=False)(connection)


@pytest.mark.parametrize(
    "fault",
    [
        takes_nothing,
        for_ever(b"HTTP/1.1 200 O", b"K", reads=False),
        for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"x", reads=False),
        tunnel_to_nowhere,
    ],
)
def test_opening_a_proxys_tunnel_ends_within_its_time_limit(
    road: Road, fault: Fault, in_environment: Callable[[str, str], None]
) -> None:
    in_environment("https_proxy", road.host())
    road.fault = fault
    host = "https://segment.example.com"

    with pytest.raises(HttpError, match=r"^TimeoutError$"):
        post(HttpClient(host, SECONDS), host)


@pytest.mark.parametrize("tls", [False, True])
def test_the_time_limit_holds_on_a_reused_connection_too(
    server: SegmentServer,
    road: Road,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tls: bool,
) -> None:
    if tls:
        trusted = certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        road.tls = speaking_tls(trusted)
    host = road.host("https" if tls else "http")
    server.answers.extend([Answer(), Answer(delay=30)])
    client = HttpClient(host, SECONDS)
    post(client, host)

    with pytest.raises(HttpError, match=r"^TimeoutError$"):
        post(client, host)


@pytest.fixture
def blackhole() -> Iterator[socket.socket]:
    """Return a listener with a full backlog: a connection to it is neither made nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for connection in waiting:
            connection.settimeout(0)
            with suppress(BlockingIOError):
                connection.connect(listener.getsockname())
        yield listener
        for connection in waiting:
            connection.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_args, **_options: [(*kind, at) for at in addresses]
    )


def test_a_silent_address_leaves_time_for_the_next_address(
    server: SegmentServer, blackhole: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_at, port = blackhole.getsockname(), int(server.url.rpartition(":")[2])
    resolve_to(monkeypatch, silent_at, ("127.0.0.1", closed_port()), ("127.0.0.1", port))
    host = "http://segment.example.com"

    assert post(HttpClient(host, 10), host) == b'{"success":true}'


def test_many_silent_addresses_take_no_longer_than_one(
    blackhole: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, *[blackhole.getsockname()] * 60)
    host = "http://segment.example.com"
    began_at = time.monotonic()
    with pytest.raises(HttpError):
        post(HttpClient(host, SECONDS), host)

    assert time.monotonic() - began_at < 25 * SECONDS


def test_a_hanging_name_lookup_is_started_once_and_times_out(
    server: SegmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's resolver takes half a minute and more where no name server answers."""
    answer, asked, real = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(*args: Any, **options: Any) -> Any:  # noqa: ANN401 (the library's own)
        asked.append(args)
        answer.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    client = HttpClient(server.url, SECONDS)
    for _ in range(3):
        with pytest.raises(HttpError, match=r"^NameResolutionError \(no answer in time\)$"):
            post(client, server.url)
    lookups = len(asked)
    answer.set()

    assert within(20, lambda: _answers(client, server.url))
    assert lookups == 1


def test_a_lookup_that_never_ends_is_replaced_by_a_second_one(
    server: SegmentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, asked, real = threading.Event(), [], socket.getaddrinfo

    def getaddrinfo(*args: Any, **options: Any) -> Any:  # noqa: ANN401 (the library's own)
        asked.append(args)
        if len(asked) == 1:
            ended.wait(120)
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("relay.destinations.http.hosts._LOOK_UP_SECONDS", 2 * SECONDS)
    client = HttpClient(server.url, SECONDS)
    try:
        assert within(60, lambda: _answers(client, server.url))
    finally:
        ended.set()
    assert within(20, lambda: _answers(client, server.url))


def _answers(client: HttpClient, host: str) -> bool:
    with suppress(HttpError):
        return post(client, host) == b'{"success":true}'
    return False


def test_one_thread_watches_all_requests_and_ends_with_the_client(server: SegmentServer) -> None:
    def watchdogs() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "watchdog"}

    others = watchdogs()  # of clients that other tests have left behind
    client = HttpClient(server.url, 30)
    server.judge = lambda _batch: Answer(delay=0.2)
    posts = [threading.Thread(target=post, args=(client, server.url)) for _ in range(8)]
    for thread in posts:
        thread.start()
    for thread in posts:
        thread.join()
    watching = watchdogs() - others
    del client, posts, thread
    gc.collect()

    assert len(server.received) == 8
    assert len(watching) == 1
    assert within(20, lambda: not watching & watchdogs())


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("http://127.0.0.1:{closed}", "NewConnectionError (Connection refused)"),
        ("http://does-not-exist.invalid", "NameResolutionError ("),
        ("https://127.0.0.1:{server}", "SSLError ("),
    ],
)
def test_an_error_carries_the_systems_message(server: SegmentServer, host: str, error: str) -> None:
    at = host.format(closed=closed_port(), server=server.url.rpartition(":")[2])
    with pytest.raises(HttpError) as caught:
        post(HttpClient(at, 30), at)

    assert str(caught.value).startswith(error)


def test_an_impossible_host_name_raises_an_error_of_its_own() -> None:
    host = f"http://{'x' * 64}.example.com"

    with pytest.raises(UnusableUrlError):
        post(HttpClient(host, SECONDS), host)


def test_a_proxy_url_needs_no_scheme(
    server: SegmentServer, in_environment: Callable[[str, str], None]
) -> None:
    in_environment("http_proxy", server.url.removeprefix("http://"))
    host = "http://segment.example.com"
    answer = post(HttpClient(host, 30), host)
    (request,) = server.received

    assert answer == b'{"success":true}'
    assert request.path == f"{host}/v1/batch"


@pytest.mark.parametrize(
    "proxy", ["socks5://ann:secret@127.0.0.1:1080", "http://", "http://ann:secret@proxy:port"]
)
def test_an_unusable_proxy_url_is_a_settings_error(
    in_environment: Callable[[str, str], None], proxy: str
) -> None:
    in_environment("https_proxy", proxy)

    with pytest.raises(SettingsError) as caught:
        HttpClient("https://segment.example.com", SECONDS)

    assert caught.value.faults == ("https_proxy: should be like http://proxy.example.com:3128",)

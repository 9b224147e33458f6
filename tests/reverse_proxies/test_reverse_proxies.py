"""relay behind nginx, HAProxy and Caddy: with the configurations of `deploy/`, and by default."""

import base64
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.cli.desk import webhook
from tests.harness.certificates import certificate
from tests.harness.fakes import SegmentServer
from tests.harness.processes import PATH, SECRET, RelayProcess, closed_port, within
from tests.harness.stores import PostgresStore, SqliteStore, pending
from tests.receiver.calls import WRITE_KEY, relay_for_calls
from tests.reverse_proxies.servers import (
    DEFAULTS,
    SUGGESTED,
    Proxy,
    before,
    nginx_with_limits,
    nginx_with_limits_for_others,
    program,
    running,
)

pytestmark = pytest.mark.slow

PASSWORD = "a-password-for-the-tests"
BASIC = {"Authorization": "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}
WRONG = {"Authorization": "Basic " + base64.b64encode(b"me:the-password-of-others").decode()}
CLOSED = ("/console", "/console/", "/console/?reveal=1", "/console/events", "/console/x")
HOSTS = (None, "localhost", "127.0.0.1:8000", "[::1]", "relay.example.com")
SIGN_IN = "/console/sign-in"
HEADING = "Waiting for your first webhook"


@dataclass(frozen=True)
class Answer:
    """The answer that came through the proxy."""

    status: int
    headers: Mapping[str, str]
    text: str


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    body: bytes | str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        given = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status, given, response.read().decode())


def raw(port: int, request: bytes) -> bytes:
    """Send these bytes; return all that comes back."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=60)) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
            return b"".join(iter(partial(connection.recv, 2**16), b""))
        return b""


@pytest.fixture(scope="module")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RelayProcess]]:
    """Yield a relay whose console links open, and one whose console a password opens."""
    directory = tmp_path_factory.mktemp("relays")
    with SegmentServer() as segment, ExitStack() as processes:
        by_link = RelayProcess(directory / "link.db", segment.url)
        by_password = RelayProcess(
            directory / "password.db", segment.url, RELAY_CONSOLE_PASSWORD=PASSWORD
        )
        yield [processes.enter_context(relay) for relay in (by_link, by_password)]


@pytest.fixture(params=["default", "suggested"])
def way(request: pytest.FixtureRequest) -> str:
    """Return how the proxy is configured."""
    way: str = request.param
    return way


@pytest.fixture(params=[*DEFAULTS])
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of the proxy."""
    name: str = request.param
    return name


Place = Callable[[RelayProcess], Proxy]
"""Puts the proxy before a relay."""


@pytest.fixture
def place(name: str, way: str, tmp_path: Path) -> Iterator[Place]:
    configuration = (DEFAULTS if way == "default" else SUGGESTED)[name]
    with ExitStack() as proxies:
        yield lambda relay: proxies.enter_context(
            before(name, configuration, [relay.port], tmp_path / f"{name}-{relay.port}")
        )


def assert_is_closed(port: int) -> None:
    """Assert that nothing of the console is shown without credentials."""
    for host in HOSTS:
        for path in CLOSED:
            answer = ask(port, path, headers={"Host": host} if host else None)

            assert answer.status == 401, (host, path)
            assert HEADING not in answer.text
            assert SECRET not in answer.text
    for version in (b"1.0", b"1.1"):
        request = b"GET /console/ HTTP/%b\r\nHost: localhost\r\nConnection: close\r\n\r\n"

        assert b" 401 " in raw(port, request % version).partition(b"\r\n")[0]


def test_the_console_is_closed_behind_a_proxy(place: Place, relays: list[RelayProcess]) -> None:
    for relay in relays:
        assert_is_closed(place(relay).port)


def test_a_link_or_the_password_opens_the_console_behind_a_proxy(
    place: Place, relays: list[RelayProcess]
) -> None:
    by_link, by_password = relays
    port = place(by_link).port
    link = by_link.links()[-1]
    posted = ask(port, SIGN_IN, method="POST", body=urlencode({"link": link}))
    cookie = {"Cookie": posted.headers["set-cookie"].partition(";")[0]}
    page = ask(port, "/console/", headers=cookie)
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/console/live/overview", headers=cookie)
        shown = connection.getresponse().readline()
    # As browsers send it from a page of a secure origin.
    own = {**cookie, "Sec-Fetch-Site": "same-origin", "Origin": f"http://127.0.0.1:{port}"}
    revealed = ask(port, "/console/webhook-urls", method="POST", headers=own)

    assert within(20, lambda: by_link.links()[-1] != link)
    assert (posted.status, page.status, revealed.status) == (303, 200, 200)
    assert HEADING in page.text
    assert HEADING in shown.decode()
    assert SECRET in revealed.text

    port = place(by_password).port

    assert ask(port, "/console/", headers=BASIC).status == 200
    assert ask(port, "/console/", headers=WRONG).status == 401
    assert ask(port, "/console/export", headers=WRONG).status == 401


def test_behind_a_suggested_proxy_a_page_acts_without_sec_fetch_site(
    name: str, relays: list[RelayProcess], tmp_path: Path
) -> None:
    _, relay = relays
    with before(name, SUGGESTED[name], [relay.port], tmp_path / name) as proxy:
        own = {**BASIC, "Origin": f"http://127.0.0.1:{proxy.port}"}

        assert ask(proxy.port, "/console/playground", method="POST", headers=own).status == 200


def cause_every_kind_of_line(proxy: Proxy, relay: RelayProcess) -> None:
    """Send webhooks that are stored and refused, broken requests, and one after relay has ended."""
    port = proxy.port
    assert ask(port, PATH, method="POST", body=webhook("ana")).status == 200
    for path, body in (
        (f"{PATH}?{SECRET}", b"{}"),
        (f"{PATH}/{SECRET}", b"{}"),
        (PATH, b"x" * (3 * 2**20)),
        (f"/{SECRET}", b""),
    ):
        with suppress(OSError, HTTPException):  # a body that is too large is not read to its end
            ask(port, path, method="POST", body=body, headers={"Referer": f"http://x{PATH}"})
    post = f"POST {PATH} HTTP/"
    for request in (
        f"{post}9.9\r\nHost: x\r\n\r\n",
        f"{post}1.1\r\n\r\n",
        f"{post}1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        f"{post}1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n",
        f"{post}1.1\r\nHost: x\r\nX: {'x' * 20_000}\r\n\r\n",
        f"GET {PATH}/%\r\n\r\n",
    ):
        raw(port, request.encode() + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    with closing(socket.create_connection(("127.0.0.1", port))) as gone:
        gone.sendall(f"{post}1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx".encode())
    relay.kill()
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", PATH, webhook("ben"))

        assert connection.getresponse().status >= 500


@pytest.fixture
def own_relay(tmp_path: Path) -> Iterator[RelayProcess]:
    with SegmentServer() as segment, RelayProcess(tmp_path / "relay.db", segment.url) as relay:
        yield relay


def test_the_secret_is_in_no_log_of_a_suggested_proxy(
    name: str, own_relay: RelayProcess, tmp_path: Path
) -> None:
    with before(name, SUGGESTED[name], [own_relay.port], tmp_path / name) as proxy:
        cause_every_kind_of_line(proxy, own_relay)
        # A proxy writes its last lines when it has answered already.
        complete = within(20, lambda: any(each in proxy.written() for each in ("502", "503")))
        written = proxy.written()

    assert complete
    assert SECRET not in written
    assert "POST" in written or name == "caddy"  # which has no access log


def test_the_secret_is_in_a_log_by_default(
    name: str, own_relay: RelayProcess, tmp_path: Path
) -> None:
    """As docs/deploy.md says. If it were not, the suggested configurations would need less."""
    with before(name, DEFAULTS[name], [own_relay.port], tmp_path / name) as proxy:
        cause_every_kind_of_line(proxy, own_relay)

        assert within(20, lambda: SECRET in proxy.written())


CALLS = 300
"""More than the burst that the limit lets through, and sent faster than at the limit's rate."""


def statuses(port: int, path: str, body: bytes) -> Counter[int]:
    """Send the same many times, one after the other; return how often each status was answered."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        answers = Counter[int]()
        for _ in range(CALLS):
            connection.request("POST", path, body)
            response = connection.getresponse()
            response.read()
            answers[response.status] += 1
        return answers


def test_the_limit_of_the_suggested_nginx_is_for_callers_that_are_not_named(tmp_path: Path) -> None:
    call = b'{"userId":"42","writeKey":"%b"}' % WRITE_KEY.encode()
    with relay_for_calls(tmp_path / "relay.db") as relay:
        with before("nginx", nginx_with_limits, [relay.port], tmp_path / "limited") as proxy:
            limited = statuses(proxy.port, "/v1/identify", call)
            disguised = statuses(proxy.port, "/%20v1/i", call)
            webhooks = statuses(proxy.port, PATH, webhook("ana"))
        configuration = nginx_with_limits_for_others
        with before("nginx", configuration, [relay.port], tmp_path / "named") as proxy:
            named = statuses(proxy.port, "/v1/identify", call)

    assert limited.keys() == {200, 429}
    assert limited[200] >= 100
    assert disguised[429] >= 100
    assert webhooks.keys() == named.keys() == {200}


SENDERS = 4
Answers = Counter[tuple[str, object]]
"""How often a method was answered with a status, or not at all."""


def send_until(stop: threading.Event, port: int, answers: Answers, sender: int) -> None:
    """Post webhooks and get pages; every other sender opens a connection for each."""
    number = 0
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while not stop.is_set():
        number += 1
        for method, path, body in (
            ("POST", PATH, webhook(f"sender-{sender}", number)),
            ("GET", "/healthz", None),
        ):
            if sender % 2:
                connection.close()
            try:
                connection.request(method, path, body)
                response = connection.getresponse()
                response.read()
                answers[method, response.status] += 1
            except (OSError, HTTPException) as error:
                answers[method, repr(error)] += 1
                connection.close()
    connection.close()


def under_load(port: int, steps: Iterable[Callable[[], None]]) -> Answers:
    """Return the answers that senders got before, during and after these steps."""
    stop = threading.Event()
    each = [Answers() for _ in range(SENDERS)]
    senders = [
        threading.Thread(target=send_until, args=(stop, port, answers, number))
        for number, answers in enumerate(each)
    ]
    for sender in senders:
        sender.start()

    def each_got(more: int) -> bool:
        wanted = [answers["POST", 200] + more for answers in each]
        return within(
            60,
            lambda: all(a["POST", 200] >= w for a, w in zip(each, wanted, strict=True)),
        )

    try:
        assert each_got(5)
        for step in steps:
            step()
            assert each_got(5)
    finally:
        stop.set()
        for sender in senders:
            sender.join()
    return sum(each, Answers())


# Of Debian's Caddy: see deploy/Caddyfile.
SEEN: Mapping[str, set[tuple[str, object]]] = {"haproxy": set(), "caddy": {("POST", 502)}}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["haproxy", "caddy"])
def test_a_restart_is_not_seen_behind_a_suggested_proxy(
    name: str, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    store = SqliteStore(tmp_path / "relay.db")
    port = closed_port()
    with SegmentServer() as segment, ExitStack() as processes:
        relays = [processes.enter_context(RelayProcess(store, segment.url, port=port))]

        def restart() -> None:
            relays[-1].terminate()
            assert relays[-1].wait(30) == 0
            relay = RelayProcess(store, segment.url, port=port)
            relays.append(processes.enter_context(relay))

        with before(name, SUGGESTED[name], [port], tmp_path / name) as proxy:
            answers = under_load(proxy.port, [restart] * times(2, 10))

            assert {*answers} - SEEN[name] == {("POST", 200), ("GET", 200)}, answers
        assert len(store.stored()) >= answers["POST", 200]
        assert within(60, lambda: pending(store) == 0)


@pytest.mark.timeout(600)
def test_a_restart_of_one_of_two_is_not_seen_behind_the_suggested_nginx(
    postgres_store: PostgresStore, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    ports = [closed_port(), closed_port()]
    with SegmentServer() as segment, ExitStack() as processes:
        relays = {
            port: processes.enter_context(RelayProcess(postgres_store, segment.url, port=port))
            for port in ports
        }

        def restart(port: int) -> None:
            relays[port].terminate()
            assert relays[port].wait(30) == 0
            relay = RelayProcess(postgres_store, segment.url, port=port)
            relays[port] = processes.enter_context(relay)

        restarts = [partial(restart, port) for port in ports * times(1, 5)]
        with before("nginx", SUGGESTED["nginx"], ports, tmp_path / "nginx") as proxy:
            answers = under_load(proxy.port, restarts)

    assert {*answers} == {("POST", 200), ("GET", 200)}, answers


@pytest.mark.parametrize("name", ["socat", "stunnel"])
def test_the_console_is_closed_behind_a_forwarder_of_bytes(
    name: str, relays: list[RelayProcess], tmp_path: Path
) -> None:
    """Its requests come from this machine, with any Host that its client likes."""
    directory = tmp_path / name
    directory.mkdir()
    for relay in relays:
        port = closed_port()
        if name == "socat":
            listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
            command = [program("socat"), listen, f"TCP4:127.0.0.1:{relay.port}"]
            with running(command, port, directory) as proxy:
                assert_is_closed(proxy.port)
            continue
        # One stunnel ends the TLS that another one begins, as before a client that speaks none.
        inner = closed_port()
        pem = certificate(tmp_path)
        server = f"[in]\naccept = 127.0.0.1:{inner}\nconnect = 127.0.0.1:{relay.port}\ncert = {pem}"
        client = f"[out]\nclient = yes\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{inner}"
        path = directory / f"{port}.conf"
        path.write_text(f"foreground = yes\npid =\n{server}\n{client}\n")
        with running([program("stunnel"), str(path)], port, directory) as proxy:
            assert_is_closed(proxy.port)

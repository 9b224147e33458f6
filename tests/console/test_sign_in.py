import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import pytest

from relay.console.sessions import IDLE_SECONDS, MAX_SECONDS, MAX_SESSIONS, Sessions
from tests.console.client import SIGN_IN, Page, act, cookie, live, look, shown, signed_in
from tests.harness.fakes import Clock, SegmentServer
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, within

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:1"
MANY = 12


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProcess]:
    """A relay without a password, at which nobody has signed in yet."""
    with (
        SegmentServer() as segment,
        RelayProcess(tmp_path / "relay.db", segment.url, RELAY_LOG_LEVEL="debug") as relay,
    ):
        yield relay


def use(relay: RelayProcess, link: str, **headers: str) -> Page:
    """Post the link, without a session unless a cookie is given."""
    body = urlencode({"link": link})
    return look(relay, SIGN_IN, method="POST", body=body, **{"Cookie": "", **headers})


def next_link(relay: RelayProcess, after: int) -> str:
    """Return the link that is printed after so many others."""
    assert within(20, lambda: len(relay.links()) > after)
    return relay.links()[after]


def token_of(link: str) -> str:
    return link.rpartition("#")[2]


def test_a_link_works_once_and_then_the_next_one_is_printed(relay: RelayProcess) -> None:
    (first,) = relay.links()
    cookies = [signed_in(relay, first), signed_in(relay, next_link(relay, 1))]
    again = use(relay, first)
    third = next_link(relay, 2)

    assert re.fullmatch(rf"http://127\.0\.0\.1:{relay.port}{SIGN_IN}#[\w-]{{43}}", first)
    assert len({first, third, *relay.links()}) == 3
    assert [look(relay, Cookie=each).status for each in cookies] == [200, 200]
    assert (again.status, "set-cookie" in again.headers) == (401, False)
    assert "This link does not work" in again.html.text


@pytest.mark.parametrize(
    ("origin", "secure"),
    [("", False), ("http://127.0.0.1", False), ("https://relay.example.com", True)],
)
def test_the_cookie_is_for_this_console_only(
    relay: RelayProcess,
    origin: str,
    secure: bool,  # noqa: FBT001 (pytest gives it)
) -> None:
    page = use(relay, relay.links()[0], **({"Origin": origin} if origin else {}))
    value, *attributes = page.headers["set-cookie"].split("; ")
    name, _, token = value.partition("=")

    assert name == f"relay_console_{relay.port}"
    assert re.fullmatch(r"[\w-]{43}", token)
    assert token not in relay.links()[0]
    assert {*attributes} == {
        "HttpOnly",
        "Path=/console",
        "SameSite=strict",
        *(["Secure"] if secure else []),
    }


@pytest.mark.parametrize("whole", [True, False])
def test_prefetching_does_not_use_up_a_link(
    relay: RelayProcess,
    whole: bool,  # noqa: FBT001 (pytest gives it)
) -> None:
    link = relay.links()[0] if whole else token_of(relay.links()[0])
    for method in ("GET", "HEAD"):
        for path in (SIGN_IN, f"{SIGN_IN}?{link.rpartition('#')[2]}", "/console/"):
            look(relay, path, method=method, Cookie="", Purpose="prefetch")
    use(relay, "")

    assert len(relay.links()) == 1
    assert use(relay, f" {link}\n").status == 303


def test_of_many_sign_ins_with_one_link_one_succeeds(relay: RelayProcess) -> None:
    (link,) = relay.links()
    with ThreadPoolExecutor(MANY) as people:
        pages = [each.result() for each in [people.submit(use, relay, link) for _ in range(MANY)]]

    assert sorted(page.status for page in pages) == [303] + [401] * (MANY - 1)
    assert len(relay.links()) == 2


def test_the_same_browser_may_open_its_link_again(relay: RelayProcess) -> None:
    (link,) = relay.links()
    page = use(relay, link, Cookie=signed_in(relay, link))

    assert (page.status, page.headers["location"]) == (303, "/console/")


def test_a_token_appears_on_standard_output_only(relay: RelayProcess) -> None:
    (link,) = relay.links()
    session = signed_in(relay, link)
    use(relay, link)
    use(relay, f"{token_of(link)[:-1]}~")
    look(relay, "/console/events", Cookie=f"{session}x")
    pages = [
        look(relay, path, Cookie=session)
        for path in ("/console/", "/console/dead", "/console/playground", SIGN_IN)
    ]
    metrics = look(relay, "/metrics", Cookie="").text
    output = f"{relay.log()} {metrics} {pages}"

    assert "console.signed_in" in output
    assert "credentials.wrong" in output
    assert 'relay_wrong_credentials_total{credential="link",page="console"} 2.0' in metrics
    assert 'relay_wrong_credentials_total{credential="session",page="console"} 1.0' in metrics
    for secret in (*map(token_of, relay.links()), session.partition("=")[2]):
        assert secret not in output


def test_only_the_consoles_own_pages_can_sign_out(relay: RelayProcess) -> None:
    session = cookie(relay)
    foreign = look(relay, "/console/sign-out", method="POST", Origin="https://example.com")
    still = look(relay).status
    left = act(relay, "/console/sign-out")
    after = look(relay, Cookie=session)

    assert (foreign.status, still) == (403, 200)
    assert (left.status, left.headers["location"]) == (303, SIGN_IN)
    assert "Max-Age=0" in left.headers["set-cookie"]
    assert after.status == 401


@pytest.mark.parametrize("page", ["overview", "events?reveal=1"])
def test_a_live_page_ends_with_its_session(relay: RelayProcess, page: str) -> None:
    with live(relay, f"/console/live/{page}", Cookie=cookie(relay)) as response:
        shown(response)
        act(relay, "/console/sign-out")

        assert response.read().count(b"data:") <= 1


def test_a_restart_ends_sessions_and_links(tmp_path: Path) -> None:
    with RelayProcess(tmp_path / "relay.db", NOBODY) as relay:
        (link,) = relay.links()
        session = cookie(relay)
        port = relay.port
    with RelayProcess(tmp_path / "relay.db", NOBODY, port=port) as relay:
        page = look(relay, Cookie=session)

        assert page.status == 401
        assert "relay was restarted" in page.html.text
        assert "Max-Age=0" in page.headers["set-cookie"]
        assert use(relay, link).status == 401
        assert use(relay, relay.links()[0]).status == 303


def test_a_cookie_of_another_site_locks_nobody_out(relay: RelayProcess) -> None:
    session = cookie(relay)
    name = session.partition("=")[0]

    assert look(relay, Cookie=f"{name}=x; a=b; {session}; {name}=").status == 200
    assert look(relay, Cookie=f"other_{session}").status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 401),
        (b"link", 401),
        (b"link=" + b"%ff" * 50, 401),
        (b"a=&" * 600, 401),
        (b"link=" + b"x" * 3_000, 413),
        (b'{"link": 1}', 401),
    ],
)
def test_nothing_but_a_link_signs_in(relay: RelayProcess, body: bytes, status: int) -> None:
    page = look(relay, SIGN_IN, method="POST", body=body, Cookie="")

    assert page.status == status
    assert "set-cookie" not in page.headers
    assert len(relay.links()) == 1


def test_a_slow_sign_in_is_cut_off(relay: RelayProcess) -> None:
    head = f"POST {SIGN_IN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nlink="
    with closing(relay.connect()) as gone:
        gone.sendall(head.encode())
    with closing(relay.connect()) as slow:
        slow.sendall(head.encode())

        assert slow.recv(12).endswith(b"408")
    assert not any(line["level"] in {"error", "critical"} for line in relay.log())


@pytest.mark.parametrize("closed", ["", ">&-", ">/dev/full", "| true"])
def test_relay_starts_wherever_its_output_goes(tmp_path: Path, closed: str) -> None:
    """If standard output is closed, the next file that is opened must not get the link."""
    command = f'{"" if "|" in closed else "exec "}"$1" -m relay serve --port 0 {closed}'
    environ = {"SEGMENT_WRITE_KEY": WRITE_KEY, "RELAY_VERO_SECRET": SECRET}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(  # noqa: S603 (relay itself)
            ["/bin/sh", "-c", command, "sh", sys.executable],
            cwd=tmp_path,
            env={**environ, "RELAY_OUTBOX_URL": f"sqlite:///{tmp_path}/relay.db"},
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            started = within(30, lambda: "serve.started" in (tmp_path / "log").read_text())
            lives = process.poll() is None or "|" in closed
        finally:
            subprocess.run(["/bin/kill", "-TERM", "--", f"-{process.pid}"], check=False)  # noqa: S603 (its own)

    assert started
    assert lives
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert b"sign-in#" not in (tmp_path / "relay.db").read_bytes()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(clock.monotonic)


def begun(sessions: Sessions) -> str:
    token = sessions.begin(sessions.new_link())
    assert token
    return token


def test_a_session_ends_when_it_is_not_used(sessions: Sessions, clock: Clock) -> None:
    used, unused = begun(sessions), begun(sessions)
    clock.sleep(IDLE_SECONDS / 2)

    assert sessions.is_under_way(used)

    clock.sleep(IDLE_SECONDS / 2)

    assert sessions.is_under_way(used)
    assert not sessions.is_under_way(unused)


def test_no_session_lasts_for_ever(sessions: Sessions, clock: Clock) -> None:
    token = begun(sessions)
    for _ in range(int(MAX_SECONDS / IDLE_SECONDS * 2) - 1):
        clock.sleep(IDLE_SECONDS / 2)

        assert sessions.is_under_way(token)

    clock.sleep(IDLE_SECONDS / 2)

    assert not sessions.is_under_way(token)


def test_a_new_session_ends_the_least_recently_used_one(sessions: Sessions, clock: Clock) -> None:
    first = begun(sessions)
    others = []
    for _ in range(MAX_SESSIONS):
        clock.sleep(1)
        sessions.is_under_way(first)
        others.append(begun(sessions))

    assert sessions.is_under_way(first)
    assert [sessions.is_under_way(each) for each in others] == [False] + [True] * (MAX_SESSIONS - 1)


def test_a_new_link_replaces_the_one_before(sessions: Sessions) -> None:
    first, second = sessions.new_link(), sessions.new_link()

    assert sessions.begin(first) is None
    assert sessions.begin("") is None
    assert sessions.begin(second)
    assert sessions.begin(second) is None

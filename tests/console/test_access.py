import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from relay.console.web import MAX_FORM_BYTES
from tests.cli.desk import Desk, webhook
from tests.console.client import SIGN_IN, act, look
from tests.harness.fakes import SegmentServer
from tests.harness.processes import RelayProcess
from tests.harness.stores import SqliteStore

pytestmark = pytest.mark.slow

PASSWORD = "a-pässword-for-the-tests"
CLOSED = [
    "/console",
    "/console/",
    "/console/events",
    "/console/events/1",
    "/console/dead",
    "/console/dead/export",
    "/console/dead/replay",
    "/console/events/1/replay",
    "/console/playground",
    "/console/live/overview",
    "/console/live/events",
    "/console/webhook-urls",
    "/console/sign-out",
    "/console/x",
]
PATHS = ["/console", "/console/", "/console/events", "/console/static/console.js", "/console/x"]
LIVE = "/console/live/overview"
HEADERS = [
    "content-security-policy",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "cache-control",
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose relay has no password."""
    store = SqliteStore(tmp_path_factory.mktemp("open") / "relay.db")
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)


@pytest.fixture
def relay(desk: Desk) -> RelayProcess:
    """A relay without a password."""
    return desk.relay


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """A relay that has a password and listens on every address."""
    store = SqliteStore(tmp_path_factory.mktemp("locked") / "relay.db")
    with (
        SegmentServer() as segment,
        RelayProcess(
            store,
            segment.url,
            options=["--host", "0.0.0.0"],  # noqa: S104 (every address is what is tested)
            RELAY_CONSOLE_PASSWORD=PASSWORD,
            RELAY_LOG_LEVEL="debug",
        ) as relay,
    ):
        yield relay


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


HOSTS = ["localhost", "127.0.0.1", "[::1]:80", "127.0.0.1:8000", "relay.example.com", "[::1", ""]
FORWARDED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "Via")
NOBODYS = [
    {},
    *({"Host": host} for host in HOSTS),
    *({"Host": "localhost", name: "127.0.0.1"} for name in FORWARDED),
    {"Origin": "http://localhost", "Host": "localhost", "Sec-Fetch-Site": "same-origin"},
    {"Authorization": "Basic " + base64.b64encode(b":").decode()},
]


@pytest.mark.parametrize("headers", NOBODYS)
def test_without_credentials_every_page_is_refused(
    desk: Desk, locked: RelayProcess, headers: dict[str, str]
) -> None:
    everything = [f"{path}{query}" for path in CLOSED for query in ("", "?reveal=1")]
    with ThreadPoolExecutor(8) as people:
        for relay in (desk.relay, locked):
            answers = [
                people.submit(look, relay, path, method=method, Cookie="", **headers)
                for path in everything
                for method in ("GET", "POST", "OPTIONS", "HEAD")
            ]

            for page in (each.result() for each in answers):
                assert page.status == 401
                assert {*HEADERS} <= {*page.headers}
                assert "set-cookie" not in page.headers


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("host", [b"", b"Host: localhost\r\n", b"Host: 127.0.0.1:8000\r\n"])
def test_no_spelling_of_a_path_opens_the_console(
    relay: RelayProcess, version: bytes, host: bytes
) -> None:
    """Send requests as nginx does by default: they look as if this machine sent them."""
    for path in ("/console/", "//console/", "/console//", "/console/events", "/Console/"):
        with relay.connect() as connection:
            head = b"GET %b HTTP/%b\r\n%bConnection: close\r\n\r\n"
            connection.sendall(head % (path.encode(), version, host))
            answer = b"".join(iter(partial(connection.recv, 2**16), b""))

        assert answer.split()[1] in {b"400", b"401", b"404"}
        assert b"Waiting for your first webhook" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "/console/../webhooks/",
        "/console/%2e%2e/webhooks/",
        "/console/..%2Fwebhooks/",
        "/console/sign-in/../../webhooks/",
        "/console/static/../../webhooks/",
    ],
)
def test_a_path_that_a_proxy_takes_for_a_webhook_leads_nowhere(
    desk: Desk, locked: RelayProcess, path: str
) -> None:
    """Such a proxy lets nothing but webhooks through."""
    for relay in (desk.relay, locked):
        page = look(relay, path, Cookie="")

        assert page.status == 404
        assert "www-authenticate" not in page.headers


def test_anyone_may_see_the_page_to_sign_in(relay: RelayProcess) -> None:
    for path in (SIGN_IN, "/console/static/console.css", "/console/static/icon.svg"):
        page = look(relay, path, Cookie="")

        assert page.status == 200
        assert {*HEADERS} <= {*page.headers}


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic  ",
        "Basic ????",
        "Basic \xe4\xf6",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        basic(""),
        basic(PASSWORD),
        basic(":"),
        basic(f":{PASSWORD} "),
        basic(f":{PASSWORD}") + " x",
        basic("me:a-password-of-somebody-else"),
        f"Bearer {PASSWORD}",
        basic(f":{PASSWORD}").replace("Basic", "Digest"),
    ],
)
def test_wrong_passwords_are_refused(locked: RelayProcess, authorization: str) -> None:
    given = {"Authorization": authorization} if authorization else {"Cookie": ""}
    with ThreadPoolExecutor(8) as people:
        answers = [
            people.submit(look, locked, path, Host="localhost", **given) for path in [*PATHS, LIVE]
        ]
    for page in (each.result() for each in answers):
        assert page.status == 401
        assert page.headers["www-authenticate"].startswith("Basic ")
        assert {*HEADERS} <= {*page.headers}


@pytest.mark.parametrize("user", ["", "me", "somebody@example.com"])
@pytest.mark.parametrize("host", ["relay.example.com", "localhost:80"])
def test_the_password_opens_the_console_from_anywhere(
    locked: RelayProcess, user: str, host: str
) -> None:
    page = look(
        locked,
        Host=host,
        Authorization=basic(f"{user}:{PASSWORD}"),
        X_Forwarded_For="192.0.2.1",
    )

    assert page.status == 200


def test_the_password_is_in_no_log_line(locked: RelayProcess) -> None:
    look(locked, Authorization=basic(f":{PASSWORD}"))
    look(locked, f"/console/{PASSWORD.encode().hex()}", Authorization=basic(f":{PASSWORD}x"))
    log = str(locked.log())

    assert "serve.started" in log
    assert PASSWORD not in log
    assert base64.b64encode(f":{PASSWORD}".encode()).decode() not in log


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://["},
        {"Origin": "https://example.com"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Origin": "own", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "own", "Sec-Fetch-Site": "same-site"},
        {"Origin": "own", "Sec-Fetch-Site": "none"},
        {"Origin": "null", "Referer": "own"},
    ],
)
def test_other_sites_cannot_change_anything(desk: Desk, headers: dict[str, str]) -> None:
    id_ = rejected(desk, "csrf")
    own = f"http://127.0.0.1:{desk.relay.port}"
    headers = {name: own if value == "own" else value for name, value in headers.items()}
    refused = [
        look(desk.relay, path, method="POST", body=b"reason=rejected&body={}", **headers)
        for path in (f"/console/events/{id_}/replay", "/console/dead/replay", "/console/playground")
    ]

    assert {page.status for page in refused} == {403}
    assert all({*HEADERS} <= {*page.headers} for page in refused)
    assert desk.states("csrf")[0][1] == "dead"
    assert desk.store.run_sql("SELECT count(*) FROM operations WHERE what LIKE 'state=dead%'") == [
        (0,)
    ]


def test_the_consoles_own_pages_can_change_something(desk: Desk) -> None:
    id_ = rejected(desk, "own")
    act(desk.relay, f"/console/events/{id_}/replay")
    desk.settle()

    assert len(desk.arrivals("own")) == 1

    by_browser = {"Sec-Fetch-Site": "same-origin", "Origin": "https://relay.example.com"}
    path = f"/console/events/{id_}/replay"
    page = look(desk.relay, path, method="POST", body=b"", **by_browser)
    desk.settle()

    assert (page.status, page.headers["location"]) == (303, f"/console/events/{id_}?replayed=1")
    assert len(desk.arrivals("own")) == 2


def rejected(desk: Desk, name: str) -> int:
    """Return the id of a rejected event, the same for each name."""
    desk.refused.add("refused")
    if not desk.states(name):
        desk.delivered(webhook(name, campaign={"name": "refused"}))
    desk.refused.clear()
    ((id_,),) = desk.store.run_sql(
        f"SELECT id FROM entries WHERE message_id = '{desk.states(name)[0][0]}'"  # noqa: S608 (relay's own)
    )
    return int(id_)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/console"] + ["/console/dead"])
def test_head_is_answered_like_get(relay: RelayProcess, path: str) -> None:
    head, page = look(relay, path, method="HEAD"), look(relay, path)

    assert (head.status, head.text) == (page.status, "")
    assert {*HEADERS} <= {*head.headers}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/console/", 200),
        ("GET", "/console/events", 200),
        ("GET", "/console/dead", 200),
        ("GET", "/console/dead/export", 200),
        ("GET", "/console/playground", 200),
        ("GET", "/console/static/console.css", 200),
        ("GET", "/console/static/../access.py", 404),
        ("GET", "/console/static/%2e%2e/access.py", 404),
        ("GET", "/console/static/", 404),
        ("GET", "/console/no-such-page", 404),
        ("GET", "/console/events/0", 404),
        ("DELETE", "/console/events", 405),
        ("GET", "/console", 307),
        ("GET", "/console/events/", 307),
    ],
)
def test_no_page_can_be_framed_sniffed_or_cached(
    relay: RelayProcess, method: str, path: str, status: int
) -> None:
    page = look(relay, path, method=method, Sec_Fetch_Site="same-origin")

    assert page.status == status
    assert {*HEADERS} <= {*page.headers}
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"


def test_a_form_larger_than_any_webhook_is_refused(relay: RelayProcess) -> None:
    assert act(relay, "/console/playground", body="x" * MAX_FORM_BYTES).status == 413
    assert act(relay, "/console/playground", body="x" * 100).status == 200


def test_a_form_with_too_many_fields_is_refused(relay: RelayProcess) -> None:
    origin = f"http://127.0.0.1:{relay.port}"
    page = look(relay, "/console/playground", method="POST", body=b"a=&" * 10**6, Origin=origin)

    assert page.status == 400

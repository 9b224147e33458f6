import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.console import MAX_FORM_BYTES
from tests.console.asking import Page, act, look
from tests.fakes import SegmentServer
from tests.processes import RelayProcess, SqliteStore
from tests.tools.desk import Desk, webhook

PASSWORD = "a-pässword-for-the-tests"
UNKNOWN = "/no-such-page"
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
    """Its relay has no password."""
    store = SqliteStore(tmp_path_factory.mktemp("open") / "relay.db")
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)


@pytest.fixture
def relay(desk: Desk) -> RelayProcess:
    """It has no password."""
    return desk.relay


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    """It has a password, and listens everywhere."""
    store = SqliteStore(tmp_path_factory.mktemp("locked") / "relay.db")
    with (
        SegmentServer() as segment,
        RelayProcess(
            store,
            segment.url,
            options=["--host", "0.0.0.0"],  # noqa: S104 (everywhere is what is tried)
            RELAY_CONSOLE_PASSWORD=PASSWORD,
            RELAY_LOG_LEVEL="debug",
        ) as relay,
    ):
        yield relay


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def without_date(page: Page) -> Page:
    headers = {name: value for name, value in page.headers.items() if name != "date"}
    return Page(page.status, headers, page.text)


@pytest.mark.parametrize("host", ["localhost", "LocalHost:8000", "127.0.0.1", "[::1]:80"])
def test_without_a_password_this_machine_sees_it(relay: RelayProcess, host: str) -> None:
    assert look(relay, Host=host).status == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        *(
            {"Host": host}
            for host in (
                "relay.example.com",
                "10.0.0.1",
                "localhost.example.com",
                "127.0.0.1.example.com",
                "[::1",
                "[v1.x]",
                "",
            )
        ),
        *(
            {"Host": "localhost", name: "127.0.0.1"}
            for name in ("X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Forwarded", "Via")
        ),
    ],
)
def test_for_everybody_else_there_is_none(
    relay: RelayProcess, path: str, headers: dict[str, str]
) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        unknown = look(relay, UNKNOWN, method=method, **headers)

        assert unknown.status == 404
        assert without_date(look(relay, path, method=method, **headers)) == without_date(unknown)


@pytest.mark.parametrize(("version", "status"), [(b"1.0", b"404"), (b"1.1", b"200")])
def test_a_proxy_that_adds_nothing_is_known_by_its_old_http(
    relay: RelayProcess, version: bytes, status: bytes
) -> None:
    """As nginx is unless told otherwise, and its Host is the address it forwards to."""
    with relay.connect() as connection:
        connection.sendall(b"GET /console/ HTTP/%b\r\nHost: 127.0.0.1:80\r\n\r\n" % version)

        assert connection.recv(12).endswith(status)


def test_where_others_can_connect_there_is_none_without_a_password(tmp_path: Path) -> None:
    everywhere = ["--host", "0.0.0.0"]  # noqa: S104 (everywhere is what is tried)
    with RelayProcess(tmp_path / "relay.db", "http://127.0.0.1:1", options=everywhere) as relay:
        unknown = look(relay, UNKNOWN, Host="localhost")
        pages = [look(relay, path, Host="localhost") for path in PATHS]
        started = relay.log()[0]

    assert [without_date(page) for page in pages] == [without_date(unknown)] * len(PATHS)
    assert started["console"] is None


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
@pytest.mark.parametrize("path", [*PATHS, LIVE])
def test_with_a_password_nobody_sees_it_who_does_not_know_it(
    locked: RelayProcess, path: str, authorization: str
) -> None:
    given = {"Authorization": authorization} if authorization else {}
    page = look(locked, path, Host="localhost", **given)

    assert page.status == 401
    assert page.headers["www-authenticate"].startswith("Basic ")
    assert {*HEADERS} <= {*page.headers}


@pytest.mark.parametrize("user", ["", "me", "somebody@example.com"])
@pytest.mark.parametrize("host", ["relay.example.com", "localhost:80"])
def test_with_the_password_anybody_sees_it_anywhere(
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
def test_other_sites_change_nothing(desk: Desk, headers: dict[str, str]) -> None:
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


def test_its_own_pages_do(desk: Desk) -> None:
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
    """The id of a dead letter for which something can be sent; the first of that name."""
    desk.refused.add("refused")
    if not desk.states(name):
        desk.delivered(webhook(name, campaign={"name": "refused"}))
    desk.refused.clear()
    ((id_,),) = desk.store.run_sql(
        f"SELECT id FROM entries WHERE message_id = '{desk.states(name)[0][0]}'"  # noqa: S608 (relay's own)
    )
    return int(id_)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/console"] + ["/console/dead"])
def test_what_can_be_got_can_be_asked_for_its_head(relay: RelayProcess, path: str) -> None:
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
def test_no_page_can_be_framed_sniffed_or_kept(
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


def test_a_form_of_countless_fields_is_refused(relay: RelayProcess) -> None:
    origin = f"http://127.0.0.1:{relay.port}"
    page = look(relay, "/console/playground", method="POST", body=b"a=&" * 10**6, Origin=origin)

    assert page.status == 400

"""`relay check` and `relay serve` go to Segment by one way: through the proxy, if there is one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from urllib.parse import unquote, urlsplit

import pytest

from tests.faults.segment import Road
from tests.harness.certificates import certificate, speaking_tls
from tests.harness.fakes import SegmentServer
from tests.harness.forward_proxy import Proxy
from tests.harness.oracle import Ledger
from tests.harness.processes import SECRET, WRITE_KEY, RelayProcess, closed_port, run, within

LOGIN = "relay:open-sesame"
HOST = "segment.invalid"  # a name that only the proxy leads anywhere


@pytest.fixture
def http(server: SegmentServer) -> Iterator[Proxy]:
    at = urlsplit(server.url)
    with Proxy((str(at.hostname), at.port or 0), LOGIN) as proxy:
        yield proxy


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    return certificate(tmp_path)


@pytest.fixture
def https(server: SegmentServer, trusted: Path) -> Iterator[Proxy]:
    with closing(Road(server)) as road:
        road.tls = speaking_tls(trusted)
        at = urlsplit(road.host())
        with Proxy((str(at.hostname), at.port or 0), LOGIN) as proxy:
            yield proxy


def environ(path: Path, host: str, **more: str) -> dict[str, str]:
    return {
        "SEGMENT_WRITE_KEY": WRITE_KEY,
        "SEGMENT_HOST": host,
        "RELAY_VERO_SECRET": SECRET,
        "RELAY_OUTBOX_URL": f"sqlite:///{path / 'relay.db'}",
        **more,
    }


def delivers(path: Path, server: SegmentServer, host: str, **more: str) -> bool:
    """Whether `relay serve` reaches the stand-in in this environment."""
    ledger = Ledger(Random(1))  # noqa: S311 (no secret hangs on it)
    webhook = next(w for w in iter(ledger.next, None) if w.fate == "delivered")
    outbox = path / "relay.db"
    with RelayProcess(outbox, host, **more) as relay:  # type: ignore[arg-type]  # no port is in it
        relay.post(webhook.body)
        delivered = within(60, lambda: bool(server.accepted))
        assert "open-sesame" not in str(relay.log())
    return delivered


def test_https_goes_through_a_tunnel(
    tmp_path: Path, server: SegmentServer, https: Proxy, trusted: Path
) -> None:
    """Nothing listens where the proxy is asked to go; it leads there all the same."""
    host = f"https://127.0.0.1:{closed_port()}"
    way = {"https_proxy": https.url, "SSL_CERT_FILE": str(trusted)}
    done = run("check", **environ(tmp_path, host, **way))
    checked = [*https.asked]
    delivered = delivers(tmp_path, server, host, **way)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"segment   ok: {host} can be reached" in done.stdout
    assert checked == [f"CONNECT {host.removeprefix('https://')} HTTP/1.1"]
    assert delivered
    assert {*https.asked} == {*checked}


def test_http_is_passed_on(tmp_path: Path, server: SegmentServer, http: Proxy) -> None:
    host = f"http://{HOST}"
    done = run("check", **environ(tmp_path, host, http_proxy=http.url))
    checked = [*http.asked]
    delivered = delivers(tmp_path, server, host, http_proxy=http.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert checked == [f"GET {host}/v1/batch HTTP/1.1"]
    assert delivered
    assert {*http.asked} == {*checked, f"POST {host}/v1/batch HTTP/1.1"}


def test_what_no_proxy_names_is_reached_without_it(
    tmp_path: Path, server: SegmentServer, http: Proxy
) -> None:
    way = {"http_proxy": http.url, "no_proxy": "127.0.0.1"}
    done = run("check", **environ(tmp_path, server.url, **way))
    delivered = delivers(tmp_path, server, server.url, **way)

    assert done.returncode == 0
    assert delivered
    assert http.asked == []


@pytest.mark.parametrize(
    ("scheme", "refusal", "told"),
    [
        ("https", b"403 Forbidden", "ProxyError (the proxy answered 403)"),
        ("https", b"502 Bad Gateway", "ProxyError (the proxy answered 502)"),
        ("http", b"407 Proxy Authentication Required", "407 Proxy Authentication Required"),
        ("http", b"502 Bad Gateway", "502 Bad Gateway"),
        ("http", b"503 Service Unavailable", "503 Service Unavailable"),
        ("http", b"504 Gateway Timeout", "504 Gateway Timeout"),
    ],
)
def test_check_tells_that_the_proxy_does_not_lead_there(
    tmp_path: Path, http: Proxy, scheme: str, refusal: bytes, told: str
) -> None:
    host = f"{scheme}://{HOST}"
    http.refusal = refusal
    done = run("check", **environ(tmp_path, host, **{f"{scheme}_proxy": http.url}))

    assert done.returncode == 1
    assert done.stderr == f"Error: segment: {host}: {told}\n"


@pytest.mark.parametrize("password", ["p%40ss:word", "%E2%82%AC%C3%A9", "\N{EURO SIGN}\u00e9"])
def test_a_login_may_have_any_characters(
    tmp_path: Path, server: SegmentServer, password: str
) -> None:
    at = urlsplit(server.url)
    with Proxy((str(at.hostname), at.port or 0), f"relay:{unquote(password)}") as proxy:
        way = f"http://relay:{password}@{urlsplit(proxy.url).netloc.rpartition('@')[2]}"
        done = run("check", **environ(tmp_path, server.url, http_proxy=way))

    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.asked


def test_check_tells_of_a_login_that_is_wrong_or_a_proxy_that_is_gone_and_not_the_login(
    tmp_path: Path, server: SegmentServer, http: Proxy
) -> None:
    """The host itself could be reached without it."""
    wrong = http.url.replace("sesame", "barley")
    gone = f"http://{LOGIN}@127.0.0.1:{closed_port()}"
    done = [run("check", **environ(tmp_path, server.url, http_proxy=way)) for way in (wrong, gone)]

    assert [check.returncode for check in done] == [1, 1]
    assert "407 Proxy Authentication Required" in done[0].stderr
    assert "ProxyError (Connection refused)" in done[1].stderr
    said = "".join(check.stderr + check.stdout for check in done).replace(str(tmp_path), "")
    assert "open" not in said


@pytest.mark.parametrize("command", ["check", "serve", "forward"])
def test_a_proxy_that_cannot_be_used_ends_the_start_and_is_not_told(
    tmp_path: Path, server: SegmentServer, command: str
) -> None:
    proxy = f"socks5://{LOGIN}@127.0.0.1:1080"
    done = run(command, **environ(tmp_path, server.url, http_proxy=proxy))

    assert done.returncode == 2
    assert done.stderr == "http_proxy: should be like http://proxy.example.com:3128\n"

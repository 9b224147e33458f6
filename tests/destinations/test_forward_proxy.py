"""`relay check` and `relay serve` reach Segment the same way: through the proxy, if one is set."""

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
HOST = "segment.invalid"  # only the proxy can reach this name


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
    """Return whether `relay serve` delivers to the stand-in in this environment."""
    ledger = Ledger(Random(1))  # noqa: S311 (not for secrets)
    webhook = next(w for w in iter(ledger.next, None) if w.fate == "delivered")
    outbox = path / "relay.db"
    with RelayProcess(outbox, host, **more) as relay:  # type: ignore[arg-type]  # `more` holds no port
        relay.post(webhook.body)
        delivered = within(60, lambda: bool(server.accepted))
        assert "open-sesame" not in str(relay.log())
    return delivered


def test_https_requests_go_through_a_tunnel_of_the_proxy(
    tmp_path: Path, server: SegmentServer, https: Proxy, trusted: Path
) -> None:
    """Nothing listens at the host itself: only the proxy's tunnel leads to the stand-in."""
    host = f"https://127.0.0.1:{closed_port()}"
    variables = {"https_proxy": https.url, "SSL_CERT_FILE": str(trusted)}
    done = run("check", **environ(tmp_path, host, **variables))
    checked = [*https.asked]
    delivered = delivers(tmp_path, server, host, **variables)

    assert (done.returncode, done.stderr) == (0, "")
    assert f"segment   ok: {host} can be reached" in done.stdout
    assert checked == [f"CONNECT {host.removeprefix('https://')} HTTP/1.1"]
    assert delivered
    assert {*https.asked} == {*checked}


def test_http_requests_are_passed_on_by_the_proxy(
    tmp_path: Path, server: SegmentServer, http: Proxy
) -> None:
    host = f"http://{HOST}"
    done = run("check", **environ(tmp_path, host, http_proxy=http.url))
    checked = [*http.asked]
    delivered = delivers(tmp_path, server, host, http_proxy=http.url)

    assert (done.returncode, done.stderr) == (0, "")
    assert checked == [f"GET {host}/v1/batch HTTP/1.1"]
    assert delivered
    assert {*http.asked} == {*checked, f"POST {host}/v1/batch HTTP/1.1"}


def test_a_host_in_no_proxy_is_reached_without_the_proxy(
    tmp_path: Path, server: SegmentServer, http: Proxy
) -> None:
    variables = {"http_proxy": http.url, "no_proxy": "127.0.0.1"}
    done = run("check", **environ(tmp_path, server.url, **variables))
    delivered = delivers(tmp_path, server, server.url, **variables)

    assert done.returncode == 0
    assert delivered
    assert http.asked == []


@pytest.mark.parametrize(
    ("scheme", "refusal", "error"),
    [
        ("https", b"403 Forbidden", "ProxyError (the proxy answered 403)"),
        ("https", b"502 Bad Gateway", "ProxyError (the proxy answered 502)"),
        ("http", b"407 Proxy Authentication Required", "407 Proxy Authentication Required"),
        ("http", b"502 Bad Gateway", "502 Bad Gateway"),
        ("http", b"503 Service Unavailable", "503 Service Unavailable"),
        ("http", b"504 Gateway Timeout", "504 Gateway Timeout"),
    ],
)
def test_check_reports_the_proxys_error(
    tmp_path: Path, http: Proxy, scheme: str, refusal: bytes, error: str
) -> None:
    host = f"{scheme}://{HOST}"
    http.refusal = refusal
    done = run("check", **environ(tmp_path, host, **{f"{scheme}_proxy": http.url}))

    assert done.returncode == 1
    assert done.stderr == f"Error: segment: {host}: {error}\n"


@pytest.mark.parametrize("password", ["p%40ss:word", "%E2%82%AC%C3%A9", "\N{EURO SIGN}\u00e9"])
def test_a_proxy_login_may_have_any_characters(
    tmp_path: Path, server: SegmentServer, password: str
) -> None:
    at = urlsplit(server.url)
    with Proxy((str(at.hostname), at.port or 0), f"relay:{unquote(password)}") as proxy:
        url = f"http://relay:{password}@{urlsplit(proxy.url).netloc.rpartition('@')[2]}"
        done = run("check", **environ(tmp_path, server.url, http_proxy=url))

    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.asked


def test_check_reports_a_wrong_login_or_missing_proxy_without_the_login(
    tmp_path: Path, server: SegmentServer, http: Proxy
) -> None:
    """The host itself can be reached without the proxy."""
    wrong = http.url.replace("sesame", "barley")
    missing = f"http://{LOGIN}@127.0.0.1:{closed_port()}"
    done = [
        run("check", **environ(tmp_path, server.url, http_proxy=url)) for url in (wrong, missing)
    ]

    assert [check.returncode for check in done] == [1, 1]
    assert "407 Proxy Authentication Required" in done[0].stderr
    assert "ProxyError (Connection refused)" in done[1].stderr
    output = "".join(check.stderr + check.stdout for check in done).replace(str(tmp_path), "")
    assert "open" not in output


@pytest.mark.parametrize("command", ["check", "serve", "forward"])
def test_an_unusable_proxy_url_ends_the_start_and_is_not_printed(
    tmp_path: Path, server: SegmentServer, command: str
) -> None:
    proxy = f"socks5://{LOGIN}@127.0.0.1:1080"
    done = run(command, **environ(tmp_path, server.url, http_proxy=proxy))

    assert done.returncode == 2
    assert done.stderr == "http_proxy: should be like http://proxy.example.com:3128\n"

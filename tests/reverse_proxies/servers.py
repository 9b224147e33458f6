"""Debian's proxies as real processes on loopback, and their logs."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from tests.harness.processes import closed_port

DEPLOY: Final = Path(__file__).parents[2] / "deploy"

_START_SECONDS: Final = 30
_PATH: Final = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian puts servers


def program(name: str) -> str:
    """Return the path of the program; skip the test without it."""
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"no {name}: apt-get install {name}")
    return found


@dataclass
class Proxy:
    """A proxy that listens.

    Attributes:
        port: where it listens.
        directory: everything that it writes is in it, its output too.
    """

    port: int
    directory: Path
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def written(self) -> str:
        """Return everything that it has written."""
        return "\n".join(
            path.read_text(errors="replace")
            for path in self.directory.rglob("*")
            if path.is_file() and path.name not in _CONFIGURATIONS
        )


Configuration = Callable[[int, Sequence[int], Path], str]
"""Returns the text for a proxy at a port, before relays at others, that writes into a directory."""

_CONFIGURATIONS: Final = {"nginx.conf", "haproxy.cfg", "Caddyfile"}
_NGINX: Final = """
{user}
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/client;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {site}
}}
"""


def _nginx(site: str, directory: Path) -> str:
    # Otherwise its workers would run as a user who may not write here.
    user = "user root;" if os.geteuid() == 0 else ""
    return _NGINX.format(directory=directory, site=site, user=user)


def nginx_by_default(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return a configuration with a bare `proxy_pass`."""
    relay = f"location / {{ proxy_pass http://127.0.0.1:{relays[0]}; }}"
    return _nginx(f"server {{ listen 127.0.0.1:{port}; {relay} }}", directory)


def nginx_as_suggested(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return `deploy/nginx-site.conf` without TLS."""
    site = (DEPLOY / "nginx-site.conf").read_text()
    site = re.sub(r"ssl_certificate.*;", "", _once(site, "443 ssl", f"127.0.0.1:{port}"))
    site = site.replace("/var/log/nginx", str(directory))
    (server,) = re.findall(r"^ *server 127\.0\.0\.1:8000.*;$", site, re.MULTILINE)
    servers = [server.replace("8000", str(relay)) for relay in relays]
    return _nginx(_once(site, server, "\n".join(servers)), directory)


def nginx_with_limits(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return `deploy/nginx-site.conf` without TLS, with its limits of the rate."""
    return nginx_as_suggested(port, relays, directory).replace("#limit: ", "")


def nginx_with_limits_for_others(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return the same, with this machine named as one of the operator's own servers."""
    return _once(nginx_with_limits(port, relays, directory), "10.0.0.0/8", "127.0.0.0/8")


def haproxy_by_default(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return what Debian's configuration sets before anything is added."""
    del directory
    return dedent(f"""
        global
            log stdout format raw local0
        defaults
            log global
            mode http
            option httplog
            option dontlognull
            timeout connect 5000
            timeout client 50000
            timeout server 50000
        frontend public
            bind 127.0.0.1:{port}
            default_backend relay
        backend relay
            server relay 127.0.0.1:{relays[0]}
    """)


def haproxy_as_suggested(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return `deploy/haproxy.cfg` without TLS."""
    del directory
    text = (DEPLOY / "haproxy.cfg").read_text()
    text = _once(text, "/dev/log", "stdout format raw")
    text = _once(text, ":443 ssl crt /etc/haproxy/relay.pem", f"127.0.0.1:{port}")
    return _once(text, "127.0.0.1:8000", f"127.0.0.1:{relays[0]}")


def caddy_by_default(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return a configuration with a bare `reverse_proxy`."""
    del directory
    relay = f"reverse_proxy 127.0.0.1:{relays[0]}"
    return f"{{\n\tadmin off\n}}\nhttp://:{port} {{\n\tbind 127.0.0.1\n\t{relay}\n}}\n"


def caddy_as_suggested(port: int, relays: Sequence[int], directory: Path) -> str:
    """Return `deploy/Caddyfile` without TLS."""
    del directory
    text = (DEPLOY / "Caddyfile").read_text()
    text = _once(text, "\n{\n", "\n{\n\tadmin off\n")
    text = _once(text, "relay.example.com {", f"http://:{port} {{\n\tbind 127.0.0.1")
    return _once(text, "127.0.0.1:8000", f"127.0.0.1:{relays[0]}")


def _once(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


DEFAULTS: Final[Mapping[str, Configuration]] = {
    "nginx": nginx_by_default,
    "haproxy": haproxy_by_default,
    "caddy": caddy_by_default,
}
SUGGESTED: Final[Mapping[str, Configuration]] = {
    "nginx": nginx_as_suggested,
    "haproxy": haproxy_as_suggested,
    "caddy": caddy_as_suggested,
}
_COMMANDS: Final = {
    "nginx": ("nginx.conf", ["-c"]),
    "haproxy": ("haproxy.cfg", ["-db", "-f"]),
    "caddy": ("Caddyfile", ["run", "--adapter", "caddyfile", "--config"]),
}


@contextmanager
def before(
    name: str, configuration: Configuration, relays: Sequence[int], directory: Path
) -> Iterator[Proxy]:
    """Run the proxy before relays at these ports."""
    port = closed_port()
    file, options = _COMMANDS[name]
    directory.mkdir()
    path = directory / file
    path.write_text(configuration(port, relays, directory))
    with running([program(name), *options, str(path)], port, directory) as proxy:
        yield proxy


@contextmanager
def running(command: Sequence[str], port: int, directory: Path) -> Iterator[Proxy]:
    """Run a server that listens at the port; end it with everything that it started."""
    environ = {"PATH": _PATH, "HOME": str(directory), "XDG_DATA_HOME": str(directory / "data")}
    with (
        (directory / "output").open("wb") as output,
        subprocess.Popen(  # noqa: S603 (Debian's program, and a configuration of the tests)
            command,
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        proxy = Proxy(port, directory, process)
        try:
            _await(proxy)
            yield proxy
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _await(proxy: Proxy) -> None:
    """Wait until it listens, without a connection: some of these would pass it on."""
    listening = f"0100007F:{proxy.port:04X} 00000000:0000 0A"
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and proxy.process.poll() is None:
        if listening in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"it did not start:\n{proxy.written()}")

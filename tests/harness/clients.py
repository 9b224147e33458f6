"""Segment's own libraries, each as a program that makes the calls of examples.

The programs are in `tests/clients`; `make test` installs the libraries for Node.js there.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Final

from playwright.sync_api import Browser

from tests.harness.fakes import LoopbackServer

_CLIENTS: Final = Path(__file__).parents[1] / "clients"
_OLDEST_NODE: Final = 20
_TIMEOUT_SECONDS: Final = 60


@dataclass(frozen=True)
class Result:
    """What a library says of the calls that it was to send.

    Attributes:
        calls: how many there were.
        errors: why some were not sent.
    """

    calls: int
    errors: list[str]


def no_libraries() -> str | None:
    """Return why the libraries for Node.js and browsers are missing; None if they are there."""
    if not (_CLIENTS / "node_modules").is_dir():
        return "Segment's libraries for Node.js are not installed: make test, with npm"
    return None


def no_node() -> str | None:
    """Return why the programs for Node.js cannot run; None if they can."""
    node = shutil.which("node")
    if node is None:
        return "no Node.js"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603 (its own program)
    if int(version.removeprefix("v").split(".")[0]) < _OLDEST_NODE:
        return f"Node.js {version.strip()} is older than {_OLDEST_NODE}"
    return no_libraries()


def python_client(url: str, write_key: str, *examples: str) -> Result:
    """Make the calls of the examples with segment-analytics-python."""
    return _run([sys.executable, "segment_python.py", url, write_key, *examples])


def node_client(url: str, write_key: str, *examples: str) -> Result:
    """Make the calls of the examples with @segment/analytics-node."""
    return _run([_node(), "analytics-node.mjs", url, write_key, *examples])


def old_node_client(url: str, write_key: str, *examples: str) -> Result:
    """Make the calls of the examples with analytics-node, the library before."""
    return _run([_node(), "analytics-node-6.mjs", url, write_key, *examples])


@contextmanager
def browser_client(
    browser: Browser, page: str, url: str, write_key: str, *examples: str, batches: bool = False
) -> Iterator[Result]:
    """Make the calls of the examples with analytics.js, as a visitor who stays on the page.

    Args:
        browser: of the visitor.
        page: URL of the page; see `serving_page`.
        url: of relay.
        write_key: which the page gives to relay.
        examples: names of examples.
        batches: whether the library sends its calls in batches; then some are still to be sent.
    """
    options = {"deliveryStrategy": {"strategy": "batching"}} if batches else {}
    with closing(browser.new_context()) as context:
        visited = context.new_page()
        visited.goto(page)
        done = visited.evaluate(
            "([host, key, names, options]) => make(host, key, names, options)",
            [url, write_key, examples, options],
        )
        yield Result(**done)


@contextmanager
def serving_page() -> Iterator[str]:
    """Serve a web page with analytics.js meanwhile; yield its URL."""
    handler = partial(_Files, directory=str(_CLIENTS))
    with LoopbackServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/page.html"
        server.shutdown()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def _node() -> str:
    node = shutil.which("node")
    assert node
    return node


def _run(command: Sequence[str]) -> Result:
    done = subprocess.run(  # noqa: S603 (its own programs)
        command, cwd=_CLIENTS, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return Result(**json.loads(done.stdout))

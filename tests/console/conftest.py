from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request

from tests.console.browsing import CHROMIUM, Scheme, chromium, window
from tests.fakes import SegmentServer
from tests.processes import RelayProcess, SqliteStore
from tests.tools.desk import Desk

OpenPage = Callable[..., Page]
"""Opens a path of the console in a window of its own."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of a module; without it they are skipped.

    No longer: its driver runs an event loop in this very thread, and other tests have their own.
    """
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A relay that has received nothing yet."""
    store = SqliteStore(tmp_path / "relay.db")
    with SegmentServer() as segment, RelayProcess(store, segment.url) as relay:
        yield Desk(store, relay, segment)


@pytest.fixture
def open_page(browser: Browser, desk: Desk) -> Iterator[OpenPage]:
    """See `OpenPage`. What goes wrong in a page, or leaves this machine, fails the test."""
    faults: list[str] = []
    own = f"http://127.0.0.1:{desk.relay.port}/"

    def note(request: Request) -> None:
        if not request.url.startswith(own):
            faults.append(f"asked for {request.url}")

    with ExitStack() as windows:

        def open_page(path: str, *, width: int = 1200, scheme: Scheme = "light") -> Page:
            context = windows.enter_context(window(browser, own, width=width, scheme=scheme))
            page = context.new_page()
            page.on("request", note)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
            page.on(
                "console",
                lambda said: faults.append(said.text) if said.type == "error" else None,
            )
            page.goto(f"/console{path}")
            return page

        yield open_page
    assert faults == []

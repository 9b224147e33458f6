"""A real browser for relay's console: Debian's Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.console.client import cookie
from tests.harness.processes import RelayProcess

CHROMIUM: Final = shutil.which("chromium-headless-shell") or shutil.which("chromium")
"""The first one draws no window around its pages, and takes half as much time."""
PAGES: Final = ("/", "/events", "/dead", "/playground")

Scheme = Literal["light", "dark"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the browser."""
    with sync_playwright() as playwright:
        # Its sandbox does not work for root; it opens no pages but relay's.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@contextmanager
def window(
    browser: Browser,
    relay: RelayProcess,
    *,
    width: int = 1200,
    height: int = 800,
    scheme: Scheme = "light",
    signed_in: bool = True,
) -> Iterator[BrowserContext]:
    """Open a window with cookies of its own; paths are relative to the relay."""
    url = f"http://127.0.0.1:{relay.port}"
    context = browser.new_context(
        base_url=url, viewport={"width": width, "height": height}, color_scheme=scheme
    )
    context.set_default_timeout(20_000)
    if signed_in:
        name, _, value = cookie(relay).partition("=")
        context.add_cookies([{"name": name, "value": value, "url": f"{url}/console"}])
    yield context
    context.close()

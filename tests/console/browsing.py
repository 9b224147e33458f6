"""A real browser at relay's console: Debian's Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.console.asking import cookie
from tests.harness.processes import RelayProcess

CHROMIUM: Final = shutil.which("chromium")
PAGES: Final = ("/", "/events", "/dead", "/playground")

Scheme = Literal["light", "dark"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for as long as it is needed."""
    with sync_playwright() as playwright:
        # Root may not have its sandbox; it sees no page but relay's own.
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
    """A window of its own, in which paths are those of the relay, and its user is signed in."""
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

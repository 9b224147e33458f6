"""Signs an operator in by a link that relay prints, if no password is set."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Final
from urllib.parse import parse_qs, urlsplit

import structlog
from msgspec import Struct
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from relay.console.access import PAGE
from relay.console.pages import HOME, Pages
from relay.console.sessions import Sessions
from relay.receiver.wrong_credentials import CLOSE_CONNECTION, WrongCredentials

PATH: Final = f"{HOME}/sign-in"

_MAX_BODY_BYTES: Final = 2_048
_BODY_SECONDS: Final = 10

_log = structlog.get_logger()


class Links(Struct, frozen=True):
    """The address that links lead to, and the way they reach the operator.

    Attributes:
        url: relay's URL on this machine.
        issue: called with each link as soon as it works.
    """

    url: str
    issue: Callable[[str], None]


def print_link(link: str) -> None:
    """Print a link to the console on standard output; the log may hold no secret."""
    if sys.stdout is not None:  # None if it was closed before Python began
        with suppress(OSError):  # its reader has gone, or its disk is full
            os.write(sys.stdout.fileno(), f"Console: {link}\n".encode())


class SignIn:
    """An authenticator that accepts the session of a link from relay's output.

    The link's token is its fragment, which browsers do not send: it is in no request's path, no
    `Referer` and no log of a proxy. The page that the link opens posts the token, and gets a cookie
    with another random value. A link works once; then the next one is printed. Programs that
    prefetch or preview a link do not post, so they do not use it up.

    Args:
        pages: renders the page to sign in.
        links: where links lead, and how the operator gets them.
    """

    def __init__(self, pages: Pages, links: Links) -> None:
        self._pages = pages
        self._links = links
        # Browsers send a cookie to every port of a host: another relay there needs another name.
        self._cookie = f"relay_console_{urlsplit(links.url).port}"
        self._sessions = Sessions()
        self._wrong_credentials = WrongCredentials(PAGE, ["link", "session"])

    def issue_link(self) -> None:
        """Issue a new link; the one before it no longer works."""
        self._links.issue(f"{self._links.url}{PATH}#{self._sessions.new_link()}")

    def accepts(self, headers: Headers) -> bool:
        """Return whether the cookie belongs to a session; if so, note that the session is used."""
        return any(map(self._sessions.is_under_way, self._cookies(headers)))

    async def refusal(self, headers: Headers) -> Response | None:
        """Return the page to sign in for a request without a session; None if it has one."""
        if self.accepts(headers):
            return None
        if not [*self._cookies(headers)]:
            return self._refused("")
        delayed = await self._wrong_credentials.delay("session")
        answer = self._refused("Your session has ended, or relay was restarted.", delayed=delayed)
        answer.delete_cookie(self._cookie, path=HOME)
        return answer

    async def answer(self, request: Request) -> Response:
        """Show the page that a link opens, or sign in with the link that it posts."""
        return await self._use(request) if request.method == "POST" else self._page("")

    async def _use(self, request: Request) -> Response:
        link = await _posted_link(request)
        token = self._sessions.begin(link)
        if token is None:
            # The same link in the same browser: its session is under way already.
            if self.accepts(request.headers):
                return RedirectResponse(f"{HOME}/", status_code=303)
            delayed = await self._wrong_credentials.delay("link")
            text = "This link does not work: it was used before, or relay was restarted since."
            return self._refused(text, delayed=delayed)
        _log.info("console.signed_in")
        # After the answer, and in a thread: the reader of standard output may have stalled.
        printing = BackgroundTask(self.issue_link)
        answer = RedirectResponse(f"{HOME}/", status_code=303, background=printing)
        answer.set_cookie(
            self._cookie,
            token,
            path=HOME,
            # The browser says by which scheme it came; a lie would only harm its own user.
            secure=request.headers.get("origin", "").startswith("https:"),
            httponly=True,
            samesite="strict",
        )
        return answer

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        for token in self._cookies(request.headers):
            self._sessions.end(token)
        answer = RedirectResponse(PATH, status_code=303)
        answer.delete_cookie(self._cookie, path=HOME)
        return answer

    def _cookies(self, headers: Headers) -> Iterator[str]:
        """Yield every value of the cookie: another site of the domain may have added one."""
        for pair in headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._cookie:
                yield value

    def _refused(self, text: str, *, delayed: bool = True) -> Response:
        headers = {"www-authenticate": 'Cookie realm="relay"'}
        if not delayed:
            headers |= CLOSE_CONNECTION
        return self._page(text, status=401, headers=headers)

    def _page(
        self, text: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        page = self._pages.render("sign_in.html", reveal=False, sign_in=PATH, text=text)
        return HTMLResponse(page, status_code=status, headers=headers)


async def _posted_link(request: Request) -> str:
    """Return the token of the posted link: what follows its `#`, or all of it without one.

    Raises:
        HTTPException: the form is too large or too slow, or the browser is gone.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise HTTPException(
                        413, "This is larger than any link.", {"connection": "close"}
                    )
    except TimeoutError:
        raise HTTPException(408, "The link took too long.", {"connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The link was cut off.") from None
    fields = parse_qs(body.decode(errors="replace"))
    return fields.get("link", [""])[0].rpartition("#")[2].strip()

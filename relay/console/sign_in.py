"""Signing in by a link that relay prints, where no password is set."""

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

from relay.console.access import DOOR
from relay.console.pages import HOME, Pages
from relay.console.sessions import Sessions
from relay.receiver.attempts import LATE, Attempts

PATH: Final = f"{HOME}/sign-in"

_MAX_BODY_BYTES: Final = 2_048
_BODY_SECONDS: Final = 10

_log = structlog.get_logger()


class Links(Struct, frozen=True):
    """How links are told.

    Attributes:
        url: at which relay is reached from this machine.
        tell: takes each link, at the time from which it works.
    """

    url: str
    tell: Callable[[str], None]


def print_link(link: str) -> None:
    """Print a link to the console on standard output: the log, which holds no secret, has none."""
    if sys.stdout is not None:  # it is, where it was closed before Python began
        with suppress(OSError):  # its reader has gone, or its disk is full
            os.write(sys.stdout.fileno(), f"Console: {link}\n".encode())


class SignIn:
    """A door to the console, opened by a link that relay has printed.

    The link's token is its fragment, which browsers keep to themselves: it is in no request's path,
    no `Referer` and no log of a proxy. The page that the link opens posts it, and gets a cookie of
    another random value for it. A link works once; then the next one is printed. What looks ahead
    or previews links does not post, and so does not use them up.

    Args:
        pages: render what is shown without a session.
        links: how links are told.
    """

    def __init__(self, pages: Pages, links: Links) -> None:
        self._pages = pages
        self._links = links
        # Browsers send cookies to every port of a host: another relay there has another name.
        self._cookie = f"relay_console_{urlsplit(links.url).port}"
        self._sessions = Sessions()
        self._attempts = Attempts(DOOR, ["link", "session"])

    def tell_link(self) -> None:
        """Tell a new link; the one before it no longer works."""
        self._links.tell(f"{self._links.url}{PATH}#{self._sessions.new_link()}")

    def lets_in(self, headers: Headers) -> bool:
        """Whether its session is under way, which is used by this."""
        return any(map(self._sessions.is_under_way, self._given(headers)))

    async def refusal(self, headers: Headers) -> Response | None:
        """Why the request may not come in; None if its session is under way."""
        if self.lets_in(headers):
            return None
        if not [*self._given(headers)]:
            return self._refused("")
        held = await self._attempts.hold_back("session")
        answer = self._refused("Your session has ended, or relay was started again.", held=held)
        answer.delete_cookie(self._cookie, path=HOME)
        return answer

    async def answer(self, request: Request) -> Response:
        """Show the page that a link opens, or sign in with the link that it posts."""
        return await self._use(request) if request.method == "POST" else self._page("")

    async def _use(self, request: Request) -> Response:
        link = await _posted_link(request)
        token = self._sessions.begin(link)
        if token is None:
            # Whoever opens the same link again, in the same browser, is in already.
            if self.lets_in(request.headers):
                return RedirectResponse(f"{HOME}/", status_code=303)
            held = await self._attempts.hold_back("link")
            said = "This link does not work: it was used before, or relay was started again since."
            return self._refused(said, held=held)
        _log.info("console.signed_in")
        # After the answer, and in a thread: whatever reads what is printed may have stalled.
        printing = BackgroundTask(self.tell_link)
        answer = RedirectResponse(f"{HOME}/", status_code=303, background=printing)
        answer.set_cookie(
            self._cookie,
            token,
            path=HOME,
            # The browser says by which scheme it has come; a lie would harm its own user alone.
            secure=request.headers.get("origin", "").startswith("https:"),
            httponly=True,
            samesite="strict",
        )
        return answer

    async def leave(self, request: Request) -> Response:
        """End the session."""
        for token in self._given(request.headers):
            self._sessions.end(token)
        answer = RedirectResponse(PATH, status_code=303)
        answer.delete_cookie(self._cookie, path=HOME)
        return answer

    def _given(self, headers: Headers) -> Iterator[str]:
        """The values of the cookie: another site of the same domain may have added one."""
        for pair in headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._cookie:
                yield value

    def _refused(self, said: str, *, held: bool = True) -> Response:
        answer = {"www-authenticate": 'Cookie realm="relay"'} | ({} if held else LATE)
        return self._page(said, status=401, headers=answer)

    def _page(
        self, said: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        page = self._pages.render("sign_in.html", reveal=False, sign_in=PATH, said=said)
        return HTMLResponse(page, status_code=status, headers=headers)


async def _posted_link(request: Request) -> str:
    """The token of the link that the form holds, whole or without what stands before it.

    Raises:
        HTTPException: the form is larger or slower than any with a link.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MAX_BODY_BYTES:
                    raise HTTPException(413, "That is more than a link.", {"connection": "close"})
    except TimeoutError:
        raise HTTPException(408, "The link took too long.", {"connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "The link did not come whole.") from None
    fields = parse_qs(body.decode(errors="replace"))
    return fields.get("link", [""])[0].rpartition("#")[2].strip()

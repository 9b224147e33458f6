"""Who may see the console, and who may act in it.

Nothing is concluded from what a request says about its way: `Host`, forwarding headers, the version
of HTTP and addresses are the sender's or a proxy's to choose.
"""

from typing import Final, Protocol

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.auth import SecretCheck, basic_credentials
from relay.receiver.attempts import LATE, Attempts

DOOR: Final = "console"
"""What wrong credentials at the console are counted under."""

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Door(Protocol):
    """Tells who may come in from who may not."""

    def lets_in(self, headers: Headers) -> bool:
        """Whether who sends these headers may come in at this moment."""
        ...

    async def refusal(self, headers: Headers) -> Response | None:
        """Why the request may not come in; None if it may."""
        ...


class PasswordDoor:
    """Lets in those who send the password by HTTP Basic, whatever the user name."""

    def __init__(self, password: SecretStr) -> None:
        self._check = SecretCheck([password])
        self._attempts = Attempts(DOOR, ["password"])

    def lets_in(self, headers: Headers) -> bool:
        """See `Door`."""
        credentials = basic_credentials(headers.get("authorization", "").encode("latin-1"))
        return credentials is not None and self._check.accepts(credentials[1])

    async def refusal(self, headers: Headers) -> Response | None:
        """See `Door`."""
        if self.lets_in(headers):
            return None
        given = headers.get("authorization", "")
        answer = {"www-authenticate": 'Basic realm="relay", charset="UTF-8"'}
        if given and not await self._attempts.hold_back("password"):
            answer |= LATE
        said = "A password is needed: that of RELAY_CONSOLE_PASSWORD, with any user name."
        return PlainTextResponse(said, status_code=401, headers=answer)


class Guard:
    """Lets requests through that the door lets in; those that change something, from own pages."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        refusal: Response | None
        if ".." in scope["path"].split("/"):
            # A proxy that lets webhooks alone through takes /console/../webhooks/ for one.
            refusal = PlainTextResponse("There is no such page.", status_code=404)
        else:
            refusal = await self._door.refusal(headers)
        if not refusal and scope["method"] not in {"GET", "HEAD"} and not _is_own(headers):
            said = (
                "Only the console's own pages can do this. If this is one of them: the proxy in"
                " front of relay must pass on the Host that the browser has asked for."
            )
            refusal = PlainTextResponse(said, status_code=403)
        await (refusal or self._app)(scope, receive, send)


class Sealed:
    """Adds to every answer the headers that keep a page from being framed, sniffed or kept."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), value.encode())
                        for name, value in _HEADERS.items()
                        if name.encode() not in given
                    ),
                ]
            await send(message)

        await self._app(scope, receive, send_sealed)


def _is_own(headers: Headers) -> bool:
    """Whether the request comes from a page of this very origin.

    Browsers tell, and pages cannot lie.
    """
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    scheme, _, place = headers.get("origin", "").partition("://")
    return scheme in {"http", "https"} and bool(place) and place == headers.get("host")

"""Guards the console: checks credentials, and refuses changes that other sites' pages ask for.

Nothing is trusted because of where a request comes from: the sender or a proxy chooses `Host`,
forwarding headers, the version of HTTP and addresses.
"""

from typing import Final, Protocol

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.auth import SecretCheck, basic_credentials
from relay.receiver.wrong_credentials import CLOSE_CONNECTION, WrongCredentials

PAGE: Final = "console"
"""The label of wrong credentials at the console, in metrics and the log."""

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


class Authenticator(Protocol):
    """A check of a request's credentials, and the answer to a request without them."""

    def accepts(self, headers: Headers) -> bool:
        """Return whether these headers carry valid credentials."""
        ...

    async def refusal(self, headers: Headers) -> Response | None:
        """Return the answer to a request without valid credentials; None if they are valid."""
        ...


class PasswordAuthenticator:
    """An authenticator that accepts the password: HTTP Basic, with any user name."""

    def __init__(self, password: SecretStr) -> None:
        self._check = SecretCheck([password])
        self._wrong_passwords = WrongCredentials(PAGE, ["password"])

    def accepts(self, headers: Headers) -> bool:
        """See `Authenticator`."""
        credentials = basic_credentials(headers.get("authorization", "").encode("latin-1"))
        return credentials is not None and self._check.accepts(credentials[1])

    async def refusal(self, headers: Headers) -> Response | None:
        """See `Authenticator`."""
        if self.accepts(headers):
            return None
        challenge = {"www-authenticate": 'Basic realm="relay", charset="UTF-8"'}
        if headers.get("authorization") and not await self._wrong_passwords.delay("password"):
            challenge |= CLOSE_CONNECTION
        text = "Sign in with the password of RELAY_CONSOLE_PASSWORD and any user name."
        return PlainTextResponse(text, status_code=401, headers=challenge)


class Guard:
    """ASGI middleware that refuses requests without credentials, and changes by foreign pages."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        refusal: Response | None
        if ".." in scope["path"].split("/"):
            # A proxy that only lets webhooks through would take /console/../webhooks/ for one.
            refusal = PlainTextResponse("There is no such page.", status_code=404)
        else:
            refusal = await self._authenticator.refusal(headers)
        if not refusal and scope["method"] not in {"GET", "HEAD"} and not _is_own(headers):
            text = (
                "Only the console's own pages can do this. If this is one of them, the proxy in"
                " front of relay must pass on the Host header that the browser sent."
            )
            refusal = PlainTextResponse(text, status_code=403)
        await (refusal or self._app)(scope, receive, send)


class SecurityHeaders:
    """ASGI middleware whose headers forbid to frame, sniff or cache the answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
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

        await self._app(scope, receive, send_with_headers)


def _is_own(headers: Headers) -> bool:
    """Return whether a page of the console's own origin sent the request; no page can forge it."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    scheme, _, place = headers.get("origin", "").partition("://")
    return scheme in {"http", "https"} and bool(place) and place == headers.get("host")

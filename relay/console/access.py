"""Who may see the console, and who may act in it."""

import base64
import binascii
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.loopback import is_loopback
from relay.providers import SecretCheck

# What a proxy adds: through it anyone may come, whatever the request's Host says. nginx by itself
# adds nothing and names this machine as the Host, but speaks HTTP/1.0, which no browser does.
_FORWARDED: Final = ("forwarded", "x-forwarded", "x-real-ip", "x-client-ip", "via", "cf-")

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


class Guard:
    """Lets requests through to the console that may see it.

    With a password, who knows it. Without one, who asks this machine for itself: for everybody
    else there is no console.
    """

    def __init__(self, app: ASGIApp, password: SecretStr | None) -> None:
        self._app = app
        self._password = SecretCheck([password]) if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = Headers(scope=scope)
        if self._password is None and not _asks_for_loopback(headers, scope["http_version"]):
            hidden = JSONResponse({"status": "refused", "error": "Not Found"}, status_code=404)
            await hidden(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
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

        app = self._refusal(headers, scope["method"]) or self._app
        await app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str) -> Response | None:
        given = _password(headers.get("authorization", ""))
        if self._password and not self._password.accepts(given):
            challenge = {"www-authenticate": 'Basic realm="relay", charset="UTF-8"'}
            return PlainTextResponse("A password is needed.", status_code=401, headers=challenge)
        if method not in {"GET", "HEAD"} and not _is_from_own_page(headers):
            return PlainTextResponse("Only the console's own pages can do this.", status_code=403)
        return None


def _asks_for_loopback(headers: Headers, http_version: str) -> bool:
    """Also a name that was made to point here is somebody else's."""
    if http_version == "1.0" or any(name.startswith(_FORWARDED) for name in headers):
        return False
    try:
        return is_loopback(urlsplit(f"//{headers.get('host', '')}").hostname or "")
    except ValueError:
        return False


def _is_from_own_page(headers: Headers) -> bool:
    """Whether it came of a page of this very origin; browsers tell, and pages cannot lie."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    scheme, _, place = headers.get("origin", "").partition("://")
    return scheme in {"http", "https"} and bool(place) and place == headers.get("host")


def _password(authorization: str) -> bytes:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""

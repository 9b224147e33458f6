"""The HTTP client: each request has one deadline, and no error names a secret."""

import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import urllib3
from msgspec import Struct
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationValueError

from relay.destinations.http.connections import Bounds, bounds, open_pool
from relay.destinations.http.deadline import Deadline, Watchdog
from relay.destinations.http.hosts import Lookups
from relay.errors import HttpError, UnusableUrlError

_MOST_READ: Final = 64 * 1024
_TUNNEL_REFUSED: Final = "Tunnel connection failed: "


class Response(Struct, frozen=True):
    """An answer to a request.

    Attributes:
        body: its first 64 KiB; less if the peer broke off.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """A client of one host, which keeps its connections. Safe for threads.

    Args:
        host: a base URL.
        seconds: time limit of a request, from the look-up of the name to the answer's last byte.
        connections: most connections that it keeps open when they are idle.

    Raises:
        SettingsError: the environment names a proxy that cannot be used.
    """

    def __init__(self, host: str, seconds: float, *, connections: int = 10) -> None:
        self._seconds = seconds
        self._pool = open_pool(host, connections)
        self._watchdog = Watchdog()
        self._lookups = Lookups()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request once, follow no redirect, and return the answer, whatever its status.

        Raises:
            HttpError: no answer came. The peer may still have acted on the request.
            UnusableUrlError: no request can be sent to this URL.
        """
        deadline = Deadline(self._seconds)
        self._watchdog.watch(deadline)
        token = bounds.set(Bounds(deadline, self._lookups))
        try:
            response = self._pool.request(
                method,
                url,
                body=body,
                headers=headers,
                timeout=2 * self._seconds,  # for each step; the deadline of the whole is earlier
                retries=False,
                # A redirect would carry the body and the key to a host that nobody configured.
                redirect=False,
                preload_content=False,
            )
            content = _read(response)
        except LocationValueError as error:
            raise UnusableUrlError(type(error).__name__) from None
        except HTTPError as error:
            # A time-out while connecting says more than "TimeoutError".
            if deadline.passed and not isinstance(error, ConnectTimeoutError):
                raise HttpError("TimeoutError") from None
            raise HttpError(_cause(error)) from None
        finally:
            bounds.reset(token)
            deadline.end()
        if deadline.passed:  # the body was cut off, even if it looks whole
            raise HttpError("TimeoutError")
        return Response(response.status, response.headers, content)


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    """Return the beginning of the body, as far as it arrives."""
    content = b""
    with suppress(HTTPError, OSError):
        while len(content) < _MOST_READ:
            chunk = response.read1(_MOST_READ)
            if not chunk:
                break
            content += chunk
    response.close()  # the connection is kept if all was read
    return content[:_MOST_READ]


def _cause(error: HTTPError) -> str:
    """Return the kind of the error and the system's or the proxy's reason for it.

    The error's own text is left out: it may hold the URL, and a proxy's URL holds credentials.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{type(error).__name__} ({cause.verify_message})"
        if isinstance(cause, OSError) and cause.strerror:
            return f"{type(error).__name__} ({cause.strerror})"
        if str(cause).startswith(_TUNNEL_REFUSED):
            status = str(cause).removeprefix(_TUNNEL_REFUSED)[:3]
            return f"{type(error).__name__} (the proxy answered {status})"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__

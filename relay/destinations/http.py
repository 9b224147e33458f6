"""HTTP requests to one host, each under one time limit, by the way that the environment names.

The only importer of `urllib3`, whose own limits begin again with each byte that comes: a peer that
sends one now and then would hold a thread for ever.
"""

import os
import socket
import ssl
import threading
import time
import weakref
from base64 import b64encode
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from msgspec import Struct
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
)

from relay.errors import HttpError, SettingsError, UnusableUrlError

_CONNECTIONS: Final = 10
_MOST_READ: Final = 64 * 1024
_FEWEST_SECONDS: Final = 0.001  # a time limit of 0 would mean something else to a socket
_TUNNEL_REFUSED: Final = "Tunnel connection failed: "

_LOOK_UP_SECONDS: Final = 60.0

_Addresses = list[tuple[int, int, int, str, Any]]


class Response(Struct, frozen=True):
    """An answer.

    Attributes:
        body: its beginning, 64 KiB at the most; less where the peer has cut it off.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests to a host, over connections that it keeps.

    Args:
        host: a base URL.
        seconds: what a request has from the look-up of the name to the answer's last byte.

    Raises:
        SettingsError: the environment names a proxy that cannot be used.
    """

    def __init__(self, host: str, seconds: float) -> None:
        self._seconds = seconds
        self._pool = _pool(host)
        self._watchdog = _Watchdog()
        self._lookups = _Lookups()

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Send a request once, and follow no redirect; the answer, whatever its status.

        Raises:
            HttpError: there is none. The peer may have taken the request all the same.
            UnusableUrlError: no request can be sent there.
        """
        limit = _Limit(self._seconds, self._lookups)
        self._watchdog.watch(limit)
        token = _limit.set(limit)
        try:
            response = self._pool.request(
                method,
                url,
                body=body,
                headers=headers,
                timeout=2 * self._seconds,  # for each step; the limit of all of them ends before
                retries=False,
                # A redirect would take the content and the key where nobody sent them.
                redirect=False,
                preload_content=False,
            )
            said = _read(response)
        except LocationValueError as error:
            raise UnusableUrlError(type(error).__name__) from None
        except HTTPError as error:
            if limit.passed and not isinstance(error, ConnectTimeoutError):  # that tells more
                raise HttpError("TimeoutError") from None
            raise HttpError(_told(error)) from None
        finally:
            _limit.reset(token)
            limit.end()
        if limit.passed:  # what it has cut off may look whole
            raise HttpError("TimeoutError")
        return Response(response.status, response.headers, said)


class _Lookups:
    """Asks for the addresses of names: one question at a time, however many wait for its answer.

    The system takes as long as it likes to answer, and cannot be interrupted. glibc waits for ever
    where a name server cuts its answer off and is then silent over TCP: after a minute another
    thread asks again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int], tuple[Future[_Addresses], float]] = {}

    def addresses(self, host: str, port: int, seconds: float) -> _Addresses:
        """What there is to connect to.

        Raises:
            OSError: there is no such name, or no answer within so many seconds.
        """
        with self._lock:
            answer, asked_at = self._under_way.get((host, port), (None, 0.0))
            if answer is None or time.monotonic() - asked_at > _LOOK_UP_SECONDS:
                answer = Future()
                ask = threading.Thread(target=self._ask, args=(host, port, answer), daemon=True)
                ask.start()
                self._under_way[host, port] = answer, time.monotonic()
        try:
            return answer.result(seconds)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None

    def _ask(self, host: str, port: int, answer: Future[_Addresses]) -> None:
        try:
            answer.set_result([*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except Exception as error:  # noqa: BLE001 (it is raised where it is waited for)
            answer.set_exception(error)
        finally:
            with self._lock:
                if self._under_way.get((host, port), (None,))[0] is answer:
                    del self._under_way[host, port]


class _Limit:
    """The time that one request has.

    Attributes:
        passed: whether it has run out; the connection is then of no more use.
        ended: set once the request is over.
    """

    def __init__(self, seconds: float, lookups: _Lookups) -> None:
        self._ends_at = time.monotonic() + seconds
        self._lookups = lookups
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.passed = False
        self.ended = threading.Event()

    def left(self) -> float:
        """The seconds that are left."""
        return max(_FEWEST_SECONDS, self._ends_at - time.monotonic())

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to the first of the host's addresses that answers, each in its share of the time.

        Raises:
            OSError: none does.
        """
        addresses = self._lookups.addresses(host, port, self.left())
        failure: OSError = OSError("no address")
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            try:
                connection = socket.socket(family, kind, protocol)
            except OSError as error:  # this machine has no IPv6
                failure = error
                continue
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(self.left() / (len(addresses) - number))
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                return connection
        raise failure

    def hold(self, descriptor: int) -> None:
        """Shut this connection down once the time has run out.

        A descriptor of its own holds it: the socket is replaced when TLS begins, and the number of
        one that was closed may be another connection's a moment later.
        """
        with self._lock:
            if self._socket is None:
                self._socket = socket.socket(fileno=os.dup(descriptor))
        if self.passed:
            self.run_out()

    def run_out(self) -> None:
        """Let those who read or write find the connection at its end, and refuse what arrives."""
        self.passed = True
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """The request is over."""
        self.ended.set()
        with self._lock:
            if self._socket is not None:
                self._socket.close()


_limit: ContextVar[_Limit] = ContextVar("limit")
"""Of the request that this thread sends: connections are made deep inside urllib3."""


class _Watchdog:
    """Ends what takes too long: one thread for all requests of a transport, and only while it is.

    All of them have the same time, so that the first to begin is the first to run out.
    """

    def __init__(self) -> None:
        self._begun: SimpleQueue[_Limit | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        weakref.finalize(self, self._begun.put, None)

    def watch(self, limit: _Limit) -> None:
        """See to it that the request ends in time."""
        with self._lock:
            if not self._started:
                args = (self._begun,)
                threading.Thread(target=_watch, name="watchdog", args=args, daemon=True).start()
                self._started = True
        self._begun.put(limit)


def _watch(begun: "SimpleQueue[_Limit | None]") -> None:
    while (limit := begun.get()) is not None:
        if not limit.ended.wait(limit.left()):
            limit.run_out()


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (urllib3's own)
        _hold(self)
        super().request(*args, **options)


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (urllib3's own)
        _hold(self)
        super().request(*args, **options)


def _connected(connection: HTTPConnection) -> socket.socket:
    """A socket for the connection, made and held within the limit; with urllib3's own errors."""
    limit = _limit.get()
    # With the dot at its end, if it has one: it keeps the resolver from trying other domains.
    host = connection._dns_host.strip("[]")  # noqa: SLF001 (urllib3's own code asks for the same)
    try:
        made = limit.connect(host, connection.port)
    except UnicodeError:
        raise LocationParseError(host) from None
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, "no connection in time") from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error
    made.settimeout(connection.timeout)  # it had that of the address
    try:
        limit.hold(made.fileno())
    except OSError:  # out of files
        made.close()
        raise
    return made


def _hold(connection: HTTPConnection) -> None:
    """Hold a connection that was kept from an earlier request."""
    if connection.sock is not None:
        _limit.get().hold(connection.sock.fileno())


class _Connections(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsConnections(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def proxy_of(host: str) -> str | None:
    """The proxy that the environment names for the host; None for the direct way.

    Raises:
        SettingsError: it is none that can be used.
    """
    url = urlsplit(host)
    proxy = getproxies().get(url.scheme)
    if not proxy or proxy_bypass(url.netloc):
        return None
    if "://" not in proxy:  # as curl takes it, too
        proxy = f"http://{proxy}"
    try:
        named = urlsplit(proxy)
        usable = named.scheme in {"http", "https"} and named.hostname and named.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError([f"{url.scheme}_proxy: should be like http://proxy.example.com:3128"])
    return proxy


def _pool(host: str) -> urllib3.PoolManager:
    pool = _manager(proxy_of(host))
    pool.pool_classes_by_scheme = {"http": _Connections, "https": _TlsConnections}
    return pool


def _manager(proxy: str | None) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(maxsize=_CONNECTIONS)
    named = urlsplit(proxy)
    login = b":".join(unquote_to_bytes(part or "") for part in (named.username, named.password))
    authorization = f"Basic {b64encode(login).decode()}"
    headers = {"proxy-authorization": authorization} if named.username else None
    return urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS, proxy_headers=headers)


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    """The body as far as it comes, and no further than is of interest."""
    said = b""
    with suppress(HTTPError, OSError):
        while len(said) < _MOST_READ:
            chunk = response.read1(_MOST_READ)
            if not chunk:
                break
            said += chunk
    response.close()  # the connection is kept if all was read
    return said[:_MOST_READ]


def _told(error: HTTPError) -> str:
    """The kind of the error and what the system says of it.

    Its own text may hold the URL, and that of a proxy the credentials.
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


def is_loopback(host: str) -> bool:
    """Return whether the host, a name or an address, can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

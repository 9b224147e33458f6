"""Binds urllib3's connections and pools to the deadline of the request that uses them."""

import socket
from contextvars import ContextVar
from typing import Any, NamedTuple

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)

from relay.destinations.http.deadline import Deadline
from relay.destinations.http.hosts import Lookups
from relay.destinations.http.proxies import proxy_for, proxy_headers


class Bounds(NamedTuple):
    """The deadline and the look-ups that the connections of one request use."""

    deadline: Deadline
    lookups: Lookups


bounds: ContextVar[Bounds] = ContextVar("bounds")
"""The bounds of the request that this thread sends: urllib3 lets no caller pass them down."""


def open_pool(host: str, connections: int) -> urllib3.PoolManager:
    """Return a pool of connections to a base URL, by a proxy if the environment names one.

    It keeps so many of them open when they are idle.

    Raises:
        SettingsError: the environment names a proxy that cannot be used.
    """
    proxy = proxy_for(host)
    pool = (
        urllib3.PoolManager(maxsize=connections)
        if proxy is None
        else urllib3.ProxyManager(proxy, maxsize=connections, proxy_headers=proxy_headers(proxy))
    )
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (urllib3's own)
        _bind_kept(self)
        super().request(*args, **options)


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _connected(self)

    def request(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (urllib3's own)
        _bind_kept(self)
        super().request(*args, **options)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


def _connected(connection: HTTPConnection) -> socket.socket:
    """Return a socket for the connection, bound to the deadline; raise urllib3's own errors."""
    # With the dot at its end, if it has one: it keeps the resolver from trying other domains.
    host = connection._dns_host.strip("[]")  # noqa: SLF001 (urllib3's own code does the same)
    try:
        connected = _connect(host, connection.port)
    except UnicodeError:
        raise LocationParseError(host) from None
    except socket.gaierror as error:
        raise NameResolutionError(host, connection, error) from error
    except TimeoutError as error:
        raise ConnectTimeoutError(connection, "no connection in time") from error
    except OSError as error:
        raise NewConnectionError(connection, str(error)) from error
    connected.settimeout(connection.timeout)  # in place of its address's share of the time
    try:
        bounds.get().deadline.bind(connected.fileno())
    except OSError:  # too many open files
        connected.close()
        raise
    return connected


def _connect(host: str, port: int) -> socket.socket:
    """Connect to the first of the host's addresses that answers, each within its share of the time.

    Raises:
        OSError: no address answers.
    """
    deadline, lookups = bounds.get()
    addresses = lookups.addresses(host, port, deadline.left())
    failure: OSError = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        try:
            connection = socket.socket(family, kind, protocol)
        except OSError as error:  # this machine has no IPv6
            failure = error
            continue
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(deadline.left() / (len(addresses) - number))
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _bind_kept(connection: HTTPConnection) -> None:
    """Bind a connection that was kept from an earlier request."""
    if connection.sock is not None:
        bounds.get().deadline.bind(connection.sock.fileno())

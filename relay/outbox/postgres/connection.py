"""Turns the outbox's URL into connection parameters, and judges failed and exposed connections."""

import difflib
import re
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from relay.errors import OutboxUnusableError

_CONNECT_SECONDS: Final = 3
_MOST_CONNECT_SECONDS: Final = 10  # whatever the URL says
_ALIKE: Final = 0.85

# Errors that waiting does not cure, in the words of libpq, the server and PgBouncer. A refused
# connection has no SQLSTATE. In another language they are not recognised, and relay waits.
_HOPELESS: Final = re.compile(
    r"authentication failed|does not exist|no such (database|user)|not permitted to log in"
    r"|permission denied for database|pg_hba|no password supplied|certificate|support SSL"
    r"|invalid [a-z ]*(value|number)"
)
_QUOTED: Final = re.compile(r'"[^"]*"')  # a host or a role may be named like an error


def connection_parameters(url: str) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters to connect with; they limit every wait.

    Platforms put parameters of other libraries into the URL, such as `pgbouncer=true`. libpq does
    not know them, so they are left out.

    Returns:
        The parameters, and the names of those that were left out.

    Raises:
        OutboxUnusableError: the URL cannot be read, or a parameter is most likely mistyped.
    """
    address, _, query = url.partition("?")
    pairs = [pair for pair in query.split("&") if pair]
    ours = [pair for pair in pairs if _is_libpqs(pair)]
    ignored = sorted({_name(pair) for pair in pairs if not _is_libpqs(pair)})
    for name in ignored:
        if close := difflib.get_close_matches(name.lower(), _libpqs_names(), n=1, cutoff=_ALIKE):
            raise OutboxUnusableError(f"PostgreSQL: its URL has {name}= in it; {close[0]}=?")
    try:
        urlsplit(url)
        given = conninfo_to_dict(address + ("?" + "&".join(ours) if ours else ""))
    except (psycopg.ProgrammingError, ValueError):  # the text may hold the URL, with the password
        raise OutboxUnusableError("PostgreSQL: its URL cannot be read") from None
    defaults = {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
        "application_name": "relay",
    }
    # The server's own encoding may know fewer characters than the events hold.
    fixed = {"autocommit": True, "prepare_threshold": None, "client_encoding": "utf8"}
    timeout = {"connect_timeout": _connect_seconds(given.get("connect_timeout"))}
    return defaults | given | timeout | fixed, ignored


def _connect_seconds(given: str | int | None) -> int:
    try:
        seconds = int(given or 0)
    except ValueError:
        seconds = 0
    return min(seconds, _MOST_CONNECT_SECONDS) if seconds > 0 else _CONNECT_SECONDS


def _name(pair: str) -> str:
    return unquote(pair.partition("=")[0])


def _is_libpqs(pair: str) -> bool:
    # "ssl=true" is JDBC's, which libpq reads, too, but no other value of it.
    return _name(pair) in _libpqs_names() or pair == "ssl=true"


def _libpqs_names() -> set[str]:
    return {option.keyword.decode() for option in Conninfo.get_defaults()}


def is_hopeless(error: psycopg.OperationalError) -> bool:
    """Return whether each host that was tried failed for a reason that does not pass by itself."""
    text = _QUOTED.sub("", str(error))
    attempts = [line for line in text.splitlines() if line.startswith("- ")] or [text]
    return all(_HOPELESS.search(attempt) for attempt in attempts)


def is_exposed(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the connection goes to another machine without encryption."""
    if connection.pgconn.ssl_in_use or connection.info.host.startswith("/"):
        return False
    address = connection.info.hostaddr
    return bool(address) and not ip_address(address.partition("%")[0]).is_loopback

"""Checks the URLs of destinations' APIs."""

import re
from typing import Final
from urllib.parse import urlsplit

from relay.destinations.http import is_loopback

_HOST_NAME: Final = re.compile(r"[\w.:-]+")  # colons in an IPv6 address


def base_url(value: str, *, example: str, added: str) -> str:
    """Return a base URL without the slash at its end.

    Args:
        value: the URL that is configured.
        example: a good one.
        added: the path that relay adds, with which the URL must not end.

    Raises:
        ValueError: it cannot be used; the text does not repeat it.
    """
    try:
        url = urlsplit(value)
        impossible = url.port == 0 or not _HOST_NAME.fullmatch(url.hostname or "")
    except ValueError:  # its text repeats the value, which may hold a password
        impossible = True
    if impossible or url.scheme not in {"http", "https"} or set(value) & set("?#"):
        raise ValueError(f"a base URL is needed, like {example}")
    if "@" in url.netloc:
        raise ValueError("no user name or password can be given in it")
    if url.path.rstrip("/").endswith(added):
        raise ValueError(f"leave out {added}: relay adds it itself")
    return value.rstrip("/")


def goes_in_the_clear(url: str) -> bool:
    """Return whether what is sent there can be read on its way to another machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")

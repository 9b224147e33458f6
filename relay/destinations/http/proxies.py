"""Finds the forward proxy that the environment names, by `http_proxy` and its like as curl does."""

from base64 import b64encode
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import getproxies, proxy_bypass

from relay.errors import SettingsError


def proxy_for(host: str) -> str | None:
    """Return the URL of the proxy on the way to a base URL; None to connect directly.

    Raises:
        SettingsError: the environment names a proxy that cannot be used.
    """
    url = urlsplit(host)
    proxy = getproxies().get(url.scheme)
    if not proxy or proxy_bypass(url.netloc):
        return None
    if "://" not in proxy:  # curl accepts this, too
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SettingsError([f"{url.scheme}_proxy: should be like http://proxy.example.com:3128"])
    return proxy


def proxy_headers(proxy: str) -> dict[str, str] | None:
    """Return the header with the user name and password in the proxy's URL; None without them."""
    url = urlsplit(proxy)
    if not url.username:
        return None
    login = b":".join(unquote_to_bytes(part or "") for part in (url.username, url.password))
    return {"proxy-authorization": f"Basic {b64encode(login).decode()}"}

"""Decides which web pages may call relay from a browser: CORS, of the Fetch standard."""

from collections.abc import Collection
from typing import Final

from relay.receiver.buffered import Headers

# `*` in place of the names would not cover Authorization.
_PREFLIGHT: Final = (
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", b"authorization, content-type, x-retry-count"),
    (b"access-control-max-age", b"7200"),  # Chrome keeps it no longer
)
# analytics.js waits for as long as Retry-After says, if it can read it.
_EXPOSED: Final = (b"access-control-expose-headers", b"retry-after")
_VARY: Final = (b"vary", b"origin")


class Cors:
    """The origins of the pages that may call relay.

    It is browsers that keep other pages out. A program can send any `Origin`, or none.

    Args:
        origins: like `https://app.example.com`.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def allows(self, origin: bytes) -> bool:
        """Return whether a request with this `Origin`, or with none, may be served."""
        return not origin or origin in self._origins

    def headers(self, origin: bytes) -> Headers:
        """Return the headers for any answer to a request with this `Origin`."""
        if origin in self._origins:
            return ((b"access-control-allow-origin", origin), _EXPOSED, _VARY)
        return (_VARY,) if self._origins else ()

    def preflight_headers(self, origin: bytes) -> Headers:
        """Return the headers for the answer to a preflight request that is allowed."""
        return (*self.headers(origin), *(_PREFLIGHT if origin else ()))

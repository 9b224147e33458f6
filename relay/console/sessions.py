"""Keeps the link that opens the console once, and the sessions that begin so; in memory only."""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from msgspec import Struct

MAX_SESSIONS: Final = 16
"""When there are more, the least recently used one ends."""
IDLE_SECONDS: Final = 12 * 3_600
"""A session ends when it has not been used for this long."""
MAX_SECONDS: Final = 7 * 86_400
"""A session ends after this time even if it is used."""

_TOKEN_BYTES: Final = 32  # 43 characters; console.js knows a link by this length


class _Session(Struct):
    began_at: float
    used_at: float


class Sessions:
    """The newest link, and the sessions under way.

    Tokens are looked up by their digests, so the time taken does not depend on how much of a guess
    is right.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._link: bytes | None = None
        self._sessions: dict[bytes, _Session] = {}

    def new_link(self) -> str:
        """Return the token of a new link; the link before it no longer works."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._link = _digest(token)
        return token

    def begin(self, link: str) -> str | None:
        """Use up the link and return a new session's token; None if the link is not the newest."""
        if _digest(link) != self._link:
            return None
        self._link = None
        self._end_old()
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda each: self._sessions[each].used_at)]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock()
        self._sessions[_digest(token)] = _Session(now, now)
        return token

    def is_under_way(self, token: str) -> bool:
        """Return whether the token belongs to a session; if so, note that the session is used."""
        self._end_old()
        session = self._sessions.get(_digest(token))
        if session is None:
            return False
        session.used_at = self._clock()
        return True

    def end(self, token: str) -> None:
        """End the session with the token, if there is one."""
        self._sessions.pop(_digest(token), None)

    def _end_old(self) -> None:
        now = self._clock()
        self._sessions = {
            digest: session
            for digest, session in self._sessions.items()
            if now - session.used_at < IDLE_SECONDS and now - session.began_at < MAX_SECONDS
        }


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="replace")).digest()

"""Links that are good for one sign-in, and the sessions that come from them. All in memory."""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Final

from msgspec import Struct

MAX_SESSIONS: Final = 16
"""Beyond this, a new session ends the one that has not been used for the longest time."""
IDLE_SECONDS: Final = 12 * 3_600
"""A session ends when it has not been used for so long."""
LONGEST_SECONDS: Final = 7 * 86_400
"""A session ends after this time in any case."""

_TOKEN_BYTES: Final = 32  # 43 characters, by which console.js tells a link from other fragments


class _Session(Struct):
    began_at: float
    used_at: float


class Sessions:
    """Who has signed in.

    Tokens are kept as digests and found by them, so that no time taken tells how much of a guess
    is right.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._link: bytes | None = None
        self._sessions: dict[bytes, _Session] = {}

    def new_link(self) -> str:
        """The token of a new link; it replaces the link before it."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._link = _digest(token)
        return token

    def begin(self, link: str) -> str | None:
        """Use up the link; the token of a new session, or None if it is not the newest link."""
        if _digest(link) != self._link:
            return None
        self._link = None
        self._end_old()
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda one: self._sessions[one].used_at)]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        now = self._clock()
        self._sessions[_digest(token)] = _Session(now, now)
        return token

    def is_under_way(self, token: str) -> bool:
        """Whether the token is that of a session; its use is noted."""
        self._end_old()
        session = self._sessions.get(_digest(token))
        if session is None:
            return False
        session.used_at = self._clock()
        return True

    def end(self, token: str) -> None:
        """End the session, if it is one."""
        self._sessions.pop(_digest(token), None)

    def _end_old(self) -> None:
        now = self._clock()
        self._sessions = {
            digest: session
            for digest, session in self._sessions.items()
            if now - session.used_at < IDLE_SECONDS and now - session.began_at < LONGEST_SECONDS
        }


def _digest(token: str) -> bytes:
    return sha256(token.encode(errors="replace")).digest()

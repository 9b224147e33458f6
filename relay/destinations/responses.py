"""Reads responses beyond their status: HTML pages, denials, times to wait, words to quote."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from typing import Any, Final

from pydantic_core import from_json

from relay.destinations.http import Response

MAX_RETRY_AFTER: Final = timedelta(hours=1)
MAX_QUOTED: Final = 300
"""Most characters of a response that an error or a dead letter repeats."""

_SECONDS: Final = re.compile(r"\d{1,18}", re.ASCII)
_FAILURES: Final = frozenset(
    {"denied", "error", "fail", "failed", "failure", "invalid", "rejected"}
)
_NAMES_OF_A_STATUS: Final = frozenset({"code", "message", "status", "statuscode", "status_code"})
_NO_ERROR: Final = frozenset({"", "no error", "no errors", "ok", "success"})
_REFUSAL: Final = "|".join(
    re.escape(phrase)
    for status, phrase in responses.items()
    if status >= HTTPStatus.BAD_REQUEST and phrase
)
_REFUSALS: Final = re.compile(rf"(?:[45]\d\d\s+)?(?:{_REFUSAL})[.!]?", re.IGNORECASE)
_ERROR_STATUS: Final = re.compile(r"[45]\d\d\b", re.ASCII)
_JSON: Final = frozenset({"true", "false", "null"})
_TOKEN: Final = re.compile(r"""[^\s{}\[\]",:;]+""")
_PLAIN: Final = re.compile(r"([A-Za-z]{1,20})[.!?]?")
_WORD: Final = re.compile(rb"[a-z]+")
_BREAK: Final = re.compile(r"\s+")


def status_line(response: Response) -> str:
    """Return the status and its phrase."""
    return f"{response.status} {responses.get(response.status, '')}".rstrip()


def is_page(response: Response, text: str) -> bool:
    """Return whether the response is HTML for people, as captive portals and gateways send."""
    if text.lstrip("\ufeff \t\r\n").startswith("<"):
        return True
    return bool(text) and response.headers.get("Content-Type", "").lower().startswith("text/html")


def denies(text: str) -> bool:
    """Return whether the body of a 2xx reports a failure, in words or in (truncated) JSON."""
    return any(
        any(map(_is_failure, document if isinstance(document, list) else [document]))
        for document in _documents(text.lstrip("\ufeff"))
    )


def _documents(text: str) -> list[Any]:
    """Return the JSON documents in the text: one, one per line or a cut-off one; else the text."""
    with suppress(ValueError):
        return [from_json(text)]
    with suppress(ValueError):
        return [from_json(line) for line in text.splitlines() if line.strip()]
    with suppress(ValueError):
        if text.lstrip().startswith(("{", "[", '"')):
            return [from_json(text, allow_partial="trailing-strings")]
    return [text]


def _is_failure(document: Any) -> bool:  # noqa: ANN401 (any JSON)
    if isinstance(document, dict):
        return any(_is_failing(name.lower(), value) for name, value in document.items())
    if isinstance(document, str):
        text = document.strip()
        return text.lower().startswith(("error", "fail")) or bool(_REFUSALS.fullmatch(text))
    return document is False


def _is_failing(name: str, value: Any) -> bool:  # noqa: ANN401 (any JSON)
    text = str(value).strip()
    if name in {"success", "ok"}:
        return _is_no(value) or text.lower() in _FAILURES
    if name in _NAMES_OF_A_STATUS:
        return (
            value is False
            or text.lower() in _FAILURES
            or bool(_ERROR_STATUS.match(text) or _REFUSALS.fullmatch(text))
        )
    return name.startswith("error") and not (_is_no(value) or text.lower() in _NO_ERROR)


def _is_no(value: Any) -> bool:  # noqa: ANN401 (any JSON)
    return not value or str(value).strip().lower() in {"0", "false", "no", "none", "null"}


def quoted(text: str, sent: bytes) -> str:
    """Return the text for a log; mask each word that is not plain or stood in the request."""
    known = {word.decode() for word in _WORD.findall(sent.lower())} - _JSON

    def masked(found: re.Match[str]) -> str:
        plain = _PLAIN.fullmatch(found[0])
        return found[0] if plain and plain[1].lower() not in known else "***"

    return _BREAK.sub(" ", _TOKEN.sub(masked, text))[:MAX_QUOTED]


def retry_after(header: str | None, *, now: datetime | None = None) -> timedelta | None:
    """Return how long a `Retry-After` header (seconds or a date) asks to wait, an hour at most.

    None if the header is missing or unreadable, or the time is not in the future.
    """
    value = (header or "").strip()
    if _SECONDS.fullmatch(value):
        wait = timedelta(seconds=min(int(value), MAX_RETRY_AFTER.total_seconds()))
    else:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        at = at.replace(tzinfo=at.tzinfo or UTC)
        wait = at - (now or datetime.now(UTC))
    return min(wait, MAX_RETRY_AFTER) if wait > timedelta(0) else None

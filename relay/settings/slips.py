"""Finds slips: faults of a value that was pasted into the environment.

The sentence about a slip never repeats the value.
"""

import re
from collections.abc import Iterable
from typing import Final

# Quotes on keyboards, quotes that editors replace them by, and quotes of other languages.
_QUOTES: Final = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\uff02"

QUOTED: Final = (
    "the value has quotes around it, which `docker --env-file` and some panels keep: leave them out"
)
BROKEN: Final = (
    "the value contains a blank or an invisible character: probably more was pasted than the value,"
    " or `docker --env-file` kept the comment after it"
)
UNEXPANDED: Final = (
    "the value is the name of a variable or a command that no shell has replaced, because"
    " `docker --env-file` and the like run no shell"
)
NAMED: Final = "the value begins with the name of a variable: leave it out"
PLACEHOLDER: Final = "the value is a placeholder: replace it with your own"

_NAMED: Final = re.compile(r"(SEGMENT|RELAY|VERO|DATABASE)_[A-Z_]+=.*")
_UNEXPANDED: Final = re.compile(r"\$\(.*\)?|\$\{.*\}?|\$[A-Z_]+|%[A-Z_]+%|\{\{.*\}\}")
_UNEXPANDED_IN_URL: Final = re.compile(r"\$[({]")
_PLACEHOLDER: Final = re.compile(
    r"(.)\1{2,}|<.*>|\[.*\]"
    r"|.*(\u2026|\.{3})|\*{3}.*|redacted|masked|hidden"  # copied from where only a part was shown
    r"|(change|replace)[\W_]*(me|this|it|with)([\W_\d].*)?"
    r"|(your|insert|enter|paste|put)[\W_].*(key|secret|token|password|value|here)([\W_].*)?"
    r"|(segment[\W_])?write[\W_]?key|secret|password|token|placeholder|example|todo|tbd|fixme|dummy"
    r"|none|null|nil|undefined",
    re.IGNORECASE,
)
_PLACEHOLDER_IN_URL: Final = re.compile(r"[<>\u2026]|\.\.\.|//user:password@host\b")


def quoted(value: str) -> str | None:
    """Return the fault of a value that begins or ends with a quote, like a value of a list."""
    return QUOTED if value[:1] in _QUOTES or value[-1:] in _QUOTES else None


def secret_slip(secrets: Iterable[str]) -> str | None:
    """Return the fault of the first secret that was pasted wrong; none has outer blanks."""
    for secret in filter(None, secrets):
        if fault := quoted(secret):
            return fault
        if _NAMED.fullmatch(secret):
            return NAMED
        if _UNEXPANDED.fullmatch(secret):
            return UNEXPANDED
        if _PLACEHOLDER.fullmatch(secret):
            return PLACEHOLDER
        if _is_broken(secret):
            return BROKEN
    return None


def url_slip(url: str) -> str | None:
    """Return the fault of a URL that was pasted wrong."""
    if fault := quoted(url):
        return fault
    if _NAMED.fullmatch(url):
        return NAMED
    if url.startswith("sqlite:"):  # a path may hold anything
        return None
    if _UNEXPANDED_IN_URL.search(url):
        return UNEXPANDED
    if _PLACEHOLDER_IN_URL.search(url):
        return PLACEHOLDER
    return BROKEN if _is_broken(url) else None


def _is_broken(value: str) -> bool:
    return any(character.isspace() or not character.isprintable() for character in value)

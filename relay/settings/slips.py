"""What goes wrong with a value on its way into the environment, told without repeating it."""

import re
from collections.abc import Iterable
from typing import Final

# As people type them, as editors make them, and as other languages have them.
_QUOTES: Final = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\uff02"

QUOTED: Final = (
    "quotes stand around it, which `docker --env-file` and some panels keep: leave them out"
)
BROKEN: Final = (
    "a blank or an invisible character stands in it: most likely more was pasted than the value,"
    " or `docker --env-file` has kept a comment behind it"
)
UNEXPANDED: Final = (
    "a variable or a command stands there in place of its value: no shell has looked at it, as none"
    " does with `docker --env-file`"
)
NAMED: Final = "the name of a variable stands in front of the value once more: leave it out"
PLACEHOLDER: Final = "a placeholder stands there: put your own in its place"

_NAMED: Final = re.compile(r"(SEGMENT|RELAY|DATABASE)_[A-Z_]+=.*")
_UNEXPANDED: Final = re.compile(r"\$\(.*\)?|\$\{.*\}?|\$[A-Z_]+|%[A-Z_]+%|\{\{.*\}\}")
_UNEXPANDED_IN_URL: Final = re.compile(r"\$[({]")
_PLACEHOLDER: Final = re.compile(
    r"(.)\1{2,}|<.*>|\[.*\]"
    r"|.*(\u2026|\.{3})|\*{3}.*|redacted|masked|hidden"  # cut off, or covered, where it was shown
    r"|(change|replace)[\W_]*(me|this|it|with)([\W_\d].*)?"
    r"|(your|insert|enter|paste|put)[\W_].*(key|secret|token|password|value|here)([\W_].*)?"
    r"|(segment[\W_])?write[\W_]?key|secret|password|token|placeholder|example|todo|tbd|fixme|dummy"
    r"|none|null|nil|undefined",
    re.IGNORECASE,
)
_PLACEHOLDER_IN_URL: Final = re.compile(r"[<>\u2026]|\.\.\.|//user:password@host\b")


def quoted(value: str) -> str | None:
    """What to tell of a value that is quoted, at either end: it may be one of a list."""
    return QUOTED if value[:1] in _QUOTES or value[-1:] in _QUOTES else None


def secret_slip(secrets: Iterable[str]) -> str | None:
    """What to tell of secrets that cannot be meant, without blanks around them."""
    for secret in filter(None, secrets):
        if said := quoted(secret):
            return said
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
    """What to tell of a URL that cannot be meant."""
    if said := quoted(url):
        return said
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

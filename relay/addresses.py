"""Email addresses in text: the patterns that find them, their mask and their digest.

A match begins only where a word begins. So the time to search a text grows with its length and not
with its square. Each kind of text has its own pattern, because what ends a word differs:

- a field that is an address and nothing else (`is_address`);
- a field that names a person, like `Ann <ann@example.com>` (`in_mailbox`): `=`, `&` and braces
  belong to the address, as mail servers allow them;
- a body in any format, like a query string or half of a JSON document (`in_body`): `=`, `&` and
  braces end an address, and a full stop after it does not belong to it;
- a text that must hold no address (`mask`): at signs may be escaped and names quoted, and masking
  too much is better than too little;
- a line of a log (`mask_line`): colons and parentheses end an address, so that the words around it
  stay readable.
"""

import re
from hashlib import sha256
from typing import Any, Final

MASK: Final = "***"

_ESCAPED_AT: Final = r"%(?:25)*40|\\u0040"
"""An at sign as URLs and JSON escape it."""

_ADDRESS: Final = re.compile(r"[^\s@]+@[^\s@]+")
_EMAIL: Final = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
_TOO_LONG: Final = 255  # characters, by Vero's documentation

# Pasting leaves characters without width.
_AROUND_MAILBOX: Final = r"\s<>\"',;:()\[\]\u200b-\u200d\u2060\ufeff"
_IN_MAILBOX: Final = re.compile(
    rf"(?<![^{_AROUND_MAILBOX}])[^{_AROUND_MAILBOX}]+@[^{_AROUND_MAILBOX}]+"
)

_AROUND_IN_BODY: Final = r"""\s<>",;:()\[\]{}=&\ufffd"""
_IN_BODY: Final = re.compile(rf"(?<![^{_AROUND_IN_BODY}])[^{_AROUND_IN_BODY}]+@[\w.-]+\w")
_AT_IN_BODY: Final = re.compile(_ESCAPED_AT, re.IGNORECASE)

# All that stands around an at sign; a quoted local part may hold blanks.
_MASKED: Final = re.compile(
    rf"""(?:(?<![^\s"<>,;])[^\s"<>,;]+|"[^"]{{1,100}}")(?:@|{_ESCAPED_AT})[^\s"<>,;]+""",
    re.IGNORECASE,
)
# An email id may look like an address, as Vero's do; nobody is called like this.
_MACHINE_MADE: Final = re.compile(r"(?=[^@]*\d)[\da-f.-]{20,}@[\w.-]+", re.IGNORECASE | re.ASCII)

_AROUND_IN_LINE: Final = r"\s@<>\"',;:()\[\]"
_IN_LINE: Final = re.compile(
    rf"(?<![^{_AROUND_IN_LINE}])[^{_AROUND_IN_LINE}]+@[^{_AROUND_IN_LINE}]+"
)


def is_address(text: str) -> bool:
    """Return whether the text is an address and nothing else."""
    return bool(_ADDRESS.fullmatch(text))


def is_email(text: str) -> bool:
    """Return whether the text is an address with a dot in its domain, as Vero requires it."""
    return len(text) < _TOO_LONG and bool(_EMAIL.fullmatch(text))


def in_mailbox(text: str) -> list[str]:
    """Return the addresses in a field that names a person, like `Ann <ann@example.com>`."""
    return _IN_MAILBOX.findall(text)


def in_body(text: str) -> list[str]:
    """Return the addresses in a body in any format, with their at signs unescaped."""
    return [found.strip("'") for found in _IN_BODY.findall(_AT_IN_BODY.sub("@", text))]


def mask(text: str) -> str:
    """Return the text with every address replaced by `MASK`."""
    if "@" not in text and "40" not in text:
        return text
    return _MASKED.sub(lambda m: m[0] if _MACHINE_MADE.fullmatch(m[0]) else MASK, text)


def masked(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Return the JSON document with every address in its texts and names replaced by `MASK`."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(key): masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return value


def mask_line(text: str) -> str:
    """Return the line of a log with every address replaced by `MASK`."""
    return _IN_LINE.sub(MASK, text) if "@" in text else text


def digest(address: str) -> str:
    """Return the hex SHA-256 of the address, which is put into lower case first."""
    return sha256(address.lower().encode()).hexdigest()


def matches(wanted: str, address: str) -> bool:
    """Return whether `wanted` is the address or its digest; upper or lower case does not matter."""
    return wanted.lower() in {address.lower(), digest(address)}

"""Email addresses in texts: masked, or replaced by their digest."""

import re
from hashlib import sha256
from typing import Any, Final

# An at sign, as it is or as URLs and JSON escape it, and all that stands around it. A match begins
# where a word or a quotation does and nowhere else, so the time taken grows with the text's length
# and not with its square.
_ADDRESS: Final = re.compile(
    r"""(?:(?<![^\s"<>,;])[^\s"<>,;]+|"[^"]{1,100}")"""
    r"""(?:@|%(?:25)*40|\\u0040)[^\s"<>,;]+""",
    re.IGNORECASE,
)
# An email id may look like an address, as Vero's do; nobody is called like this.
_MACHINE_MADE: Final = re.compile(r"(?=[^@]*\d)[\da-f.-]{20,}@[\w.-]+", re.IGNORECASE | re.ASCII)
_MASK: Final = "***"


def mask(text: str) -> str:
    """The text without any address in it; raw bodies hold them in more forms than logs do."""
    if "@" not in text and "40" not in text:
        return text
    return _ADDRESS.sub(lambda m: m[0] if _MACHINE_MADE.fullmatch(m[0]) else _MASK, text)


def masked(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """The document without any address in it."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(key): masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return value


def hashed(address: str) -> str:
    """The hex SHA-256 of the address in lower case: one for each way to capitalise it."""
    return sha256(address.lower().encode()).hexdigest()

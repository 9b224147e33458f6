"""Checks the signatures of Segment's Webhooks destinations.

`X-Signature` is the hex HMAC-SHA1 of the body. If the body is an array, which Segment sends where a
destination batches, the signature covers its first element only (action-destinations,
webhook/index.ts). It covers Segment's own text, so that the first element is cut out of the body as
it came: written by another library, `1e-7` would become `1e-07`.
"""

import hmac
import re
from collections.abc import Sequence
from enum import Enum
from typing import Final

from pydantic import SecretStr

from relay.errors import UnreadableError
from relay.sources.segment.nesting import elements_of

SIGNATURE: Final = re.compile(rb"[0-9a-f]{40}")

_BLANKS: Final = b" \t\r\n"


class Coverage(Enum):
    """How much of a body the credentials of its request vouch for."""

    NOTHING = 0
    FIRST = 1
    """The first call of an array."""
    ALL = 2


class Signatures:
    """A check of signatures with the configured secrets, in constant time."""

    def __init__(self, secrets: Sequence[SecretStr]) -> None:
        self._keys = [secret.get_secret_value().encode() for secret in secrets]

    def coverage(self, body: bytes, signature: bytes) -> Coverage:
        """Return what of the body the signature covers."""
        is_array = body.lstrip(_BLANKS).startswith(b"[")
        signed, others = _first_element(body) if is_array else (body, 0)
        if signed is None or not self._accepts(signed, signature):
            return Coverage.NOTHING
        return Coverage.FIRST if others else Coverage.ALL

    def _accepts(self, signed: bytes, signature: bytes) -> bool:
        # Every key is tried, so that the time taken does not depend on which one matches.
        matches = [
            hmac.compare_digest(hmac.new(key, signed, "sha1").hexdigest().encode(), signature)
            for key in self._keys
        ]
        return any(matches)


def _first_element(body: bytes) -> tuple[bytes | None, int]:
    """Return the text of an array's first element, and how many others there are.

    The text is None if there is no element.
    """
    try:
        elements = elements_of(body)
    except UnreadableError:
        return None, 0
    if not elements:
        return None, 0
    # Its text is taken from the body and not from the decoder, which mends halves of surrogate
    # pairs. Mended text is as long as it was.
    text = body.lstrip(_BLANKS)[1:].lstrip(_BLANKS)
    return text[: len(bytes(elements[0]))], len(elements) - 1

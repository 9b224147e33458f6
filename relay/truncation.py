"""Truncates bodies that are too large to keep: stores their beginning, with a mark at its end."""

import re
from typing import Final

from relay.events import DeadReason, Unusable

KEPT_BYTES: Final = 2**16
"""The most bytes of a body that are kept."""

_END: Final = b" bytes came]"
_MARK: Final = re.compile(rb"\n\[cut off by relay after (\d{1,9}) of (\d{1,9}) bytes came\]\Z")


def cut(body: bytes | bytearray, size: int) -> bytes:
    """Return the beginning of the body, at most `KEPT_BYTES`, then a mark that says it is cut off.

    The mark makes it invalid JSON, so it is never taken for a whole body.

    Args:
        body: the beginning of the received body, or all of it.
        size: bytes of the received body.
    """
    kept = bytes(body[:KEPT_BYTES])
    return kept + b"\n[cut off by relay after %d of %d bytes came]" % (len(kept), size)


def fault_of(body: bytes) -> Unusable | None:
    """Return why a truncated body cannot become an event; None if the body is whole."""
    mark = _MARK.search(body, max(len(body) - 80, 0)) if body.endswith(_END) else None
    if mark is None:
        return None
    kept, size = map(int, mark.groups())
    return Unusable(
        DeadReason.OVERSIZED, f"the webhook has {size} bytes, of which the first {kept} are kept"
    )

"""Bodies that are too large to be kept whole."""

import re
from typing import Final

from relay.events import DeadReason, Unusable

KEPT_BYTES: Final = 2**16

_END: Final = b" bytes came]"
_MARK: Final = re.compile(rb"\n\[cut off by relay after (\d{1,9}) of (\d{1,9}) bytes came\]\Z")


def cut(body: bytes | bytearray, size: int) -> bytes:
    """The beginning of the body, with a mark at its end that it is cut off.

    The mark makes it no JSON: what is cut off might else be taken for the whole.

    Args:
        body: the beginning of what came.
        size: of all that came.
    """
    kept = bytes(body[:KEPT_BYTES])
    return kept + b"\n[cut off by relay after %d of %d bytes came]" % (len(kept), size)


def fault_of(body: bytes) -> Unusable | None:
    """Why the stored body cannot become an event, where it is cut off."""
    mark = _MARK.search(body, max(len(body) - 80, 0)) if body.endswith(_END) else None
    if mark is None:
        return None
    kept, came = map(int, mark.groups())
    return Unusable(
        DeadReason.OVERSIZED, f"the webhook has {came} bytes, of which the first {kept} are kept"
    )

"""Makes the ids by which copies of an event are recognised."""

from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256
from uuid import uuid4

import msgspec


def fingerprint(credential: str) -> bytes:
    """Return what tells one account at a destination from another, without its credential."""
    return sha256(b"relay write key " + credential.encode()).digest()


def message_id(
    account: bytes,
    source: str,
    dedupe_key: Iterable[str | None] | None,
    reported_at: datetime | None,
) -> str:
    """Return an id as `Destination.message_id` does.

    It begins with the time. So ids of one day are neighbours in a sorted index, and storing one
    touches pages that are already in memory.

    Args:
        account: fingerprint of the account's credential.
        source: name of the source.
        dedupe_key: identifies the event; None if nothing does.
        reported_at: when the event happened by the source's report.
    """
    if dedupe_key is None:
        return f"{source}-{uuid4().hex}"
    seconds = 0 if reported_at is None else int(reported_at.timestamp())
    hashed = sha256(account + msgspec.json.encode([*dedupe_key])).hexdigest()
    return f"{source}-{seconds:08x}{hashed[:24]}"

"""Cuts messages into batches that a destination accepts."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from relay.destinations.protocol import Limits

_Item = TypeVar("_Item")


def batches(
    encoded: Iterable[tuple[_Item, bytes]], limits: Limits
) -> Iterator[list[tuple[_Item, bytes]]]:
    """Yield the items, each with its encoded message, in batches within the limits, in order."""
    batch: list[tuple[_Item, bytes]] = []
    size = 0
    for item, message in encoded:
        if batch and (
            len(batch) == limits.batch_messages or size + len(message) > limits.batch_bytes
        ):
            yield batch
            batch, size = [], 0
        batch.append((item, message))
        size += len(message) + 1  # the comma
    if batch:
        yield batch

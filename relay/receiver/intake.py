"""Accepts the events of one request and stores them together."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from relay.errors import OutboxError
from relay.events import Ignored
from relay.outbox.entries import Arrival
from relay.receiver.committer import Committer, StoreResults

_LONGEST_SECONDS: Final = 0.005
"""How long events are accepted at a time, while other requests wait."""

Accepted = Arrival | Ignored
"""What a route makes of one event."""


async def accept_all(
    accept: Callable[[bytes], Accepted], bodies: Iterable[bytes]
) -> list[Accepted]:
    """Accept each body; serve other requests in between, because there may be thousands."""
    clock = asyncio.get_running_loop().time
    accepted = []
    began_at = clock()
    for body in bodies:
        if clock() - began_at > _LONGEST_SECONDS:
            await asyncio.sleep(0)
            began_at = clock()
        accepted.append(accept(body))
    return accepted


async def store_all(
    committer: Committer, accepted: Sequence[Accepted]
) -> Sequence[bool | None] | OutboxError:
    """Store the arrivals in their order and in one transaction.

    Return for each whether it was new, and None for what is ignored; or why nothing is stored.
    """
    arrivals = [each for each in accepted if isinstance(each, Arrival)]
    results = await _stored(committer, arrivals) if arrivals else ()
    if isinstance(results, OutboxError):
        return results
    new = iter(results)
    return [next(new) if isinstance(each, Arrival) else None for each in accepted]


def _stored(committer: Committer, arrivals: Sequence[Arrival]) -> Awaitable[StoreResults]:
    stored: asyncio.Future[StoreResults] = asyncio.get_running_loop().create_future()
    committer.store_all(arrivals, partial(_resolve, stored))
    return stored


def _resolve(stored: "asyncio.Future[StoreResults]", results: StoreResults) -> None:
    if not stored.done():  # its request may have been cancelled
        stored.set_result(results)

"""The outbox: one durable table that is queue, dedupe index, dead letters and audit trail.

It keeps the raw bodies of webhooks, so that a corrected mapping can render them again.
"""

from importlib import import_module
from typing import Final

from relay.errors import OutboxUnusableError
from relay.outbox.protocol import Outbox

_STORES: Final = {"sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres"}


def open_outbox(url: str, *, allow_ephemeral: bool = False, create: bool = False) -> Outbox:
    """Open the outbox at the URL, and migrate it to this version if needed; try once.

    Args:
        url: the store's kind and place.
        allow_ephemeral: allow a disk that a restart of the machine wipes.
        create: create the outbox if there is none. By default a missing outbox is an error: most
            likely its URL is wrong, or it was lost.

    Raises:
        OutboxMissingError: there is no outbox, and none is to be created.
        OutboxError: it cannot be opened now, but may be later: its server is away.
        OutboxUnusableError: it cannot be opened until the operator acts.
    """
    scheme = url.partition(":")[0]
    if scheme not in _STORES:
        raise OutboxUnusableError(
            f"the URL has an unknown scheme, {scheme!r}; known: {', '.join(_STORES)}"
        )
    outbox: Outbox = import_module(f"{__name__}.{_STORES[scheme]}.store").open_url(
        url, allow_ephemeral=allow_ephemeral, create=create
    )
    return outbox

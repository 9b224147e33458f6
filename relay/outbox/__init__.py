"""The outbox: queue, dedupe index, dead letters and audit trail in one table.

It keeps the raw body, so that a corrected mapping can be run over the past.
"""

from importlib import import_module
from typing import Final

from relay.errors import OutboxUnusableError
from relay.outbox.protocol import Outbox

_STORES: Final = {"sqlite": "sqlite", "postgresql": "postgres", "postgres": "postgres"}


def open_outbox(url: str, *, allow_ephemeral: bool = False, create: bool = False) -> Outbox:
    """Open the outbox at the URL, migrated forward as needed; try once.

    Args:
        url: the store's kind and place.
        allow_ephemeral: it may lie where a restart of the machine wipes it.
        create: make it if there is none. One that is missing is most likely named wrongly, or gone.

    Raises:
        OutboxMissingError: there is none, and it is not to be made.
        OutboxError: it cannot be opened now, and may be later: its server is away.
        OutboxUnusableError: it cannot be opened, and will not be before the operator has acted.
    """
    scheme = url.partition(":")[0]
    if scheme not in _STORES:
        raise OutboxUnusableError(
            f"no store goes by {scheme or 'an empty scheme'}:; known: {', '.join(_STORES)}"
        )
    outbox: Outbox = import_module(f"{__name__}.{_STORES[scheme]}.store").open_url(
        url, allow_ephemeral=allow_ephemeral, create=create
    )
    return outbox

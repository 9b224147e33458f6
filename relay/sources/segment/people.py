"""Finds the people that a call names beside its user, so that searches find the call for them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from relay.texts import as_id, as_object

_SEPARATORS: Final = re.compile(r"[\s_-]+")
# Names of events about a consent, whose `properties.id` is a person by Segment's documentation.
_CONSENT: Final = re.compile("unsubscribe|resubscribe", re.IGNORECASE)


def other_ids(document: Mapping[str, Any], *, previous_id: str | None) -> tuple[str, ...]:
    """Return the ids of people that a call names apart from its user, each once.

    What Vero would make of the call depends on settings, which may change. So every id that may be
    one of a person is among them.
    """
    found = (previous_id, *_consenting(document), *_tagged(document))
    return tuple(dict.fromkeys(filter(None, found)))


def _consenting(document: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield the person that the properties of an opt-out, or an opt-in, name."""
    event = as_id(document.get("event")) or as_id(document.get("name")) or ""
    if _CONSENT.search(_SEPARATORS.sub("", event)):
        yield as_id(as_object(document.get("properties")).get("id"))


def _tagged(document: Mapping[str, Any]) -> Iterator[str | None]:
    """Yield the person that the call's tags for Vero name."""
    for name, options in as_object(document.get("integrations")).items():
        if name.lower() == "vero":
            yield as_id(as_object(as_object(options).get("tags")).get("id"))

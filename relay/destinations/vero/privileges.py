"""Finds what in a call only a trusted sender may ask for."""

from collections.abc import Mapping
from typing import Final

from relay.destinations.vero.mapping import person
from relay.destinations.vero.plans import Plan, plan
from relay.destinations.vero.requests import RESUBSCRIBE, TAGS_EDIT, UNSUBSCRIBE, Request
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.events import Call, CallType

_CHANGES_OF_CONSENT: Final = {UNSUBSCRIBE: "unsubscribe", RESUBSCRIBE: "resubscribe"}
# Vero unsubscribes a person who gets this tag (help.getvero.com, how to unsubscribe a user).
_OPT_OUT_TAG: Final = "unsubscribed"


def privilege(call: Call, settings: VeroDestinationSettings) -> str | None:
    """Return the privilege that a call needs; None if it says only what its own user is and does.

    It is `alias`, `delete`, `unsubscribe`, `resubscribe` or, for a request that writes to another
    person, `another_id`.
    """
    if call.type in {CallType.ALIAS, CallType.DELETE}:
        return call.type.value
    planned = plan(call, settings)
    if not isinstance(planned, Plan):
        return None
    own = person(call, settings)
    own_ids = tuple(own.values()) if isinstance(own, Mapping) else ()
    found = (_privilege(request, own_ids) for request in planned.requests)
    return next(filter(None, found), None)


def _privilege(request: Request, own_ids: tuple[str, ...]) -> str | None:
    if request.path in _CHANGES_OF_CONSENT:
        return _CHANGES_OF_CONSENT[request.path]
    if request.path == TAGS_EDIT:
        tags = (*request.body.get("add", ()), *request.body.get("remove", ()))
        if any(tag.strip().lower() == _OPT_OUT_TAG for tag in tags):
            return "unsubscribe"
    return None if request.people == own_ids else "another_id"

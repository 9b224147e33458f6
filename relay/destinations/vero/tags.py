"""Maps the tags that a call has for Vero, in `integrations.Vero.tags`, to a request."""

from collections.abc import Mapping
from typing import Any, Final

from relay.destinations.vero.mapping import Who
from relay.destinations.vero.requests import TAGS_EDIT, Request
from relay.events import Call, CallType, DeadReason, Unusable
from relay.texts import as_id

_ACTIONS: Final = frozenset({"add", "remove"})
_SHAPE: Final = 'it should be like {"action": "add", "values": ["a tag"]}'


def tags_request(call: Call, who: Who | None) -> Request | Unusable | None:
    """Return the request for the call's tags; None if it has none, or nobody to put them on.

    Args:
        call: the call.
        who: the person that the tags are for unless they name another one; None if nobody is known.
    """
    tags = _tags(call)
    if tags is None or call.type is CallType.DELETE:
        return None
    fault = _fault(tags)
    if fault:
        return Unusable(DeadReason.BAD_TAGS, f"integrations.Vero.tags: {fault}; {_SHAPE}")
    named = as_id(tags.get("id"))
    to = {"id": named} if named else who
    if not tags["values"] or to is None:
        return None
    return Request("PUT", TAGS_EDIT, {**to, tags["action"]: tags["values"]})


def _tags(call: Call) -> Any:  # noqa: ANN401 (any JSON)
    """Return what the call has as tags; None if it has none. Names are found in any case."""
    for name, options in call.integrations.items():
        if name.lower() == "vero" and isinstance(options, Mapping):
            return options.get("tags")
    return None


def _fault(tags: Any) -> str | None:  # noqa: ANN401 (any JSON)
    if not isinstance(tags, Mapping):
        return "it is not an object"
    action, values, named = tags.get("action"), tags.get("values"), tags.get("id")
    if not isinstance(action, str) or action not in _ACTIONS:
        return "the action is neither add nor remove"
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        return "the values are not a list of texts"
    if not all(each.strip() for each in values):
        return "a value is blank"
    if type(named) not in {type(None), str, int, float}:
        return "the id is neither a text nor a number"
    return None

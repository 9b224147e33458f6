"""Maps a call, apart from its tags, to a request."""

import re
from collections.abc import Mapping
from typing import Any, Final

from relay.addresses import is_email
from relay.destinations.vero.requests import (
    DELETE,
    EVENTS_TRACK,
    REIDENTIFY,
    RESUBSCRIBE,
    UNSUBSCRIBE,
    USERS_EDIT,
    USERS_TRACK,
    Request,
)
from relay.destinations.vero.settings import VeroDestinationSettings
from relay.events import Call, CallType, DeadReason, Ignored, Unusable
from relay.texts import as_id, as_object

Who = Mapping[str, str]
"""A person as requests name one: `{"id": ...}`, or `{"email": ...}` without an id."""

_SEPARATORS: Final = re.compile(r"[\s_-]+")
_OPT_OUTS: Final = frozenset({"unsubscribe", "unsubscribed"})
# The rule of Segment's own destination, which also takes "Viewed Unsubscribe Page" for an opt-out.
_SEGMENTS_OPT_OUT: Final = re.compile("[Uu]nsubscribe")
# Not "Resubscribed", which may be about a plan: nobody gets emails again without consent.
_OPT_IN: Final = "Resubscribe"


def main_request(call: Call, settings: VeroDestinationSettings) -> Request | Ignored | Unusable:
    """Return the request for a call, apart from its tags."""
    if call.type is CallType.ALIAS:
        return _alias(call)
    if call.type is CallType.DELETE:
        return _deletion(call, settings)
    if call.type is CallType.TRACK:
        return _track(call, settings)
    if call.type is CallType.SCREEN and settings.screen == "ignore":
        return Ignored("screen", "VERO_SCREEN")
    who = person(call, settings)
    return _OF_A_PERSON[call.type](call, who) if isinstance(who, Mapping) else who


def person(call: Call, settings: VeroDestinationSettings) -> Who | Ignored | Unusable:
    """Return whom the call is about."""
    if call.user_id:
        return {"id": call.user_id}
    if call.email:
        return {"email": call.email}
    if call.anonymous_id is None:
        return Unusable(DeadReason.NO_RECIPIENT, "no user id, no address and no anonymous id")
    if settings.anonymous == "ignore":
        return Ignored("anonymous", "VERO_ANONYMOUS")
    return {"id": call.anonymous_id}


def _identify(call: Call, who: Who) -> Request:
    email = call.email
    if email is None and call.user_id and is_email(call.user_id):
        email = call.user_id
    data = {**call.traits, **_known(id=call.user_id), **_user_agent(call)}
    return Request("POST", USERS_TRACK, {**who, **_known(email=email), "data": data})


def _group(call: Call, who: Who) -> Request:
    group = {**call.traits, **_known(id=call.group_id)}
    return Request("PUT", USERS_EDIT, {**who, "changes": {"group": group}})


def _page(call: Call, who: Who) -> Request:
    pages = (call.properties, as_object(call.context.get("page")))
    urls = (page["url"] for page in pages if page.get("url") is not None)
    return _event(call, "viewed_page", who, _known(url=next(urls, None)))


def _screen(call: Call, who: Who) -> Request:
    data = {**_known(name=call.event), **call.properties, **_user_agent(call)}
    return _event(call, "viewed_screen", who, data)


def _track(call: Call, settings: VeroDestinationSettings) -> Request | Ignored | Unusable:
    if not call.event:
        return Unusable(DeadReason.INCOMPLETE, "a track without the name of an event")
    opts_out = _opts_out(call.event, settings)
    opts_in = not opts_out and call.event == _OPT_IN
    # Segment's documentation has the person among the properties.
    named = as_id(call.properties.get("id")) if opts_out or opts_in else None
    who = {"id": named} if named else person(call, settings)
    if not isinstance(who, Mapping):
        return who
    if opts_out:
        return Request("POST", UNSUBSCRIBE, {**who, "extras": _extras(call)})
    if opts_in:
        return Request("POST", RESUBSCRIBE, who)
    # A user id that is an address is not the `email` here. Vero would set it again at each event,
    # and so undo a change of the address.
    identity = {**who, **_known(email=call.email)}
    return _event(call, call.event, identity, {**call.properties, **_user_agent(call)})


def _opts_out(event: str, settings: VeroDestinationSettings) -> bool:
    if settings.unsubscribe == "segment":
        return bool(_SEGMENTS_OPT_OUT.search(event))
    return _SEPARATORS.sub("", event).lower() in _OPT_OUTS


def _event(call: Call, name: str, identity: Who, data: Mapping[str, Any]) -> Request:
    body = {"event_name": name, "identity": identity, "data": data, "extras": _extras(call)}
    return Request("POST", EVENTS_TRACK, body)


def _alias(call: Call) -> Request | Ignored | Unusable:
    if not (call.previous_id and call.user_id):
        return Unusable(DeadReason.INCOMPLETE, "an alias without previousId or without userId")
    if call.previous_id == call.user_id:
        return Ignored("same_id")
    return Request("PUT", REIDENTIFY, {"id": call.previous_id, "new_id": call.user_id})


def _deletion(call: Call, settings: VeroDestinationSettings) -> Request | Unusable:
    if not call.user_id:
        return Unusable(DeadReason.INCOMPLETE, "a deletion without userId")
    if not settings.delete:
        return Unusable(DeadReason.DELETION_REQUESTED, "Segment asks to delete this person")
    return Request("POST", DELETE, {"id": call.user_id})


def _extras(call: Call) -> dict[str, Any]:
    return {"created_at": int(call.occurred_at.timestamp()), "source": "segment"}


def _user_agent(call: Call) -> dict[str, Any]:
    user_agent = call.context.get("userAgent")
    return {"userAgent": user_agent} if user_agent else {}


def _known(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


_OF_A_PERSON: Final = {
    CallType.IDENTIFY: _identify,
    CallType.GROUP: _group,
    CallType.PAGE: _page,
    CallType.SCREEN: _screen,
}

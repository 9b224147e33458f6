"""Parses a stored Segment call."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from relay.addresses import is_email
from relay.errors import UnreadableError
from relay.events import Call, CallType, DeadReason, Ignored, Unusable
from relay.sources.fields import parse_time, plausible_time, read_object, unknown_type
from relay.sources.segment.people import other_ids
from relay.texts import as_id, as_object

_TYPES: Final = frozenset(CallType)
# The field with the name of what the person did or saw.
_NAMES: Final = {CallType.TRACK: "event", CallType.PAGE: "name", CallType.SCREEN: "name"}

# What relay sends to Segment, and may get back from there: its `messageId`, and the context.
RELAYED: Final = ("customerio", "vero")
"""The sources whose events relay sends to Segment."""
_RELAYED_ID: Final = re.compile(rf"(?:{'|'.join(RELAYED)})-[0-9a-f]{{32}}")
_RELAYED_BY: Final = "analytics-python"


def parse_call(body: bytes, received_at: datetime) -> Call | Ignored | Unusable:
    """Return the call in a stored body; the same arguments always give the same result."""
    try:
        document = read_object(body)
    except UnreadableError as error:
        return Unusable(DeadReason.UNREADABLE, str(error))
    context = as_object(document.get("context"))
    integrations = as_object(document.get("integrations"))
    if _was_relayed(document, context):
        return Ignored("loop")
    if _is_excluded(integrations):
        return Ignored("excluded")
    kind = as_id(document.get("type"))
    if kind not in _TYPES:
        return unknown_type(kind)
    reported_at, occurred_at = _times(document, received_at)
    message_id = as_id(document.get("messageId"))
    # The sample of an alias in the documentation of Segment's Webhooks has keys with blanks.
    previous_id = as_id(document.get("previousId")) or as_id(document.get("Previous ID"))
    traits = as_object(document.get("traits"))
    call_type = CallType(kind)
    return Call(
        type=call_type,
        occurred_at=occurred_at,
        reported_at=reported_at,
        dedupe_key=(message_id,) if message_id else None,
        user_id=as_id(document.get("userId")) or as_id(document.get("User ID")),
        anonymous_id=as_id(document.get("anonymousId")),
        previous_id=previous_id,
        other_ids=other_ids(document, previous_id=previous_id),
        email=_email(call_type, traits, as_object(context.get("traits"))),
        group_id=as_id(document.get("groupId")),
        event=as_id(document.get(_NAMES.get(call_type, ""))),
        traits=traits,
        properties=as_object(document.get("properties")),
        context=context,
        integrations=integrations,
    )


def _was_relayed(document: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    """Return whether relay itself sent the call to Segment.

    Segment's transformations may remove the context, and a function may give the call another
    `messageId`; either is enough.
    """
    if _RELAYED_ID.fullmatch(as_id(document.get("messageId")) or ""):
        return True
    return (
        as_object(context.get("integration")).get("name") in RELAYED
        and as_object(context.get("library")).get("name") == _RELAYED_BY
    )


def _is_excluded(integrations: Mapping[str, Any]) -> bool:
    """Return whether the call is not for Vero.

    That is so if Vero is turned off, or all destinations are and Vero is not turned on. Segment
    reads the names in upper or lower case.
    """
    named = {name.lower(): value for name, value in integrations.items()}
    vero = named.get("vero")
    return vero is False or (named.get("all") is False and not vero)


def _times(document: Mapping[str, Any], received_at: datetime) -> tuple[datetime | None, datetime]:
    """Return when the call says that it happened, and when that is plausible."""
    fields = (document.get("timestamp"), document.get("originalTimestamp"))
    reported = [time for field in fields if (time := parse_time(field))]
    plausible = (time for time in reported if plausible_time(time, received_at) == time)
    return next(iter(reported), None), next(plausible, received_at)


def _email(
    call_type: CallType, traits: Mapping[str, Any], context_traits: Mapping[str, Any]
) -> str | None:
    """Return the person's address. The traits of a group are not the person's."""
    persons = [traits] if call_type is CallType.IDENTIFY else []
    for each in (*persons, context_traits):
        email = as_id(each.get("email"))
        if email and is_email(email):
            return email
    return None

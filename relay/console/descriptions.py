"""Describes collections, types of calls, and why things are ignored, for people."""

from collections.abc import Mapping
from typing import Final

from relay.events import CallType, Collection

# Those of collections are Segment's, in other words (segment-docs, connections/sources/catalog/
# cloud-apps/vero).
DESCRIPTIONS: Final[Mapping[str, str]] = {
    Collection.SENT: "Sent from the source's servers.",
    Collection.DELIVERED: "Delivered to the receiving server.",
    Collection.OPENED: "The HTML message was opened; needs open tracking.",
    Collection.LINK_CLICKED: "A link in it was clicked; needs click tracking.",
    Collection.UNSUBSCRIBED: "The subscription management link was clicked.",
    Collection.BOUNCED: "The receiving server could not or would not accept it.",
    Collection.MARKED_AS_SPAM: "The recipient marked it as spam.",
    CallType.IDENTIFY: "Who a person is, with facts about the person.",
    CallType.TRACK: "What a person did.",
    CallType.GROUP: "The group that a person belongs to.",
    CallType.ALIAS: "A person's new id in place of the old one.",
    CallType.PAGE: "A page that a person looked at.",
    CallType.SCREEN: "A screen of an app that a person looked at.",
    CallType.DELETE: "Segment's request to delete a person.",
}

IGNORED_BY: Final[Mapping[str, str]] = {
    "anonymous": "VERO_ANONYMOUS",
    "machine": "RELAY_CUSTOMERIO_MACHINE",
    "screen": "VERO_SCREEN",
    "test_sample": "RELAY_VERO_TESTS",
}
"""The variable that decides whether something is ignored for that reason."""

"""The source `segment`: the calls of Segment's libraries and of its Webhooks destinations.

The facts here come from Segment's documentation of the HTTP Tracking API and of its Webhooks
destinations, from the code of the latter (segmentio/action-destinations), and from requests of the
libraries analytics-python, analytics-node and analytics.js that were recorded.
"""

from relay.sources.segment.bodies import CALL_TYPES, calls_in, calls_in_webhook, write_keys_in
from relay.sources.segment.signatures import Coverage
from relay.sources.segment.source import KeyKind, SegmentSource

__all__ = [
    "CALL_TYPES",
    "SOURCE",
    "Coverage",
    "KeyKind",
    "SegmentSource",
    "calls_in",
    "calls_in_webhook",
    "write_keys_in",
]

SOURCE = SegmentSource

"""Every counter and gauge, each with the question it answers."""

from typing import Final

from prometheus_client import Counter

WEBHOOKS: Final = Counter(
    "relay_webhooks",
    "What came in, and what was it answered?",
    ["provider", "outcome", "what"],
)
"""`outcome` is the answer's status; `what` the collection, or the reason why it is none."""

"""The destination `vero`: renders Segment calls as requests to Vero's Track API, and sends them.

The facts about the API are from its reference (help.getvero.com/api-reference), from Vero's own
libraries, and from what Segment's former Vero destination sent and was answered
(segment-boneyard/integration-vero).
"""

from relay.destinations.vero.destination import VeroDestination

__all__ = ["DESTINATION", "VeroDestination"]

DESTINATION = VeroDestination

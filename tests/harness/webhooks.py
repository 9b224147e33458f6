"""Webhooks of Vero's for tests to which their content does not matter."""

import json


def opened(mail: object = "mail-1", **changed: object) -> bytes:
    """Return the body of an open of a mail; each mail is another event, the rest of it changed."""
    document = {
        "type": "opened",
        "opened_at": 1_772_366_400,  # without it, each delivery would be another event
        "user": {"id": 42, "email": "ann@example.com"},
        "message_id": f"{mail}",
    }
    return json.dumps(document | changed).encode()

"""A relay that takes Segment's calls by every way, and the credentials of each."""

from base64 import b64encode
from pathlib import Path
from typing import Any

from tests.harness.processes import RelayProcess
from tests.harness.routes import NOBODY

WRITE_KEY = "a-write-key-of-servers"
OTHER_WRITE_KEY = "another-write-key-of-servers"
BROWSER_KEY = "a-write-key-of-browsers"
SHARED_SECRET = "a-shared-secret-of-segment"
WRONG = "a-wrong-credential-of-nobody"
ORIGIN = "https://shop.example.com"
OTHER_ORIGIN = "http://localhost:3000"

BREAK = "ALTER TABLE entries RENAME TO away"
MEND = "ALTER TABLE away RENAME TO entries"


def relay_for_calls(outbox: Path, **variables: str) -> RelayProcess:
    """Return a relay with these variables besides its credentials."""
    environ: dict[str, Any] = {
        "RELAY_SEGMENT_WRITE_KEY": f"{WRITE_KEY},{OTHER_WRITE_KEY}",
        "RELAY_SEGMENT_BROWSER_WRITE_KEY": BROWSER_KEY,
        "RELAY_SEGMENT_ORIGINS": f"{ORIGIN},{OTHER_ORIGIN}",
        "RELAY_SEGMENT_SHARED_SECRET": SHARED_SECRET,
        "VERO_AUTH_TOKEN": "a-token",
        "VERO_HOST": NOBODY,
        **variables,
    }
    return RelayProcess(outbox, NOBODY, **environ)


def basic(user_name: str) -> dict[str, str]:
    """Return the header with a write key."""
    return {"Authorization": "Basic " + b64encode(f"{user_name}:".encode()).decode()}

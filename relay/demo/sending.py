"""Posts made-up webhooks to relay, as Vero does."""

import json
import threading
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from random import Random
from typing import Final

from relay.demo.display import Ledger
from relay.demo.traffic import journeys

SECRET: Final = "only-for-the-demo"  # noqa: S105 (made up, and printed)
PATH: Final = f"/webhooks/vero/{SECRET}"

_PAUSE_SECONDS: Final = (0.1, 0.6)
_ANSWER_SECONDS: Final = 10
_RETRY_SECONDS: Final = 0.1


class Traffic:
    """Made-up webhooks posted to relay one at a time, as Vero does."""

    def __init__(self, host: str, port: int, ledger: Ledger, rng: Random) -> None:
        self._connection = HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
        self._ledger = ledger
        self._rng = rng

    def run(self, stopping: threading.Event) -> None:
        """Post until `stopping` is set, slowly enough to read along."""
        for webhook in journeys(self._rng):
            while not stopping.is_set():
                try:
                    self._ledger.send(webhook, self._post)
                except (OSError, HTTPException):
                    # relay has not started yet, or has ended.
                    self._connection.close()
                    stopping.wait(_RETRY_SECONDS)
                else:
                    break
            if stopping.wait(self._rng.uniform(*_PAUSE_SECONDS)):
                break
        self._connection.close()

    def _post(self, body: bytes) -> Mapping[str, str]:
        self._connection.request("POST", PATH, body)
        answer: Mapping[str, str] = json.load(self._connection.getresponse())
        return answer

"""Programs of customers that send calls to relay, each batch until it is answered 200."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import cycle, islice
from random import Random
from threading import Event, Thread

from tests.harness.customers import Customers
from tests.harness.order import Ledger
from tests.harness.processes import ask, within
from tests.harness.vero import AUTH_TOKEN

WRITE_KEY = "a-write-key-of-servers"

_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 90


def environ_for(vero_host: str) -> dict[str, str]:
    """Return the variables of a relay that takes the calls and sends them to this host."""
    return {
        "RELAY_SEGMENT_WRITE_KEY": WRITE_KEY,
        "VERO_AUTH_TOKEN": AUTH_TOKEN,
        "VERO_HOST": vero_host,
        "VERO_DELETE": "1",
        "VERO_RATE": "1000",
    }


class Crowd:
    """Programs that send calls, each about customers of its own, to the relays in turn."""

    def __init__(self, ports: Sequence[int], ledger: Ledger, rng: Random, programs: int) -> None:
        self._ports = ports
        self._ledger = ledger
        self._rng = rng
        self._calls = [
            Customers(Random(rng.random()), f"shop{number}").calls()  # noqa: S311 (no secret)
            for number in range(programs)
        ]
        self._failures: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send calls meanwhile; when this ends, every call that was made has been answered 200."""
        over = Event()
        threads = [
            Thread(target=self._call, args=(number, Random(self._rng.random()), over))  # noqa: S311 (as above)
            for number in range(len(self._calls))
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert not self._failures, self._failures

    def await_calls(self, count: int) -> None:
        """Wait until so many more calls are answered."""
        goal = len(self._ledger.calls) + count
        answered = within(_PATIENCE_SECONDS, lambda: len(self._ledger.calls) >= goal)
        assert answered, self._failures or "no answers"

    def _call(self, number: int, rng: Random, over: Event) -> None:
        ports = cycle([*self._ports[number:], *self._ports[:number]])
        while not over.wait(_PAUSE_SECONDS):
            batch = [*islice(self._calls[number], rng.randint(1, 8))]
            documents = [call.document for call in batch]
            body = json.dumps({"batch": documents, "writeKey": WRITE_KEY}).encode()
            give_up_at = time.monotonic() + _PATIENCE_SECONDS
            while not _is_taken(next(ports), body):
                if time.monotonic() > give_up_at:
                    self._failures.append("relay takes no calls")
                    return
                time.sleep(_PAUSE_SECONDS)
            self._ledger.answered(batch)


def _is_taken(port: int, body: bytes) -> bool:
    """Return whether the calls were answered 200; otherwise they may be stored all the same."""
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            return ask(connection, "POST", "/v1/batch", body).status == 200
    except (OSError, HTTPException):
        return False

"""Made-up customers, whose calls Segment's own Python library sends to relay."""

import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

from msgspec import Struct

from relay.demo.display import Ledger

WRITE_KEY: Final = "only-for-the-demo"

_PAUSE_SECONDS: Final = (0.8, 2.0)
_CLOSE_SECONDS: Final = 5
_FIRST_ID: Final = 7001
_NAMES: Final = ("alma", "boris", "carla", "dario", "edith", "felix", "greta", "hugo", "ines")
_COMPANIES: Final = (("g-12", "Northwind Tea"), ("g-34", "Harbour Books"))


class Call(Struct, frozen=True):
    """A call of the library: the name of its method, and the arguments.

    Attributes:
        person: the id of the person that it writes to at Vero.
    """

    method: str
    person: str
    arguments: dict[str, Any]


def lives(rng: Random) -> Iterator[Call]:
    """Yield the calls of one customer after the other, without end."""
    number = _FIRST_ID
    while True:
        yield from _life(str(number), rng.choice(_NAMES), rng)
        number += 1


def _life(user_id: str, name: str, rng: Random) -> Iterator[Call]:
    """Yield the calls of a customer, who is known by an address first, and then by an id."""
    address = f"{name}.{user_id}@example.com"
    yield Call("identify", address, {"user_id": address, "traits": {"name": name.title()}})
    yield Call("track", address, {"user_id": address, "event": "Signed Up"})
    yield Call("alias", address, {"previous_id": address, "user_id": user_id})
    tags = {"Vero": {"tags": {"action": "add", "values": ["customer"]}}}
    traits = {"plan": "starter", "email": address}
    yield Call("identify", user_id, {"user_id": user_id, "traits": traits, "integrations": tags})
    group_id, company = rng.choice(_COMPANIES)
    arguments = {"user_id": user_id, "group_id": group_id, "traits": {"name": company}}
    yield Call("group", user_id, arguments)
    plan = {"from": "starter", "to": "pro"}
    yield Call("track", user_id, {"user_id": user_id, "event": "Plan Changed", "properties": plan})
    yield Call("identify", user_id, {"user_id": user_id, "traits": {"plan": "pro"}})
    if rng.choice((True, False)):
        yield Call("track", user_id, {"user_id": user_id, "event": "Unsubscribe"})
        if rng.choice((True, False)):
            yield Call("track", user_id, {"user_id": user_id, "event": "Resubscribe"})


class Customers:
    """Customers whose calls go to relay by Segment's Python library.

    Args:
        url: base URL of relay.
        ledger: notes each call.
        rng: decides what the customers do.
    """

    def __init__(self, url: str, ledger: Ledger, rng: Random) -> None:
        self._url = url
        self._ledger = ledger
        self._rng = rng

    def run(self, stopping: threading.Event) -> None:
        """Call until `stopping` is set, slowly enough to read along."""
        try:
            # Every other command would start a quarter of a second later.
            from segment.analytics import Client  # noqa: PLC0415 (see above)
        except ImportError:  # relay itself does without it
            self._ledger.announce("No calls: `pip install segment-analytics-python` sends some")
            return
        client = Client(
            WRITE_KEY,
            host=self._url,
            on_error=self._failed,
            upload_interval=0.1,
            # A proxy of the environment would carry the calls off this machine.
            proxies={"no_proxy": "*"},
        )
        for call in lives(self._rng):
            self._ledger.call(call.method, call.person)
            send: Callable[..., object] = getattr(client, call.method)
            send(**call.arguments)
            if stopping.wait(self._rng.uniform(*_PAUSE_SECONDS)):
                break
        # Not `join`, which waits for as long as relay is away.
        closing = threading.Thread(target=client.join, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)

    def _failed(self, error: Exception, _calls: object) -> None:
        self._ledger.announce(f"The library gave up a batch: {type(error).__name__}")

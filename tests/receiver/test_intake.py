import asyncio
import time

from relay.events import Ignored
from relay.receiver.intake import Accepted, accept_all


def test_other_requests_are_served_while_many_events_are_accepted() -> None:
    """Each takes a moment, and there may be thousands."""
    longest, events = 0.0, [b"%d" % number for number in range(200)]

    def accept(body: bytes) -> Accepted:
        time.sleep(0.001)
        return Ignored(body.decode())

    async def watch() -> None:
        nonlocal longest
        while True:
            began_at = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began_at)

    async def play() -> None:
        watching = asyncio.create_task(watch())
        accepted = await accept_all(accept, events)
        watching.cancel()

        assert accepted == [Ignored(body.decode()) for body in events]

    asyncio.run(play())

    assert longest < 0.1

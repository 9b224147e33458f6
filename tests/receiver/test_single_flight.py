import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from relay.receiver.single_flight import FRESH_SECONDS, SingleFlight


class SlowCall:
    """A call that counts how often it is made, and can be made to wait.

    Attributes:
        count: of calls.
        free: what it waits for.
        fails: it raises an error.
    """

    def __init__(self) -> None:
        self.count = 0
        self.free = threading.Event()
        self.free.set()
        self.fails = False

    def __call__(self) -> int:
        self.count += 1
        assert self.free.wait(30)
        if self.fails:
            raise KeyError("a fault")
        return self.count


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(within_a_minute())


def test_all_who_ask_meanwhile_share_one_call() -> None:
    call = SlowCall()

    async def scenario() -> None:
        flight = SingleFlight(call)
        call.free.clear()
        asking = [asyncio.create_task(flight.result(30)) for _ in range(20)]
        await asyncio.sleep(0)
        call.free.set()

        assert await asyncio.gather(*asking) == [1] * 20

    run(scenario)


def test_a_result_is_used_again_while_it_is_fresh() -> None:
    call = SlowCall()
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        flight = SingleFlight(call, clock=lambda: now)
        results = [await flight.result(30), await flight.result(30)]
        now += FRESH_SECONDS
        results += [await flight.result(30)]

        assert results == [1, 1, 2]

    run(scenario)


def test_a_call_that_hangs_is_not_made_again_and_its_result_is_used_later() -> None:
    call = SlowCall()
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        flight = SingleFlight(call, clock=lambda: now)
        call.free.clear()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await flight.result(0.01)
            now += FRESH_SECONDS
        now -= 3 * FRESH_SECONDS
        call.free.set()

        assert await flight.result(30) == 1

    run(scenario)

    assert call.count == 1


def test_a_failure_reaches_all_who_ask_and_the_next_call_may_succeed() -> None:
    call = SlowCall()
    now = 100.0

    async def scenario() -> None:
        nonlocal now
        flight = SingleFlight(call, clock=lambda: now)
        call.fails = True
        for _ in range(2):
            with pytest.raises(KeyError):
                await flight.result(30)
        call.fails = False
        now += FRESH_SECONDS

        assert await flight.result(30) == 2

    run(scenario)

import asyncio

import pytest

from relay.receiver.answers import RequestRefusedError
from relay.receiver.turns import MAX_WAITING_BYTES, Turns


def test_turns_come_one_after_the_other_in_order() -> None:
    events: list[str] = []

    async def take(turns: Turns, name: str) -> None:
        async with turns.turn(1):
            events.append(f"{name} begins")
            await asyncio.sleep(0)
            events.append(f"{name} ends")

    async def play() -> None:
        turns = Turns()
        await asyncio.gather(*(take(turns, name) for name in "abc"))

    asyncio.run(play())

    assert events == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_bodies_that_wait_take_a_limited_memory() -> None:
    async def play() -> None:
        turns, done = Turns(), asyncio.Event()

        async def take() -> None:
            async with turns.turn(MAX_WAITING_BYTES // 4):
                await done.wait()

        waiting = [asyncio.create_task(take()) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(RequestRefusedError) as refused:
            await take()
        waiting[3].cancel()
        await asyncio.wait([waiting[3]])
        after = asyncio.create_task(take())
        await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*waiting[:3], after)

        assert refused.value.answer.status == 503
        async with turns.turn(MAX_WAITING_BYTES):
            pass

    asyncio.run(play())

"""Thousands of requests at once begin in turns; few begin at once."""

import asyncio

from headrace_runtime.gateway.turns import AT_ONCE, Turns


async def test_a_request_that_comes_alone_begins_at_once() -> None:
    turns, begun = Turns(), list[int]()
    for number in range(3):
        turns.take(lambda number=number: begun.append(number))
        assert begun == list(range(number + 1))
        await asyncio.sleep(0)


async def test_many_begin_in_order_and_in_turns() -> None:
    turns, begun = Turns(), list[int]()
    for number in range(3 * AT_ONCE + 1):
        turns.take(lambda number=number: begun.append(number))
    counts = []
    for _ in range(5):
        counts.append(len(begun))
        await asyncio.sleep(0)
    assert counts == [AT_ONCE, 2 * AT_ONCE, 3 * AT_ONCE, 3 * AT_ONCE + 1, 3 * AT_ONCE + 1]
    assert begun == sorted(begun)


async def test_one_that_comes_while_others_wait_does_not_overtake_them() -> None:
    turns, begun = Turns(), list[int]()
    for number in range(AT_ONCE + 1):
        turns.take(lambda number=number: begun.append(number))
    asyncio.get_running_loop().call_soon(turns.take, lambda: begun.append(-1))
    while -1 not in begun:
        await asyncio.sleep(0)
    assert begun[-2:] == [AT_ONCE, -1]

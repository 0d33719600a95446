"""Whether KV blocks pass between two engines, as the gateway learns it from the transfers it asked for."""

import asyncio
from dataclasses import dataclass

import pytest

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.links import Links, Wait

P = Endpoint(name="p", url="http://p", role="prefill", revision="r")
D = Endpoint(name="d", url="http://d", role="decode", revision="r")
OTHER = Endpoint(name="o", url="http://o", role="decode", revision="r")


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_link_that_was_never_used_or_always_passed_is_open() -> None:
    links = Links(Clock())
    assert links.open(P, D)
    links.passed(P, D, 0.1)
    links.ended(P, D)
    assert links.open(P, D)
    assert links.quarantined() == []


async def test_after_a_transfer_that_hung_one_request_in_a_while_tries_the_link() -> None:
    clock = Clock()
    links = Links(clock)
    await hang(links)
    assert (links.open(P, D), links.open(P, OTHER)) == (False, True)
    clock.now += 2.0
    assert [links.open(P, D) for _ in range(3)] == [True, False, False]
    await hang(links)
    clock.now += 2.0
    assert not links.open(P, D)
    clock.now += 2.0
    assert links.open(P, D)
    links.passed(P, D, 0.1)
    assert [links.open(P, D) for _ in range(3)] == [True] * 3


async def test_a_try_that_showed_nothing_lets_another_request_try() -> None:
    clock = Clock()
    links = Links(clock)
    await hang(links)
    clock.now += 2.0
    assert links.open(P, D)
    links.ended(P, D)
    assert links.open(P, D)


def test_the_deadline_follows_what_transfers_took_and_stays_below_the_limit() -> None:
    links = Links(Clock())
    first = links.deadline(P, D, 1000, limit=5.0)
    links.passed(P, D, 0.1)
    assert links.deadline(P, D, 1000, limit=5.0) < first < 5.0
    links.passed(P, D, 3.0)
    assert links.deadline(P, D, 1000, limit=5.0) == 5.0
    assert links.deadline(P, D, 1000, limit=0.2) == 0.2


async def hang(links: Links, decode: Endpoint = D) -> None:
    with pytest.raises(TimeoutError):
        async with links.waiting(P, decode, 0.001):
            await asyncio.Event().wait()


async def test_a_transfer_that_is_late_while_others_pass_does_not_blame_the_link() -> None:
    links = Links(Clock())

    async def late() -> None:
        async with links.waiting(P, D, 0.05):
            links.passed(P, D, 0.1)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await late()
    assert links.quarantined() == []


async def test_a_transfer_has_more_time_while_others_pass_but_not_after_its_blocks_are_given_up() -> None:
    now = asyncio.get_running_loop().time()
    async with asyncio.timeout(100) as limit:
        Wait(limit, seconds=1000, latest=now + 5000).another_passed()
        assert limit.when() == pytest.approx(now + 1000, abs=30)
        Wait(limit, seconds=9000, latest=now + 5000).another_passed()
        assert limit.when() == now + 5000
        Wait(limit, seconds=9000, latest=now + 5000).another_passed()
        assert limit.when() == now + 5000


async def test_nothing_is_noted_of_a_transfer_that_ends_otherwise() -> None:
    links = Links(Clock())
    async with links.waiting(P, D, 5.0):
        pass
    with pytest.raises(ConnectionError):
        async with links.waiting(P, D, 5.0):
            raise ConnectionError
    assert links.quarantined() == []


async def test_an_engine_that_went_takes_its_links_with_it() -> None:
    links = Links(Clock())
    await hang(links)
    await hang(links, OTHER)
    links.forget({"d"})
    assert (links.open(P, D), links.open(P, OTHER)) == (True, False)
    assert links.quarantined() == [("p", "o")]

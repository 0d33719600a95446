"""Engines say what KV blocks they hold, over real ZeroMQ sockets, and the index knows it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from headrace_runtime.contract import Endpoint, KvEvents
from headrace_runtime.engine.fake_kvevents import publishing, stored
from headrace_runtime.gateway import kvevents
from headrace_runtime.gateway.blocks import Holdings
from headrace_runtime.gateway.kvevents import AllBlocksCleared, Batch, BlockRemoved, BlockStored, apply, follow
from headrace_runtime.gateway.prefix import PrefixIndex
from headrace_runtime.gateway.prompts import exact

BLOCK = 4
PROMPT = list(range(12))
DEADLINE = 20.0


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvevents, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(kvevents, "RECONNECT_MS", 20)
    monkeypatch.setattr(kvevents, "RECONNECT_LIMIT_MS", 50)


@pytest.fixture
def events(tmp_path: Path) -> KvEvents:
    return KvEvents(publish=f"ipc://{tmp_path}/p", replay=f"ipc://{tmp_path}/r")


def engine(name: str, events: KvEvents | None) -> Endpoint:
    return Endpoint(name=name, url="http://e", role="serve", revision="r", kv_events=events)


@asynccontextmanager
async def following(engines: Sequence[Endpoint], index: PrefixIndex | None = None) -> AsyncIterator[PrefixIndex]:
    index = index or PrefixIndex()
    task = asyncio.create_task(follow(lambda: engines, index))
    try:
        yield index
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool], pause: float = 0.01) -> None:
    async with asyncio.timeout(DEADLINE):
        while not holds():
            await asyncio.sleep(pause)


def held(index: PrefixIndex) -> dict[str, float]:
    """Tokens of the prompt on the device."""
    return dict(index.held(exact(PROMPT, BLOCK), time.monotonic()).device)


async def test_an_engine_that_publishes_nothing_is_not_listened_to() -> None:
    async with following([engine("a", None)]) as index:
        await asyncio.sleep(0)
        assert not index.timely("a")


async def test_what_an_engine_stores_and_removes_is_known(events: KvEvents) -> None:
    async with publishing(events) as publisher, following([engine("a", events)]) as index:
        await until(lambda: index.timely("a"))
        await publisher.send(stored([1, 2, 3], PROMPT, BLOCK))
        await until(lambda: held(index) == {"a": 12})
        await publisher.send(BlockRemoved([3], "GPU"))
        await until(lambda: held(index) == {"a": 8})
        await publisher.send(AllBlocksCleared())
        await until(lambda: held(index) == {})
        assert index.timely("a")


async def test_what_was_stored_before_anyone_listened_is_asked_for(events: KvEvents) -> None:
    async with publishing(events) as publisher:
        await publisher.send(stored([1, 2], PROMPT[:8], BLOCK))
        async with following([engine("a", events)]) as index:
            await until(lambda: held(index) == {"a": 8})


async def test_batches_that_were_lost_on_the_way_are_asked_for(events: KvEvents) -> None:
    async with publishing(events) as publisher, following([engine("a", events)]) as index:
        await until(lambda: index.timely("a"))
        await publisher.send(stored([1], PROMPT[:4], BLOCK))
        await until(lambda: held(index) == {"a": 4})
        await publisher.send(stored([2], PROMPT[4:8], BLOCK, parent=1), lost=True)
        await publisher.send(stored([3], PROMPT[8:], BLOCK, parent=2))
        await until(lambda: held(index) == {"a": 12})


async def test_what_nobody_remembers_any_more_does_not_count(events: KvEvents) -> None:
    async with publishing(events, remembers=1) as publisher, following([engine("a", events)]) as index:
        await until(lambda: index.timely("a"))
        await publisher.send(stored([1], PROMPT[:4], BLOCK))
        await until(lambda: held(index) == {"a": 4})
        await publisher.send(BlockRemoved([1], "GPU"), lost=True)
        await publisher.send(stored([9], [7] * 4, BLOCK))
        await until(lambda: held(index) == {})


async def test_a_restarted_engine_holds_nothing_of_what_it_held(events: KvEvents) -> None:
    async with following([engine("a", events)]) as index:
        async with publishing(events) as publisher:
            await publisher.send(stored([1, 2], PROMPT[:8], BLOCK))
            await until(lambda: held(index) == {"a": 8})
        await until(lambda: not index.timely("a"))
        async with publishing(events) as publisher:
            await until(lambda: index.timely("a"))
            assert held(index) == {}
            await publisher.send(stored([1], PROMPT[:4], BLOCK))
            await until(lambda: held(index) == {"a": 4})


async def test_an_engine_that_answers_no_questions_counts_as_holding_nothing_until_it_does(
    events: KvEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvevents, "REPLAY_SECONDS", 0.1)
    async with publishing(events) as publisher:
        publisher.answers = False
        await publisher.send(stored([1], PROMPT[:4], BLOCK))
        async with following([engine("a", events)]) as index:
            await publisher.send(stored([2], PROMPT[4:8], BLOCK, parent=1))
            await until(lambda: publisher.asked > 0)
            assert held(index) == {}
            publisher.answers = True
            await publisher.send(stored([3], PROMPT[8:], BLOCK, parent=2))
            await until(lambda: held(index) == {"a": 12})


async def test_an_engine_that_leaves_is_forgotten(events: KvEvents) -> None:
    engines = [engine("a", events)]
    async with publishing(events) as publisher, following(engines) as index:
        await publisher.send(stored([1], PROMPT[:4], BLOCK))
        await until(lambda: held(index) == {"a": 4})
        engines.clear()
        await until(lambda: len(index) == 0)


async def test_bytes_that_are_no_events_leave_the_engine_unknown_and_the_listener_begins_anew(events: KvEvents) -> None:
    async with publishing(events) as publisher, following([engine("a", events)]) as index:
        await publisher.send(stored([1], PROMPT[:4], BLOCK))
        await until(lambda: held(index) == {"a": 4})
        await publisher._publish.send_multipart([b"", (1).to_bytes(8, "big"), b"\xc1"])
        await until(lambda: not index.timely("a"), pause=0.0)  # for a moment only: the listener begins anew at once
        await until(lambda: held(index) == {"a": 4})


def lower(names: list[int], medium: str) -> BlockStored:
    """As vLLM says it where it knows no more of a block that was offloaded than its hash."""
    return BlockStored(names, None, [], 0, medium)


async def test_what_is_on_disk_is_known_after_the_engine_and_its_events_began_anew(events: KvEvents) -> None:
    async with following([engine("a", events)]) as index:
        async with publishing(events) as publisher:
            await until(lambda: index.timely("a"))
            await publisher.send(stored([1, 2, 3], PROMPT, BLOCK), lower([1], "CPU"), lower([1, 2], "STORAGE"))
            await until(lambda: held(index) == {"a": 12})
        await until(lambda: not index.timely("a"))
        async with publishing(events) as publisher:
            await publisher.send(lower([77], "STORAGE"), lower([1, 2], "STORAGE"), BlockRemoved([77], "STORAGE"))
            await until(lambda: bool(tiers(index).disk))
            assert tiers(index) == Holdings(disk={"a": 8})
            assert index.block_size == BLOCK


async def test_chunks_of_several_blocks_are_known_again_by_their_last(events: KvEvents) -> None:
    async with following([engine("a", events)]) as index:
        async with publishing(events) as publisher:
            chunk = stored([1, 2, 3], PROMPT, BLOCK)
            chunk.medium = "CPU"
            await publisher.send(stored([1, 2, 3], PROMPT, BLOCK), chunk)
            await until(lambda: held(index) == {"a": 12})
        await until(lambda: not index.timely("a"))
        async with publishing(events) as publisher:
            await publisher.send(lower([3], "STORAGE"))
            await until(lambda: tiers(index) == Holdings(disk={"a": 12}))
            await publisher.send(BlockRemoved([3], "STORAGE"))
            await until(lambda: tiers(index) == Holdings())


def tiers(index: PrefixIndex) -> Holdings:
    return index.held(exact(PROMPT, BLOCK), time.monotonic())


def test_tiers_are_told_by_the_medium_and_other_groups_of_a_hybrid_model_are_left_out() -> None:
    index = PrefixIndex()
    index.join("a")
    index.heard("a", 0.0)
    on_device, elsewhere, hybrid = (stored([1, 2, 3], PROMPT, BLOCK) for _ in range(3))
    elsewhere.medium, hybrid.group_idx = "MOON", 1
    for event in (elsewhere, hybrid):
        apply(index, "a", msgspec.msgpack.encode(Batch(0.0, [event])))
    assert held(index) == {}
    below = [lower([name], medium) for name in (1, 2, 3) for medium in ("CPU", "STORAGE")]
    gone = [BlockRemoved([2, 3], "GPU"), BlockRemoved([3], "CPU")]
    apply(index, "a", msgspec.msgpack.encode(Batch(0.0, [on_device, *below, *gone])))
    assert tiers(index) == Holdings({"a": 4}, {"a": 4}, {"a": 4})

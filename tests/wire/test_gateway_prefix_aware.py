"""PrefixAware routing as clients see it: simulated engines, and publishers that say what these engines hold."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, KvEvents
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.engine.fake_kvevents import Publisher, publishing, stored
from headrace_runtime.gateway.kvevents import BlockRemoved, BlockStored
from headrace_runtime.gateway.prompts import exact
from headrace_runtime.gateway.serve import Gateway

BLOCK = 16
PROMPT = list(range(160))
TEXT = "It was the best of times, it was the worst of times. " * 20


@dataclass
class World:
    gateway: Gateway
    publishers: dict[str, Publisher]
    client: aiohttp.ClientSession

    async def ask(self, explain: bool = False, **fields: Any) -> dict[str, str]:
        """The headers of a good answer."""
        document = {"model": "fake", "prompt": PROMPT, "max_tokens": 2, "stream": True, **fields}
        path = "chat/completions" if "messages" in fields else "completions"
        url = f"http://127.0.0.1:{self.gateway.port}/v1/{path}"
        headers = {"x-headrace-explain": "1"} if explain else {}
        async with self.client.post(url, json=document, headers=headers) as answer:
            await answer.read()
            assert answer.status == 200
            return {name.lower(): value for name, value in answer.headers.items()}

    async def holds(self, engine: str, tokens: list[int]) -> None:
        """The engine says that it holds these tokens, and the gateway has heard it."""
        await self.publishers[engine].send(stored(names(tokens), tokens, BLOCK))
        path = exact(tokens, BLOCK)
        await until(lambda: self.index.held(path, time.monotonic()).device.get(engine) == len(tokens))

    @property
    def index(self) -> Any:
        return self.gateway._affinity.index


def names(tokens: list[int]) -> list[int]:
    """Of their blocks: one name means one thing, whichever engine says it."""
    return [abs(hash(tuple(tokens[:end]))) for end in range(BLOCK, len(tokens) + 1, BLOCK)]


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def world(folder: Path, *names: str, **contract: Any) -> AsyncIterator[World]:
    """Engines by these names, whose first word is the role, and a gateway that hears all of them."""
    async with AsyncExitStack() as stack:
        publishers, endpoints = {}, []
        for name in names:
            url = await stack.enter_async_context(FakeEngine(Script()).serving())
            events = KvEvents(publish=f"ipc://{folder}/{name}.p", replay=f"ipc://{folder}/{name}.r")
            publishers[name] = await stack.enter_async_context(publishing(events))
            role = name.partition("-")[0]
            endpoints.append(Endpoint.model_validate({
                "name": name, "url": url, "role": role, "revision": "r1", "kv_events": events,
            }))  # fmt: skip
        settings = {"routing": "PrefixAware", "access_log": False, "drain_seconds": 1.0, "port": 0, "admin_port": 0}
        discovery = FixedDiscovery(endpoints=tuple(endpoints))
        gateway = Gateway(
            GatewayContract(
                namespace="n", deployment="d", served_name="fake", discovery=discovery, **(settings | contract)
            )
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: bool(gateway.fleet.slots()) and all(slot.healthy for slot in gateway.fleet.slots()))
        made = World(gateway, publishers, client)
        if settings | contract == settings:
            await until(lambda: all(made.index.timely(name) for name in names))
        yield made


async def test_a_prompt_goes_to_the_engine_that_holds_its_beginning(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1", "serve-2") as w:
        await w.holds("serve-1", PROMPT[:96])
        assert {(await w.ask())["x-headrace-decode"] for _ in range(6)} == {"serve-1"}
        assert w.gateway.registry.get_sample_value("headrace_gateway_prefix_blocks") == 6
        assert w.gateway.registry.get_sample_value("headrace_gateway_prefix_late_engines") == 0


async def test_prompts_that_nobody_holds_go_round(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1") as w:
        asked = [(await w.ask(prompt=[number] * 64))["x-headrace-decode"] for number in range(6)]
        assert set(asked) == {"serve-0", "serve-1"}


@pytest.mark.slow  # what was guessed is believed for ten seconds
async def test_text_goes_to_where_its_blocks_are_once_an_engine_named_its_tokens(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1", "serve-2") as w:
        await w.holds("serve-2", [7] * BLOCK)  # says how large blocks are
        messages = [{"role": "user", "content": TEXT}]
        await w.ask(messages=messages)
        tokens = list(range(len(TEXT) // 4 // BLOCK * BLOCK))  # the simulated engine counts them
        await w.holds("serve-1", tokens)
        await until(lambda: not w.index.held(exact(tokens, BLOCK), time.monotonic()).device.keys() - {"serve-1"})
        longer = [*messages, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
        said = await w.ask(explain=True, messages=longer)
        assert "serve-1 (holds" in said["x-headrace-routing"]


async def test_a_prompt_that_decode_holds_already_skips_prefill(tmp_path: Path) -> None:
    async with world(tmp_path, "prefill-0", "decode-0", "decode-1") as w:
        assert (await w.ask())["x-headrace-prefill"] == "prefill-0"
        await w.holds("decode-1", PROMPT)
        again = await w.ask()
        assert again["x-headrace-decode"] == "decode-1"
        assert "x-headrace-prefill" not in again


async def test_a_prompt_on_a_decode_engines_disk_is_served_without_prefill_unless_many_wait_for_that_disk(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "prefill-0", "decode-0", "decode-1") as w:
        await w.holds("decode-1", PROMPT)
        on_disk = BlockStored(names(PROMPT), None, [], 0, "STORAGE")
        await w.publishers["decode-1"].send(on_disk, BlockRemoved(names(PROMPT), "GPU"))
        await until(lambda: bool(w.index.held(exact(PROMPT, BLOCK), time.monotonic()).disk))
        said = await w.ask(explain=True)
        assert (said["x-headrace-decode"], said.get("x-headrace-prefill")) == ("decode-1", None)
        assert "160 on its disk" in said["x-headrace-routing"]
        assert "from its own tiers for 80 tokens of work" in said["x-headrace-routing"]
        state = f"http://127.0.0.1:{w.gateway.admin_port}/state"
        async with w.client.get(state) as answer:
            engines = {one["name"]: one["kvCosts"] for one in (await answer.json())["engines"]}
        assert engines["decode-1"] == {"host": 0.2, "disk": 0.5, "fetched": 0.1}
        await w.publishers["decode-1"].send(BlockRemoved(names(PROMPT), "STORAGE"))
        await until(lambda: not w.index._tiers["disk"])


async def test_one_prompt_under_two_salts_is_two_prompts(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1", "serve-2") as w:
        await w.holds("serve-0", [7] * BLOCK)  # says how large blocks are
        event = stored(list(range(50, 60)), PROMPT, BLOCK)
        event.extra_keys = [["mine"], *[None] * 9]
        await w.publishers["serve-1"].send(event)
        await until(lambda: len(w.index) == 11)
        said = await w.ask(explain=True, cache_salt="mine")
        assert "serve-1 (holds 160 of 160" in said["x-headrace-routing"]
        for salt in ({}, {"cache_salt": "yours"}):
            assert "(holds 160 of" not in (await w.ask(explain=True, **salt))["x-headrace-routing"]


async def test_the_reason_is_said_to_who_asks_and_to_nobody_else(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1") as w:
        await w.holds("serve-0", PROMPT[:96])
        assert "x-headrace-routing" not in await w.ask()
        reason = (await w.ask(explain=True))["x-headrace-routing"]
        assert reason.startswith("PrefixAware chose serve-0 (holds ")
        assert "of 160 prompt tokens" in reason


async def test_least_loaded_explains_itself_too_and_listens_to_no_events(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", routing="LeastLoaded") as w:
        assert (await w.ask(explain=True))["x-headrace-routing"].startswith("LeastLoaded chose serve-0 (")
        assert not w.index.timely("serve-0")


async def test_an_engine_whose_events_are_lost_is_routed_to_by_load(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0", "serve-1") as w:
        await w.holds("serve-1", PROMPT)
        w.index.lost("serve-1")
        shorter = (PROMPT[:48], PROMPT[:32])
        asked = [await w.ask(prompt=prompt, explain=True) for prompt in shorter]
        assert all("serve-1 (holds 0 of" in one["x-headrace-routing"] for one in asked)


async def test_a_gateway_that_is_told_to_be_prefix_aware_begins_to_listen_and_ends_when_told_otherwise(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "serve-0", "serve-1", routing="LeastLoaded") as w:
        live = w.gateway._live
        live.contract = live.contract.model_copy(update={"routing": "PrefixAware"})
        await until(lambda: all(w.index.timely(name) for name in w.publishers))
        await w.holds("serve-1", PROMPT)
        assert (await w.ask())["x-headrace-decode"] == "serve-1"
        live.contract = live.contract.model_copy(update={"routing": "RoundRobin"})
        await until(lambda: not any(w.index.timely(name) for name in w.publishers))
        assert {(await w.ask())["x-headrace-decode"] for _ in range(2)} == {"serve-0", "serve-1"}


async def test_the_share_of_prompts_that_engines_hold_is_counted(tmp_path: Path) -> None:
    async with world(tmp_path, "serve-0") as w:
        await w.ask()
        await w.holds("serve-0", PROMPT[:80])
        await w.ask()
        (seen,) = w.gateway._telemetry.figures.reading(0, 0, 0.0).roles
        assert (seen.prompts, seen.looked_up_tokens) == (2, 2 * len(PROMPT))
        assert seen.cached_tokens >= 80

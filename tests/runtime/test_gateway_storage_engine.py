"""The gateway before real engines that keep KV blocks on disk: where a prompt's blocks are taken from, and by whom."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, KvDisk, RoleName
from headrace_runtime.engine.arguments import kv_events_of
from headrace_runtime.gateway import assemble
from headrace_runtime.gateway.blocks import Holdings
from headrace_runtime.gateway.prompts import Apart, exact
from headrace_runtime.gateway.serve import Gateway
from headrace_runtime.gateway.sharing import salt_of
from tests.runtime.kv_tiers import BLOCK, BLOCKS, PROMPT, Node, Run, node, prompt

pytestmark = pytest.mark.timeout(600)

WHOLE = BLOCKS * BLOCK
ROLES: tuple[RoleName, ...] = ("prefill", "decode")


@pytest.fixture(scope="module")
def machine(
    engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("kv")
    disk = KvDisk(path=str(folder / "kv"), size_bytes=256 * 1024**2)
    with node(engine_python, folder, model("tiny"), disk) as made:
        yield made


@pytest.fixture(scope="module")
def engines(machine: Node) -> dict[str, Run]:
    return {role: machine.start(role, kv_events=True) for role in ROLES}


def endpoints(engines: dict[str, Run]) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(
            name=role,
            url=f"http://127.0.0.1:{engines[role].place.engine_port}",
            role=role,
            revision="r1",
            kv_events=kv_events_of(engines[role].place),
        )
        for role in ROLES
    )


@dataclass
class Got:
    headers: dict[str, str]
    text: str


@dataclass
class World:
    gateway: Gateway
    contract: GatewayContract
    client: aiohttp.ClientSession

    async def ask(self, key: str, seed: int) -> Got:
        body = {"model": "tiny", "prompt": prompt(seed), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        headers = {"authorization": f"Bearer {key}s-secret", "x-headrace-explain": "1"}
        url = f"http://127.0.0.1:{self.gateway.port}/v1/completions"
        async with self.client.post(url, json={**body, "stream": True}, headers=headers) as answer:
            said = await answer.read()
            assert answer.status == 200, said
            whole: dict[str, Any] = orjson.loads(assemble.one_answer("/v1/completions", said))
            return Got({name.lower(): value for name, value in answer.headers.items()}, whole["choices"][0]["text"])

    def held(self, key: str, seed: int) -> Holdings:
        apart = Apart(salt=salt_of(self.contract, key, False, None))
        return self.gateway._affinity.index.held(exact(prompt(seed), BLOCK, apart), time.monotonic())


async def until(what: Callable[[], bool], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def world(engines: dict[str, Run], folder: Path) -> AsyncIterator[World]:
    """A gateway for two keys that share nothing."""
    for key in ("alice", "bob"):
        (folder / key).write_text(f"{key}s-secret")
    contract = GatewayContract(
        namespace="test",
        deployment="tiny",
        served_name="tiny",
        discovery=FixedDiscovery(endpoints=endpoints(engines)),
        routing="PrefixAware",
        kv_sharing="Key",
        keys_folder=str(folder),
        access_log=False,
        drain_seconds=1.0,
        port=0,
        admin_port=0,
    )
    gateway = Gateway(contract)
    async with aiohttp.ClientSession() as client, gateway.running():
        await until(lambda: gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots()))
        await until(lambda: all(gateway._affinity.index.timely(role) for role in ROLES))
        yield World(gateway, contract, client)


async def computed(engines: dict[str, Run]) -> float:
    """Tokens of prompts, on both engines so far."""
    servers = [run.server for run in engines.values()]
    counts = await asyncio.gather(*(asyncio.to_thread(one.prompt_tokens, "local_compute") for one in servers))
    return sum(counts)


async def on_disk(engine: Run, prompts: int) -> None:
    """Until the disk, which both engines share, holds so many."""
    await until(lambda: engine.state().blocks >= prompts * BLOCKS)


async def test_one_key_finds_its_blocks_and_another_none_of_them(engines: dict[str, Run], tmp_path: Path) -> None:
    async with world(engines, tmp_path) as w:
        first = await w.ask("alice", 1)
        assert first.headers["x-headrace-prefill"] == "prefill"
        await until(lambda: w.held("alice", 1).device.get("decode") == WHOLE)
        before = await computed(engines)
        again = await w.ask("alice", 1)
        assert "x-headrace-prefill" not in again.headers, again.headers
        assert await computed(engines) - before == PROMPT - WHOLE
        assert w.held("bob", 1) == Holdings()
        before = await computed(engines)
        other = await w.ask("bob", 1)
        assert "(holds 0 of" in other.headers["x-headrace-routing"]
        assert await computed(engines) - before == PROMPT
        assert first.text == again.text == other.text


async def test_a_decode_engine_that_was_killed_serves_from_its_disk_with_no_prefill_engine(
    engines: dict[str, Run], machine: Node, tmp_path: Path
) -> None:
    async with world(engines, tmp_path) as w:
        asked = [("alice", 1), ("bob", 1)]
        for key, seed in asked:  # whether or not another test did
            await w.ask(key, seed)
        first = await w.ask("alice", 2)
        assert first.headers["x-headrace-prefill"] == "prefill"
        await until(lambda: w.held("alice", 2).device.get("decode") == WHOLE)
        await on_disk(engines["decode"], len(asked) + 1)
        await asyncio.to_thread(engines["decode"].kill)
        await until(lambda: not w.gateway._affinity.index.timely("decode"))
        engines["decode"] = await asyncio.to_thread(machine.start, "decode", kv_events=True)
        w.gateway.fleet.publish(endpoints(engines))
        await until(lambda: w.held("alice", 2).disk.get("decode") == WHOLE)
        await asyncio.to_thread(engines["prefill"].forget)
        await asyncio.to_thread(engines["prefill"].say, [5] * 20)  # events are told with a step
        await until(lambda: not w.held("alice", 2).device)
        before = await computed(engines)
        again = await w.ask("alice", 2)
        assert "x-headrace-prefill" not in again.headers, again.headers
        assert f"{WHOLE} on its disk" in again.headers["x-headrace-routing"]
        assert await computed(engines) - before == PROMPT - WHOLE
        assert engines["decode"].from_disk() == WHOLE
        assert first.text == again.text

"""A gateway before one real engine and one simulated: the real one is stopped as a whole or in part, and overloaded."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing import Process
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.gateway import MODEL, engine
from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.fleet import Slot
from headrace_runtime.gateway.serve import Gateway
from tests.runtime.processes import named, tree

LIMIT = 60.0


@dataclass
class Real:
    """A vLLM engine and its processes."""

    url: str
    front: int
    core: int


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder: Path = tmp_path_factory.mktemp("vllm")
    before = tree(os.getpid())
    with engine(folder) as url:
        mine = tree(os.getpid()) - before
        yield Real(url, min(mine), named(mine, "EngineCore"))


@dataclass
class World:
    gateway: Gateway
    client: aiohttp.ClientSession

    @property
    def vllm(self) -> Slot:
        return next(slot for slot in self.gateway.fleet.slots() if slot.endpoint.name == "vllm")

    async def ask(self, **fields: Any) -> tuple[int, str]:
        """Status, and the engine that wrote the answer."""
        document = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "stream": True, **fields}
        url = f"http://127.0.0.1:{self.gateway.port}/v1/completions"
        async with self.client.post(url, json=document) as response:
            await response.read()
            return response.status, response.headers.get("x-headrace-decode", "")

    async def until(self, healthy: bool) -> float:
        """Seconds until the real engine is in or out of quarantine."""
        began = time.monotonic()
        async with asyncio.timeout(LIMIT):
            while self.vllm.healthy != healthy:
                await asyncio.sleep(0.02)
        return time.monotonic() - began


@asynccontextmanager
async def world(real: Real, **contract: Any) -> AsyncIterator[World]:
    async with (
        FakeEngine(Script(model=MODEL)).serving() as fake_url,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):
        endpoints = (
            Endpoint(name="vllm", url=real.url, role="serve", revision="r"),
            Endpoint(name="simulated", url=fake_url, role="serve", revision="r"),
        )
        gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name=MODEL,
                discovery=FixedDiscovery(endpoints=endpoints),
                access_log=False,
                drain_seconds=0.0,
                port=0,
                admin_port=0,
                **contract,
            )
        )
        async with gateway.running():
            async with asyncio.timeout(LIMIT):
                while not (gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots())):
                    await asyncio.sleep(0.02)
            yield World(gateway, client)


@pytest.mark.parametrize("stopped", ["core", "front", "both"])
async def test_a_stopped_engine_is_found_and_comes_back_when_it_goes_on(real: Real, stopped: str) -> None:
    pids = {"core": [real.core], "front": [real.front], "both": [real.core, real.front]}[stopped]
    async with world(real) as w:
        streams = [asyncio.create_task(w.ask(max_tokens=1500)) for _ in range(2)]
        async with asyncio.timeout(LIMIT):
            while not any(watch.answer.beats > 3 for watch in w.vllm.watches):
                await asyncio.sleep(0.01)
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            found = await w.until(healthy=False)
            assert w.vllm.breaker.reason in ("silent", "unhealthy")
            answers = await asyncio.gather(*(w.ask() for _ in range(4)))
            assert answers == [(200, "simulated")] * 4
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*streams)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        back = await w.until(healthy=True)
        assert {engine for _, engine in [await w.ask() for _ in range(2)]} == {"vllm", "simulated"}
    print(f"{stopped} stopped: found after {found:.1f} s, back {back:.1f} s after it went on")


def burn() -> None:
    while True:
        pass


@contextlib.contextmanager
def busy_machine() -> Iterator[None]:
    burners = [Process(target=burn, daemon=True) for _ in range(os.cpu_count() or 1)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.join()


async def test_an_overloaded_engine_on_a_busy_machine_is_not_taken_for_a_hung_one(real: Real) -> None:
    async with world(real) as w:
        with busy_machine():
            for prompt, stream in ((1500, True), (1500, False), (30, True), (30, False)):
                asked = [w.ask(prompt=[7 + at] * prompt, max_tokens=64, stream=stream) for at in range(48)]
                async with asyncio.timeout(2 * LIMIT):
                    answers = await asyncio.gather(*asked)
                assert {status for status, _ in answers} == {200}
        assert w.gateway.fleet.quarantined == {}

"""A gateway in this process between a client and simulated engines, over loopback: what tests of its way stand on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway import assemble
from headrace_runtime.gateway.serve import Gateway

LONG = list(range(100))
SHORT = [1, 2, 3]
TOKENS = 5
TEXT = " t0 t1 t2 t3 t4"


@dataclass
class Got:
    """An answer as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        document = orjson.loads(
            assemble.one_answer("/v1/completions", self.body) if b"data: " in self.body else self.body
        )
        return str(document["choices"][0]["text"])

    @property
    def error(self) -> dict[str, Any]:
        return dict(orjson.loads(self.body)["error"])


@dataclass
class World:
    """A running gateway and its engines."""

    gateway: Gateway
    engines: dict[str, FakeEngine]
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.registry.get_sample_value(name, labels) or 0.0

    async def ask(self, path: str = "/v1/completions", headers: dict[str, str] | None = None, **fields: Any) -> Got:
        document = {"model": "fake", "prompt": LONG, "max_tokens": TOKENS, "stream": True, **fields}
        async with self.client.post(self.url + path, json=document, headers=headers) as response:
            return Got(
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                await response.read(),
            )


def endpoint(name: str, url: str, **fields: Any) -> Endpoint:
    """The role is the name's first word: `decode-0`."""
    return Endpoint(name=name, url=url, role=name.partition("-")[0], revision=fields.pop("revision", "r1"), **fields)


async def until(what: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(*names: str, places: dict[str, dict[str, Any]] | None = None, **contract: Any) -> AsyncIterator[World]:
    """Engines by these names, and a gateway that finds all of them healthy. `places`: endpoint fields by name."""
    async with AsyncExitStack() as stack:
        engines = {name: FakeEngine(Script()) for name in names}
        endpoints = [
            endpoint(name, await stack.enter_async_context(engine.serving()), **(places or {}).get(name, {}))
            for name, engine in engines.items()
        ]
        settings = {
            "access_log": False,
            "drain_seconds": 1.0,
            "engine_wait_seconds": 0.0,
            "port": 0,
            "admin_port": 0,
            **contract,
        }
        discovery = FixedDiscovery(endpoints=tuple(endpoints))
        gateway = Gateway(
            GatewayContract(namespace="n", deployment="d", served_name="fake", discovery=discovery, **settings)
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: all(slot.healthy for slot in gateway.fleet.slots()) and gateway.fleet.discovered)
        yield World(gateway, engines, client)

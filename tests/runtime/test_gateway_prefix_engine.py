"""Prefix-aware routing with real engines: what vLLM says of its KV blocks brings a prompt to where it is cached."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, Place
from headrace_runtime.engine.arguments import kv_events_of
from headrace_runtime.gateway.serve import Gateway
from tests.runtime.engines import Server, Warm, command, end, up
from tests.runtime.processes import free_port

BLOCK = 128
"""Tokens of a KV block of vLLM on CPU."""
BEGINNING = [(17 * number) % 4000 + 10 for number in range(6 * BLOCK)]
HITS = re.compile(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class RealEngine:
    place: Place
    launch: Any
    group: int = 0
    server: Server = field(init=False)

    def __post_init__(self) -> None:
        self.server = Server(self.place)

    def hits(self) -> float:
        """Prompt tokens that it took from its cache."""
        return sum(map(float, HITS.findall(self.server.ask("/metrics")[1].decode())))


@pytest.fixture(scope="module")
def warm(engine_python: Path, model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    folder = tmp_path_factory.mktemp("kv")
    env = command(model("tiny"), Place(name="engine", address="127.0.0.1", run_dir=str(folder))).env
    zygote = Warm(engine_python, folder, dict(env))
    yield zygote
    zygote.close()


@pytest.fixture(scope="module")
def engines(warm: Warm, model: Callable[[str], Path]) -> Iterator[dict[str, RealEngine]]:
    made = {}
    for name in ("a", "b"):
        folder = warm.folder / name
        folder.mkdir()
        place = Place(name=name, address="127.0.0.1", engine_port=free_port(), run_dir=str(folder))
        made[name] = RealEngine(place, command(model("tiny"), place, kv_events=True))
    try:
        for name, engine in made.items():
            engine.group = up(warm, engine.launch, engine.server, f"{name}.log")
        yield made
    finally:
        end(warm, *(engine.group for engine in made.values() if engine.group))


@dataclass
class World:
    gateway: Gateway
    client: aiohttp.ClientSession

    @property
    def index(self) -> Any:
        return self.gateway._affinity.index

    async def ask(self, **fields: Any) -> tuple[str, str]:
        """Which engine answered, and why it was chosen."""
        path = "chat/completions" if "messages" in fields else "completions"
        body = {"model": "tiny", "max_tokens": 4, "temperature": 0, "stream": True, "ignore_eos": True, **fields}
        url, headers = f"http://127.0.0.1:{self.gateway.port}/v1/{path}", {"x-headrace-explain": "1"}
        async with self.client.post(url, json=body, headers=headers) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert b"prompt_token_ids" not in text.encode() or "null" in text
            return answer.headers["x-headrace-decode"], answer.headers["x-headrace-routing"]


async def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def world(engines: dict[str, RealEngine]) -> AsyncIterator[World]:
    endpoints = tuple(
        Endpoint(
            name=name,
            url=f"http://127.0.0.1:{engine.place.engine_port}",
            role="serve",
            revision="r1",
            kv_events=kv_events_of(engine.place),
        )
        for name, engine in engines.items()
    )
    contract = GatewayContract(
        namespace="test",
        deployment="tiny",
        served_name="tiny",
        discovery=FixedDiscovery(endpoints=endpoints),
        routing="PrefixAware",
        access_log=False,
        drain_seconds=1.0,
        port=0,
        admin_port=0,
    )
    gateway = Gateway(contract)
    async with aiohttp.ClientSession() as client, gateway.running():
        made = World(gateway, client)
        await until(lambda: all(slot.healthy for slot in gateway.fleet.slots()) and gateway.fleet.discovered)
        await until(lambda: all(made.index.timely(name) for name in engines))
        yield made


async def test_a_prompt_comes_back_to_the_engine_that_cached_its_beginning(engines: dict[str, RealEngine]) -> None:
    async with world(engines) as w:
        first, _ = await w.ask(prompt=[*BEGINNING, 1, 2, 3])
        await until(lambda: len(w.index) >= 6)
        before = {name: engine.hits() for name, engine in engines.items()}
        for tail in range(4):
            again, why = await w.ask(prompt=[*BEGINNING, *[50 + tail] * 20])
            assert again == first, why
            assert f"{first} (holds {len(BEGINNING)} of {len(BEGINNING) + 20} prompt tokens" in why
        taken = {name: engine.hits() - before[name] for name, engine in engines.items()}
        assert taken == {name: 4 * len(BEGINNING) if name == first else 0 for name in engines}


async def test_a_chat_that_goes_on_comes_back_to_where_its_beginning_is(engines: dict[str, RealEngine]) -> None:
    async with world(engines) as w:
        # Its own tokens, of which the engine says what blocks they are.
        chat = [{"role": "user", "content": "Tell me of rivers, lakes and the sea, and of the rain on them. " * 40}]
        await w.ask(prompt=BEGINNING)
        await until(lambda: w.index.block_size == BLOCK)  # nothing can be learnt before
        first, _ = await w.ask(messages=chat)
        longer = [*chat, {"role": "assistant", "content": "Gladly."}, {"role": "user", "content": "Then go on."}]
        before = engines[first].hits()
        again, why = await w.ask(messages=longer)
        assert again == first, why
        assert engines[first].hits() - before >= 3 * BLOCK


async def test_a_restarted_engine_holds_nothing_until_it_computes_again(
    warm: Warm, engines: dict[str, RealEngine]
) -> None:
    prompt = [*BEGINNING[::-1], 1, 2, 3]
    async with world(engines) as w:
        first, _ = await w.ask(prompt=prompt)
        engine = engines[first]
        again, why = await w.ask(prompt=prompt)
        assert (again, f"{first} (holds {len(BEGINNING)} of" in why) == (first, True)
        await asyncio.to_thread(end, warm, engine.group)
        engine.group = 0
        await until(lambda: not w.index.timely(first))
        engine.group = await asyncio.to_thread(up, warm, engine.launch, engine.server, f"{first}-again.log")
        await until(lambda: w.index.timely(first) and all(slot.healthy for slot in w.gateway.fleet.slots()))
        _, why = await w.ask(prompt=prompt)
        assert f"{first} (holds 0 of" in why, why

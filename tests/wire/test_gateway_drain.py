"""Engines that leave under a stream of requests: the gateway hears of it in time, late, or never, and none is lost."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from headrace_runtime.contract import Endpoint, FileDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.serve import Gateway
from tests.wire.gateways import until

TOKENS = 6


class Stage:
    """A gateway that reads its engines from a file, and simulated engines that come and go."""

    def __init__(self, file: Path, client: aiohttp.ClientSession, model: str) -> None:
        self._file, self._client, self._model = file, client, model
        self._stacks: dict[str, AsyncExitStack] = {}
        self._listed: dict[str, Endpoint] = {}
        self.gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name=model,
                discovery=FileDiscovery(path=str(file)),
                access_log=False,
                drain_seconds=1.0,
                engine_wait_seconds=0.0,
                port=0,
                admin_port=0,
            )
        )
        self.failed: list[str] = []
        self.by: list[str] = []
        """Who wrote the tokens, of each request in turn."""

    async def start(self, name: str) -> None:
        stack = self._stacks[name] = AsyncExitStack()
        url = await stack.enter_async_context(FakeEngine(Script(model=self._model)).serving())
        self.list(Endpoint(name=name, url=url, role=name.partition("-")[0], revision="r"))

    async def end(self, name: str) -> None:
        """Its process is gone; what lists engines does not know it yet."""
        await self._stacks.pop(name).aclose()

    async def end_all(self) -> None:
        for name in list(self._stacks):
            await self.end(name)

    def list(self, endpoint: Endpoint) -> None:
        self._listed[endpoint.name] = endpoint
        self._write()

    def say(self, name: str, **fields: bool) -> None:
        self.list(self._listed[name].model_copy(update=fields))

    def forget(self, name: str) -> None:
        del self._listed[name]
        self._write()

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps([one.model_dump(by_alias=True) for one in self._listed.values()]))
        new.rename(self._file)

    async def ask(self) -> None:
        document = {"model": self._model, "prompt": "x", "max_tokens": TOKENS, "stream": True}
        url = f"http://127.0.0.1:{self.gateway.port}/v1/completions"
        async with self._client.post(url, json=document) as answer:
            text = await answer.text()
            whole = answer.status == 200 and text.count('"text":') >= TOKENS and text.rstrip().endswith("[DONE]")
            if not whole:
                self.failed.append(f"{answer.status} {text[-300:]}")
            self.by.append(answer.headers.get("x-headrace-decode", ""))

    async def until_by(self, name: str) -> None:
        async with asyncio.timeout(20):
            while not self.by or self.by[-1] != name:
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """One request after the other comes, whether or not those before it have ended."""
        asked: set[asyncio.Task[None]] = set()

        async def flow() -> None:
            while True:
                asked.add(asyncio.create_task(self.ask()))
                await asyncio.sleep(0.01)

        flowing = asyncio.create_task(flow())
        try:
            yield
        finally:
            flowing.cancel()
            await asyncio.gather(*asked)


@asynccontextmanager
async def stage(folder: Path, *names: str, model: str = "fake") -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        made = Stage(folder / "engines.json", await stack.enter_async_context(aiohttp.ClientSession()), model)
        stack.push_async_callback(made.end_all)
        for name in names:
            await made.start(name)
        await stack.enter_async_context(made.gateway.running())
        slots = made.gateway.fleet.slots
        await until(lambda: len(slots()) == len(names) and all(slot.healthy for slot in slots()), 20)
        yield made


async def test_an_engine_that_is_known_to_drain_gets_nothing_new_while_others_are_there(tmp_path: Path) -> None:
    async with stage(tmp_path, "serve-0", "serve-1") as on:
        on.say("serve-0", draining=True, stays=True)
        await until(lambda: any(s.endpoint.draining for s in on.gateway.fleet.slots()), 20)
        for _ in range(6):
            await on.ask()
        assert on.by == ["serve-1"] * 6
        assert on.failed == []


async def test_an_engine_that_ends_before_the_gateway_hears_that_it_drains_costs_no_request(tmp_path: Path) -> None:
    """SIGTERM may reach the agent first. Its engine goes once it is quiet, with requests on their way to it."""
    async with stage(tmp_path, "serve-0", "serve-1") as on:
        async with on.flowing():
            await on.until_by("serve-0")
            await on.end("serve-0")
            await on.until_by("serve-1")
            on.say("serve-0", draining=True)
            on.forget("serve-0")
            answered = len(on.by)
            await until(lambda: len(on.by) > answered + 10, 20)
        assert on.failed == []


async def test_the_only_engine_answers_on_until_its_successor_does(tmp_path: Path) -> None:
    async with stage(tmp_path, "serve-0") as on:
        async with on.flowing():
            on.say("serve-0", draining=True, stays=True)
            await until(lambda: on.gateway.fleet.slots()[0].endpoint.stays, 20)
            answered = len(on.by)
            await until(lambda: len(on.by) > answered + 10, 20)
            await on.start("serve-1")
            await on.until_by("serve-1")
            on.say("serve-0", stays=False)
            await until(lambda: on.gateway.fleet.slots()[0].load == 0, 20)
            await on.end("serve-0")
            on.forget("serve-0")
            answered = len(on.by)
            await until(lambda: len(on.by) > answered + 10, 20)
        assert on.failed == []


async def test_the_only_engine_that_leaves_for_good_takes_nothing_new(tmp_path: Path) -> None:
    async with stage(tmp_path, "serve-0") as on:
        on.say("serve-0", draining=True)
        await until(lambda: on.gateway.fleet.slots()[0].endpoint.draining, 20)
        await on.ask()
        assert [one[:3] for one in on.failed] == ["503"]

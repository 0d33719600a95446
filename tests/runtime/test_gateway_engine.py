"""The same requests through the gateway to the simulated engine and to vLLM: what holds for one holds for the other."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from bench.gateway import MODEL, engine
from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.request import CHAT, COMPLETIONS, parse, prefill_body
from headrace_runtime.gateway.serve import Gateway

MESSAGES = [{"role": "user", "content": "Where does the water go?"}]
TOKENS = 8
LONG = 1500
"""Tokens of an answer that lasts long enough to be left."""


@pytest.fixture(scope="module")
def fake_url() -> Iterator[str]:
    """A simulated engine in a loop and thread of its own, as each test has its own loop."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = FakeEngine(Script(model=MODEL, itl=0.005, max_model_len=2048)).serving()
    yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(5)
    asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("vllm")
    with engine(folder) as url:
        yield url


@pytest.fixture(params=["fake_url", "vllm_url"], ids=["simulated", "vllm"])
def engine_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(request.param)
    return url


async def until(what: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def before(engine_url: str) -> AsyncIterator[str]:
    """A gateway before this engine; gives its URL."""
    contract = GatewayContract(
        namespace="n",
        deployment="d",
        served_name=MODEL,
        discovery=FixedDiscovery(endpoints=(Endpoint(name="e", url=engine_url, role="serve", revision="r"),)),
        access_log=False,
        drain_seconds=0.0,
        port=0,
        admin_port=0,
    )
    gateway = Gateway(contract)

    async def healthy() -> bool:
        return all(slot.healthy for slot in gateway.fleet.slots()) and gateway.fleet.discovered

    async with gateway.running():
        await until(healthy)
        yield f"http://127.0.0.1:{gateway.port}"


async def counted(engine_url: str, name: str) -> float:
    """A series of the engine's metrics."""
    async with aiohttp.ClientSession() as client, client.get(f"{engine_url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


async def post(url: str, path: str, document: dict[str, Any] | bytes) -> tuple[int, dict[str, Any]]:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    async with aiohttp.ClientSession() as client:
        async with client.post(url + path, data=body, headers={"content-type": "application/json"}) as response:
            return response.status, await response.json()


async def test_openais_own_client_gets_chats_and_completions(engine_url: str) -> None:
    extra = {"ignore_eos": True}
    async with (
        before(engine_url) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == [MODEL]
        for stream in (False, True):
            chat: Any = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_completion_tokens=TOKENS, stream=stream, extra_body=extra
            )
            text: Any = await client.completions.create(
                model=MODEL, prompt=[1, 2, 3], max_tokens=TOKENS, stream=stream, extra_body=extra
            )
            if stream:
                assert [chunk async for chunk in chat][-1].choices[0].finish_reason == "length"
                assert [chunk async for chunk in text][-1].choices[0].finish_reason == "length"
            else:
                assert chat.usage.completion_tokens == text.usage.completion_tokens == TOKENS


async def test_a_prompt_that_is_too_long_is_refused_in_the_engines_own_words(engine_url: str) -> None:
    document = {"model": MODEL, "prompt": [7] * 4000, "max_tokens": 1}
    async with before(engine_url) as url:
        refused = await post(url, COMPLETIONS, document)
        assert refused[0] == 400
        assert refused == await post(engine_url, COMPLETIONS, document)


async def test_a_client_that_leaves_frees_the_engines_slot(engine_url: str) -> None:
    document = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": LONG, "ignore_eos": True, "stream": True}

    async def busy() -> bool:
        return await counted(engine_url, "vllm:num_requests_running") == 1

    async def idle() -> bool:
        return await counted(engine_url, "vllm:num_requests_running") == 0

    async with before(engine_url) as url, aiohttp.ClientSession() as client:
        written = await counted(engine_url, "vllm:generation_tokens_total")
        async with client.post(url + COMPLETIONS, json=document) as response:
            await response.content.readany()
            await until(busy)
            response.close()
        await until(idle)
        assert await counted(engine_url, "vllm:generation_tokens_total") - written < LONG, "it was written to its end"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_prefill_copy_of_a_request_with_everything_in_it_is_valid(engine_url: str, path: str) -> None:
    prompt = {"messages": MESSAGES} if path == CHAT else {"prompt": [1, 2, 3]}
    logprobs = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    document = {
        "model": MODEL,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "min_tokens": 10,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        **prompt,
        **logprobs,
    }
    status, answer = await post(engine_url, path, prefill_body(parse(path, orjson.dumps(document), MODEL)))
    assert status == 200, answer
    assert answer["usage"]["completion_tokens"] == 1

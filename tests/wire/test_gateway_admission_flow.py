"""The way in, over HTTP: keys, limits, the queue, and what a client is told. One simulated engine does the work."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from headrace_runtime.contract import Admission, Endpoint, FixedDiscovery, GatewayContract, KeyRule, Limit
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.serve import Gateway

TOKENS = 5
ONE_AT_A_TIME = Limit(max_concurrent=1)


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def error(self) -> dict[str, Any]:
        return dict(self.body["error"])


@dataclass
class World:
    gateway: Gateway
    engine: FakeEngine
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def metric(self, name: str, **labels: str) -> float:
        return self.gateway.registry.get_sample_value(name, labels) or 0.0

    async def ask(self, key: str = "", **fields: Any) -> Got:
        document = {"model": "fake", "prompt": [1, 2, 3], "max_tokens": TOKENS, **fields}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.client.post(f"{self.url}/v1/completions", json=document, headers=headers) as answer:
            names = {name.lower(): value for name, value in answer.headers.items()}
            return Got(answer.status, names, await answer.json())

    def asks(self, key: str = "", **fields: Any) -> "asyncio.Task[Got]":
        return asyncio.create_task(self.ask(key, **fields))

    async def canary(self, **question: Any) -> Got:
        url = f"http://127.0.0.1:{self.gateway.admin_port}/canary"
        async with self.client.post(url, json=question) as answer:
            names = {name.lower(): value for name, value in answer.headers.items()}
            return Got(answer.status, names, await answer.json())

    async def state(self) -> dict[str, int]:
        """What the admin port tells of the way in."""
        async with self.client.get(f"http://127.0.0.1:{self.gateway.admin_port}/state") as answer:
            return dict((await answer.json())["admission"])

    @property
    def waiting(self) -> float:
        return self.metric("headrace_gateway_queue_length")


async def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(
    keys: Path | None = None, admission: Admission | None = None, script: Script | None = None, **contract: Any
) -> AsyncIterator[World]:
    """A gateway before one engine that it found healthy."""
    async with AsyncExitStack() as stack:
        engine = FakeEngine(script or Script())
        url = await stack.enter_async_context(engine.serving())
        endpoints = (Endpoint(name="serve-0", url=url, role="serve", revision="r1"),)
        settings = {"access_log": False, "drain_seconds": 1.0, "port": 0, "admin_port": 0, **contract}
        gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name="fake",
                discovery=FixedDiscovery(endpoints=endpoints),
                keys_folder=str(keys) if keys else None,
                admission=admission or Admission(),
                **settings,
            )
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: any(slot.routable for slot in gateway.fleet.slots()))
        yield World(gateway, engine, client)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Two holders: of `sk-a` and of `sk-b`."""
    for name in "ab":
        (tmp_path / f"team-{name}").write_text(f"sk-{name}\n")
    return tmp_path


# Who asks


async def test_without_keys_anybody_is_let_in_and_told_of_no_limit() -> None:
    async with world() as w:
        got = await w.ask("whatever")
        assert got.status == 200
        assert not any(name.startswith("x-ratelimit") for name in got.headers)


@pytest.mark.parametrize(("key", "cause"), [("", "no_key"), ("sk-c", "unknown_key")])
async def test_who_has_no_key_is_refused_before_anything_else(keys: Path, key: str, cause: str) -> None:
    async with world(keys) as w:
        got = await w.ask(key, model="no such model")
        assert (got.status, got.error["code"], got.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
        assert key not in str(got.body) or not key
        assert w.metric("headrace_gateway_not_admitted_total", cause=cause) == 1
        assert w.engine.seen == []


async def test_the_models_need_a_key_and_the_health_does_not(keys: Path) -> None:
    async with world(keys) as w:
        for path, key, status in (("/v1/models", "", 401), ("/v1/models", "sk-a", 200), ("/health", "", 200)):
            headers = {"authorization": f"bearer {key}"} if key else {}
            async with w.client.get(w.url + path, headers=headers) as answer:
                assert answer.status == status


async def test_openais_own_client_is_let_in_with_a_key_and_understands_why_it_is_not_without(keys: Path) -> None:
    async with world(keys) as w:
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="sk-b") as known:
            assert [model.id async for model in known.models.list()] == ["fake"]
            answer = await known.completions.create(model="fake", prompt="hello", max_tokens=TOKENS)
            assert answer.choices[0].text
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="sk-c") as unknown:
            with pytest.raises(openai.AuthenticationError, match="not known"):
                await unknown.completions.create(model="fake", prompt="hello")


async def test_the_log_names_the_keys_holder_and_never_the_key(keys: Path) -> None:
    log = io.BytesIO()
    async with world(keys) as w:
        w.gateway._telemetry.access_log = log
        await w.ask("sk-a")
        await w.ask("sk-wrong")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["key"], line["status"], line["tokens"]) for line in lines] == [("team-a", 200, 8), ("", 401, None)]
    assert b"sk-" not in log.getvalue()


# Limits


async def test_above_its_rate_a_key_is_refused_in_openais_words_and_another_is_not(keys: Path) -> None:
    limit = KeyRule(limits=Limit(requests_per_minute=2, tokens_per_minute=600))
    async with world(keys, Admission(each_key=limit)) as w:
        first = await w.ask("sk-a")
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-limit-tokens"] == "600"
        await w.ask("sk-a")
        refused = await w.ask("sk-a")
        assert (refused.status, refused.error["code"], refused.error["type"]) == (
            429,
            "rate_limit_exceeded",
            "requests",
        )
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        assert (await w.ask("sk-b")).status == 200
        assert w.metric("headrace_gateway_not_admitted_total", cause="key_requests") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_budget_of_tokens_is_charged_with_what_the_answer_took(keys: Path, stream: bool) -> None:
    limit = KeyRule(limits=Limit(tokens_per_minute=60))
    async with world(keys, Admission(each_key=limit)) as w:
        headers = {"authorization": "Bearer sk-a"}
        document = {"model": "fake", "prompt": [1, 2, 3], "max_tokens": 100, "stream": stream}
        async with w.client.post(f"{w.url}/v1/completions", json=document, headers=headers) as answer:
            assert answer.status == 200
            await answer.read()
        refused = await w.ask("sk-a")
        assert (refused.status, refused.error["type"]) == (429, "tokens")
        assert 30 <= int(refused.headers["retry-after"]) <= 60


async def test_what_no_minute_allows_is_not_to_be_tried_again(keys: Path) -> None:
    async with world(keys, Admission(each_key=KeyRule(limits=Limit(tokens_per_minute=50)))) as w:
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="sk-a", max_retries=5) as client:
            with pytest.raises(openai.RateLimitError, match="more than the 50 tokens"):
                await client.completions.create(model="fake", prompt="x" * 1000)
        assert w.metric("headrace_gateway_not_admitted_total", cause="too_many_tokens") == 1


# The queue

STALLED = Script(fault="stall")


async def queued(w: World, *keys: str) -> "list[asyncio.Task[Got]]":
    """A request that holds the only place, and one of each key that waits, with its number as the prompt."""
    tasks = [w.asks(keys[0], prompt=[0])]
    await until(lambda: w.engine.running)
    for number, key in enumerate(keys, 1):
        tasks.append(w.asks(key, prompt=[number]))
        await until(lambda number=number: w.waiting == number)
    return tasks


async def served(w: World, tasks: "list[asyncio.Task[Got]]") -> list[int]:
    """Let the place go; the numbers of the others, in the order in which they came to the engine."""
    w.engine.become(fault="none")
    tasks[0].cancel()
    assert {got.status for got in await asyncio.gather(*tasks[1:])} == {200}
    return [document["prompt"][0] for document in w.engine.seen[1:]]


async def test_requests_wait_for_their_turn_and_a_greedy_key_costs_another_one_turn(keys: Path) -> None:
    async with world(keys, Admission(total=ONE_AT_A_TIME), STALLED) as w:
        tasks = await queued(w, "sk-a", "sk-a", "sk-a", "sk-b")
        assert await served(w, tasks) == [1, 4, 2, 3]
        assert w.metric("headrace_gateway_queue_wait_seconds_count") == 4
        assert w.waiting == 0


async def test_a_higher_class_overtakes(keys: Path) -> None:
    admission = Admission(total=ONE_AT_A_TIME, keys={"team-b": KeyRule(priority="High")})
    async with world(keys, admission, STALLED) as w:
        assert await served(w, await queued(w, "sk-a", "sk-a", "sk-b")) == [3, 1, 2]


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with world(admission=Admission(total=ONE_AT_A_TIME, queue_length=1), script=STALLED) as w:
        held = [w.asks()]
        await until(lambda: w.engine.running)
        held.append(w.asks())
        await until(lambda: w.waiting == 1)
        assert await w.state() == {"running": 1, "waiting": 1}
        refused = await w.ask()
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert w.metric("headrace_gateway_not_admitted_total", cause="queue_full") == 1
        for task in held:
            task.cancel()
        await until(lambda: w.waiting == 0 and not w.gateway._admission.running)


async def test_nobody_waits_longer_than_the_queue_allows() -> None:
    admission = Admission(total=ONE_AT_A_TIME, queue_seconds=0.2)
    async with world(admission=admission, script=STALLED) as w:
        held = w.asks()
        await until(lambda: w.engine.running)
        refused = await w.ask()
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        assert w.metric("headrace_gateway_not_admitted_total", cause="queue_wait") == 1
        held.cancel()


async def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    async with world(admission=Admission(total=ONE_AT_A_TIME, queue_length=1), script=STALLED) as w:
        held = w.asks()
        await until(lambda: w.engine.running)
        gone = w.asks()
        await until(lambda: w.waiting == 1)
        gone.cancel()
        await until(lambda: w.waiting == 0)
        last = w.asks()
        await until(lambda: w.waiting == 1)
        w.engine.become(fault="none")
        held.cancel()
        assert (await last).status == 200
        assert len(w.engine.seen) == 2


async def test_a_client_that_leaves_while_it_is_served_frees_its_place() -> None:
    async with world(admission=Admission(total=ONE_AT_A_TIME), script=STALLED) as w:
        held = w.asks()
        await until(lambda: w.engine.running)
        held.cancel()
        await until(lambda: not w.gateway._admission.running)
        w.engine.become(fault="none")
        assert (await w.ask()).status == 200


# The canary


async def test_the_canary_needs_no_key_and_counts_against_no_limit(keys: Path) -> None:
    rule = KeyRule(limits=Limit(requests_per_minute=1))
    async with world(keys, Admission(total=ONE_AT_A_TIME, each_key=rule), STALLED) as w:
        held = w.asks("sk-a")
        await until(lambda: w.engine.running)
        w.engine.become(fault="none", itl=0.0)
        for _ in range(3):
            got = await w.canary(revision="r1", words=7)
            assert (got.status, got.headers["x-headrace-revision"]) == (200, "r1")
            assert got.headers["x-headrace-decode"] == "serve-0"
        assert w.engine.seen[-1]["messages"][0]["content"] == " ".join(["hello"] * 7)
        assert w.engine.seen[-1]["max_tokens"] == 1
        held.cancel()


async def test_the_canary_says_what_a_client_would_be_told(keys: Path) -> None:
    async with world(keys) as w:
        got = await w.canary(revision="r2")
        assert (got.status, got.error["code"]) == (503, "no_engine_ready")
        assert (await w.canary(revision="r1", words=10**6)).status == 400


# The end


async def test_who_waits_when_the_gateway_ends_gets_its_turn_while_there_is_time() -> None:
    async with AsyncExitStack() as stack:
        w = await stack.enter_async_context(
            world(admission=Admission(total=ONE_AT_A_TIME), script=STALLED, drain_seconds=20.0)
        )
        held = w.asks()
        await until(lambda: w.engine.running)
        waiting = w.asks()
        await until(lambda: w.waiting == 1)
        end = asyncio.create_task(stack.aclose())
        await until(lambda: w.gateway._server.draining)
        w.engine.become(fault="none")
        held.cancel()
        assert (await waiting).status == 200
        await end


async def test_who_still_waits_after_half_of_the_drain_is_told_to_go_elsewhere() -> None:
    async with AsyncExitStack() as stack:
        w = await stack.enter_async_context(
            world(admission=Admission(total=ONE_AT_A_TIME), script=STALLED, drain_seconds=4.0)
        )
        held = w.asks()
        await until(lambda: w.engine.running)
        waiting = w.asks()
        await until(lambda: w.waiting == 1)
        end = asyncio.create_task(stack.aclose())
        refused = await waiting
        assert (refused.status, refused.error["code"], refused.headers["connection"]) == (503, "overloaded", "close")
        assert "retry-after" in refused.headers
        held.cancel()
        await end

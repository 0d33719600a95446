"""Streams whose engine is lost, through a real gateway to simulated engines: the client sees one unbroken answer."""

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract, Resume
from headrace_runtime.engine.fake import FakeEngine, Fault
from headrace_runtime.gateway.assemble import events, one_answer
from headrace_runtime.gateway.request import CHAT, COMPLETIONS
from headrace_runtime.gateway.serve import Gateway

TOKENS = 12
TEXT = "".join(f" t{number}" for number in range(TOKENS))


class Engine(FakeEngine):
    """A simulated engine that may fail otherwise from its second request on."""

    later: Fault | None = None

    def __init__(self, name: str) -> None:
        super().__init__()
        self._ids = itertools.count(1000 * ord(name))  # its answers' ids are no other's

    async def _answer(self, request: web.Request, document: dict[str, Any]) -> web.StreamResponse:
        if self.later is not None and len(self.seen) > 1:
            self.become(fault=self.later)
            self.later = None
        return await super()._answer(request, document)


@dataclass
class World:
    """A gateway before engines `a`, `b`, …"""

    gateway: Gateway
    engines: dict[str, Engine]
    client: aiohttp.ClientSession

    async def ask(self, path: str, **fields: Any) -> bytes:
        """The body of an answer with status 200."""
        async with self.client.post(f"http://127.0.0.1:{self.gateway.port}{path}", json=request(path, **fields)) as got:
            assert got.status == 200, await got.read()
            return await got.read()

    def resumes(self, result: str) -> float:
        return self.gateway.registry.get_sample_value("headrace_gateway_resumes_total", {"result": result}) or 0.0

    def seen(self) -> list[dict[str, Any]]:
        return [document for engine in self.engines.values() for document in engine.seen]


def request(path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "Say it."}]} if path == CHAT else {"prompt": [1, 2, 3]}
    return {"model": "fake", "max_tokens": TOKENS, "stream": True, **prompt, **fields}


async def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def world(*roles: str, resume: Resume | None = Resume(wait_seconds=10.0)) -> AsyncIterator[World]:  # noqa: B008
    """Engines `a`, `b`, … of these roles, all healthy. `a` has the first request: all are idle, names decide."""
    async with AsyncExitStack() as stack:
        engines = {name: Engine(name) for name, _ in zip("abcdef", roles, strict=False)}
        endpoints = [
            Endpoint(name=name, url=await stack.enter_async_context(engine.serving()), role=role, revision="r")
            for (name, engine), role in zip(engines.items(), roles, strict=True)  # type: ignore[arg-type]
        ]
        gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name="fake",
                discovery=FixedDiscovery(endpoints=tuple(endpoints)),
                resume=resume,
                engine_wait_seconds=0.2,
                silence_seconds=0.5,
                access_log=False,
                drain_seconds=1.0,
                port=0,
                admin_port=0,
            )
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots()))
        yield World(gateway, engines, client)


def answer(path: str, stream: bytes) -> dict[str, Any]:
    """All that a client reads of a stream, without the ids that each request has of its own, nor those of its
    prompt."""
    found: dict[str, Any] = orjson.loads(one_answer(path, stream))
    found.pop("id")
    for holder in (found, *found["choices"]):
        holder.pop("prompt_token_ids", None)
    for call in found["choices"][0].get("message", {}).get("tool_calls", ()):
        call.pop("id")
    return found


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "completion": (COMPLETIONS, {}, {}),
    "chat": (CHAT, {}, {}),
    "events of several tokens": (CHAT, {"burst": 5}, {}),
    "usage": (CHAT, {}, {"stream_options": {"include_usage": True}}),
    "usage in every event": (
        COMPLETIONS,
        {},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "reasoning": (CHAT, {"reasoning": 4}, {}),
    "tool call": (CHAT, {"calls_tool": True}, {"tools": []}),
    "reasoned tool call": (CHAT, {"calls_tool": True, "reasoning": 5, "burst": 2}, {"tools": []}),
    "logprobs of a chat": (CHAT, {}, {"logprobs": True}),
    "logprobs of a completion": (COMPLETIONS, {"burst": 3}, {"logprobs": 1}),
    "arguments of the client's own": (COMPLETIONS, {}, {"vllm_xargs": {"mine": 1}, "return_token_ids": True}),
}


@pytest.mark.parametrize(("fault", "at"), [("cut", 6), ("cut", TOKENS), ("torn", 6), ("error_event", TOKENS - 1)])
@pytest.mark.parametrize("case", CASES)
async def test_the_client_gets_one_unbroken_answer(case: str, fault: str, at: int) -> None:
    path, script, fields = CASES[case]
    async with world("serve", "serve") as w:
        for engine in w.engines.values():
            engine.become(**script)
        document = request(path, **fields) | {"return_token_ids": True}
        async with w.client.post(w.engines["b"].url + path, json=document) as response:
            undisturbed = await response.read()
        w.engines["a"].become(fault=fault, at=at)
        stream = await w.ask(path, **fields)
        assert w.engines["a"].seen
        assert answer(path, stream) == answer(path, undisturbed)
        assert b'"error"' not in stream
        assert len({orjson.loads(data)["id"] for data in events(stream)}) == 1
        assert (b'"prompt_token_ids":[' in stream) == bool(fields.get("return_token_ids"))
        assert w.resumes("resumed") + w.resumes("completed") == 1


async def test_an_undisturbed_stream_is_the_engines_own_but_for_the_ids_of_its_prompt() -> None:
    async with world("serve") as w:
        stream = await w.ask(CHAT)
        async with w.client.post(w.engines["a"].url + CHAT, json=request(CHAT, return_token_ids=True)) as response:
            own = await response.read()
        own = own.replace(b'"prompt_token_ids":[0,1]', b'"prompt_token_ids":null')
        assert re.sub(rb"fake-\d+", b"", stream) == re.sub(rb"fake-\d+", b"", own)
        assert w.resumes("resumed") == 0


async def test_an_engine_that_hangs_in_mid_stream_is_left_for_another() -> None:
    async with world("serve", "serve") as w:
        w.engines["a"].become(itl=0.01)
        asked = asyncio.create_task(w.ask(CHAT, max_tokens=40))
        await until(lambda: w.engines["a"].running == 1)
        w.engines["a"].become(fault="hang")
        found = answer(CHAT, await asked)["choices"][0]["message"]["content"]
        assert found == "".join(f" t{number}" for number in range(40))
        assert w.resumes("resumed") == 1


async def test_several_losses_of_one_stream_are_one_answer() -> None:
    async with world("serve", "serve", "prefill") as w:  # which writes only when no other is left
        w.engines["a"].become(fault="cut", at=3)
        w.engines["b"].become(fault="torn", at=7)
        assert answer(CHAT, await w.ask(CHAT))["choices"][0]["message"]["content"] == TEXT
        assert w.resumes("resumed") == 2


async def test_a_stream_that_lost_too_many_engines_ends_with_an_error() -> None:
    async with world("serve", "serve", "serve", resume=Resume(max_attempts=1, wait_seconds=5.0)) as w:
        for engine, at in zip(w.engines.values(), (2, 5, 7), strict=True):
            engine.become(fault="cut", at=at)
        stream = await w.ask(COMPLETIONS)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert b"[DONE]" not in stream
        assert w.resumes("too_often") == 1


async def test_the_only_engine_is_waited_for() -> None:
    async with world("serve") as w:
        engine = w.engines["a"]
        engine.become(fault="cut", at=4)
        engine.later = "status"
        asked = asyncio.create_task(w.ask(COMPLETIONS))
        await until(lambda: len(engine.seen) >= 3)
        engine.become(fault="none")
        assert answer(COMPLETIONS, await asked)["choices"][0]["text"] == TEXT


async def test_a_stream_ends_with_an_error_when_no_engine_comes_in_time() -> None:
    async with world("serve", resume=Resume(wait_seconds=0.3)) as w:
        w.engines["a"].become(fault="cut", at=4)
        w.engines["a"].later = "status"
        stream = await w.ask(COMPLETIONS)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.resumes("no_engine") == 1


@pytest.mark.parametrize("fields", [{"n": 2}, {"echo": True}, {"include_reasoning": False}], ids=str)
async def test_what_cannot_be_replayed_truthfully_ends_with_an_error(fields: dict[str, Any]) -> None:
    async with world("serve", "serve") as w:
        w.engines["a"].become(fault="cut", at=4)
        stream = await w.ask(COMPLETIONS, **fields)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.engines["b"].seen == []
        assert w.resumes("not_resumable") == 1
        assert "return_token_ids" not in w.engines["a"].seen[0]


async def test_resume_can_be_switched_off() -> None:
    async with world("serve", "serve", resume=None) as w:
        w.engines["a"].become(fault="cut", at=4)
        stream = await w.ask(COMPLETIONS)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert "return_token_ids" not in w.engines["a"].seen[0]


async def test_an_engine_that_says_something_else_is_not_believed() -> None:
    async with world("serve", "serve") as w:
        w.engines["a"].become(fault="cut", at=4)
        w.engines["b"].become(calls_tool=True)
        stream = await w.ask(CHAT)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.resumes("mismatch") == 1


async def test_a_refused_continuation_ends_with_an_error() -> None:
    async with world("serve", "serve") as w:
        w.engines["a"].become(fault="cut", at=4)
        w.engines["b"].become(max_model_len=4)
        stream = await w.ask(COMPLETIONS)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.resumes("refused") == 1


async def test_a_continuation_that_every_engine_fails_on_is_given_up() -> None:
    async with world("serve", resume=Resume(wait_seconds=60.0)) as w:
        w.engines["a"].become(fault="cut", at=4)
        w.engines["a"].later = "status"
        stream = await w.ask(COMPLETIONS)
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.resumes("refused") == 1


async def test_a_stream_too_long_for_the_memory_goes_on_but_is_not_resumed() -> None:
    async with world("serve", "serve", resume=Resume(kept_bytes=0)) as w:
        w.engines["a"].become(fault="cut", at=200)
        stream = await w.ask(COMPLETIONS, max_tokens=300)
        assert b'" t199"' in stream
        assert orjson.loads(list(events(stream))[-1])["error"]["code"] == "engine_lost"
        assert w.resumes("too_long") == 1


async def test_an_engines_refusal_in_mid_stream_is_passed_on() -> None:
    async with world("serve", "serve") as w:
        w.engines["a"].become(fault="error_event", error_code=400, at=4)
        stream = await w.ask(COMPLETIONS)
        assert b"scripted refusal" in stream
        assert w.engines["b"].seen == []
        assert w.gateway.registry.get_sample_value(
            "headrace_gateway_requests_total", {"route": COMPLETIONS, "code": "200", "outcome": "broken"}
        )


# Prefill and decode apart


@pytest.mark.parametrize("stream", [True, False])
async def test_a_split_answer_is_split_again(stream: bool) -> None:
    async with world("decode", "decode", "prefill") as w:
        w.engines["a"].become(fault="error_event", at=4)
        got = await w.ask(COMPLETIONS, prompt=list(range(100)), stream=stream)
        found = answer(COMPLETIONS, got) if stream else orjson.loads(got)
        assert found["choices"][0]["text"] == TEXT
        assert stream or found["usage"] == {"prompt_tokens": 100, "completion_tokens": TOKENS, "total_tokens": 112}
        asked = [document["vllm_xargs"]["headrace_replay"] for document in w.seen() if "vllm_xargs" in document]
        assert asked == [[0, 1, 2, 3]] * 2  # of the prefill and of the decode engine
        assert w.engines["b"].computed("external_kv_transfer") == 100
        assert w.resumes("resumed") == 1


async def test_a_late_refusal_of_an_answer_in_one_piece_has_its_status() -> None:
    async with world("decode", "decode", "prefill") as w:
        w.engines["a"].become(fault="error_event", error_code=400, at=4)
        document = request(COMPLETIONS, prompt=list(range(100)), stream=False)
        async with w.client.post(f"http://127.0.0.1:{w.gateway.port}{COMPLETIONS}", json=document) as response:
            assert response.status == 400
            assert (await response.json())["error"]["message"] == "scripted refusal"
        assert w.engines["b"].seen == []


async def test_an_answer_in_one_piece_that_stays_broken_is_an_error_with_a_status() -> None:
    async with world("decode", "decode", "prefill", resume=Resume(max_attempts=1)) as w:
        for name in "ab":
            w.engines[name].become(fault="cut", at=4)
        document = request(COMPLETIONS, prompt=list(range(100)), stream=False)
        async with w.client.post(f"http://127.0.0.1:{w.gateway.port}{COMPLETIONS}", json=document) as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "engine_failed"


# The client


async def test_a_client_that_leaves_while_its_stream_waits_leaves_nothing_behind() -> None:
    async with world("serve") as w:
        w.engines["a"].become(fault="cut", at=400)
        w.engines["a"].later = "status"
        asked = asyncio.create_task(w.ask(COMPLETIONS, max_tokens=500))
        await until(lambda: len(w.engines["a"].seen) >= 2)
        assert w.gateway._flow.kept.used > 0
        asked.cancel()
        await until(lambda: w.gateway._flow.kept.used == 0)
        await until(lambda: w.gateway.registry.get_sample_value("headrace_gateway_requests_in_flight") == 0)

"""OpenAI's own client before a gateway and simulated engines; and what reaches an engine of what a client sends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import openai
import orjson
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.serve import Gateway
from tests.surface import CASES, Case

MODEL = "org/fake"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass
class World:
    url: str
    gateway: Gateway
    engines: dict[str, FakeEngine]
    client: aiohttp.ClientSession

    async def post(self, path: str, document: dict[str, Any], **headers: str) -> tuple[int, bytes, str]:
        """Status, body and the engine that answered."""
        async with self.client.post(self.url + path, json=document, headers=headers) as response:
            return response.status, await response.read(), response.headers.get("x-headrace-decode", "")


@asynccontextmanager
async def world(*names: str, silence: float = 30.0, **script: Any) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        engines = {name: FakeEngine(Script(model=MODEL, **script)) for name in names}
        endpoints = [
            Endpoint(name=name, url=await stack.enter_async_context(engine.serving()), role="serve", revision="r")
            for name, engine in engines.items()
        ]
        gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name=MODEL,
                discovery=FixedDiscovery(endpoints=tuple(endpoints)),
                silence_seconds=silence,
                access_log=False,
                drain_seconds=0.0,
                port=0,
                admin_port=0,
            )
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        async with asyncio.timeout(20):
            while not (gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots())):
                await asyncio.sleep(0.005)
        yield World(f"http://127.0.0.1:{gateway.port}", gateway, engines, client)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_openais_client_gets_what_it_asks_for(case: Case) -> None:
    async with world("engine") as w:
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0) as client:
            await case(client, MODEL)


async def test_a_tool_call_of_the_engine_reaches_the_client_part_by_part() -> None:
    async with world("engine", calls_tool=True) as w:
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "go"}], max_completion_tokens=3, stream=True
            )
            parts = [
                call for one in [o async for o in stream] for c in one.choices for call in c.delta.tool_calls or []
            ]
        assert [part.function.arguments for part in parts if part.function] == [" t0", " t1", " t2"]


async def test_embeddings_come_from_an_engine_that_has_them() -> None:
    async with world("engine", embedding=4) as w:
        async with openai.AsyncOpenAI(base_url=f"{w.url}/v1", api_key="none", max_retries=0) as client:
            found = await client.embeddings.create(model=MODEL, input=["water", "fire"], encoding_format="float")
        assert [one.embedding for one in found.data] == [[0.5] * 4] * 2
        assert w.gateway.registry.get_sample_value(
            "headrace_gateway_requests_total", {"route": "/v1/embeddings", "code": "200", "outcome": "answered"}
        )


EVERYTHING: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": None, "tool_calls": []}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "logprobs": True,
    "top_logprobs": 3,
    "n": 2,
    "seed": 7,
    "logit_bias": {"5": 1.5},
    "stop": ["END", "\u00fc"],
    "temperature": 0.25,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "reasoning_effort": "low",
    "chat_template_kwargs": {"enable_thinking": False},
    "structured_outputs": {"regex": "a+"},
    "vllm_xargs": {"mine": 1},
    "a_field_of_tomorrow": {"x": [1, None, 1e-9]},
    "max_completion_tokens": 2,
}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/completions"])
async def test_every_field_of_a_request_reaches_the_engine_as_it_was(path: str, stream: bool) -> None:
    document = {**EVERYTHING, "stream": stream, "prompt": "go", "input": "go", "max_output_tokens": 2}
    if not stream:
        del document["stream_options"]
    async with world("engine") as w:
        status, body, _ = await w.post(path, document)
        assert status == 200, body
        assert w.engines["engine"].seen == [document]


async def test_what_the_engine_says_reaches_the_client_byte_for_byte() -> None:
    document = {**EVERYTHING, "stream": True}
    async with world("engine") as w:
        _, through, _ = await w.post("/v1/chat/completions", document)
        async with w.client.post(f"{w.engines['engine'].url}/v1/chat/completions", json=document) as response:
            direct = await response.read()
        assert through.replace(b"fake-0", b"ID") == direct.replace(b"fake-1", b"ID")


async def test_trace_context_and_request_id_go_to_the_engine_and_nothing_else_of_a_clients_headers() -> None:
    document = {"model": MODEL, "prompt": "go", "max_tokens": 1}
    async with world("engine") as w:
        await w.post(
            "/v1/completions",
            document,
            traceparent=PARENT,
            tracestate="a=1,b=2",
            authorization="Bearer secret",
            cookie="a=b",
            **{"x-request-id": "mine-7", "x-forwarded-for": "1.2.3.4", "x-data-parallel-rank": "3"},
        )
        sent = w.engines["engine"].headers[0]
        assert (sent["traceparent"], sent["tracestate"], sent["x-request-id"]) == (PARENT, "a=1,b=2", "mine-7")
        assert sent.keys() == {"host", "content-type", "content-length", "traceparent", "tracestate", "x-request-id"}


@pytest.mark.parametrize(
    ("parent", "state", "kept"),
    [
        ("", "a=1", set()),
        ("nonsense", "a=1", set()),
        (PARENT + "\t", "a=1", set()),
        (PARENT.upper(), "a=1", set()),
        (PARENT, "a=" + "1" * 600, {"traceparent"}),
        (PARENT, "\x80=1", {"traceparent"}),
    ],
)
async def test_trace_context_that_is_none_stays_here(parent: str, state: str, kept: set[str]) -> None:
    async with world("engine") as w:
        body = orjson.dumps({"model": MODEL, "prompt": "go", "max_tokens": 1})
        reader, writer = await _connect(w)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}traceparent: {parent}\r\ntracestate: {state}\r\n\r\n".encode("latin-1") + body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        assert w.engines["engine"].headers[0].keys() & {"traceparent", "tracestate"} == kept


async def test_a_response_whose_engine_fails_before_its_first_token_is_begun_anew_elsewhere() -> None:
    async with world("one", "two") as w:
        w.engines["one"].become(fault="cut", at=0)
        for _ in range(4):
            document = {"model": MODEL, "input": "go", "max_output_tokens": 3, "stream": True}
            status, body, engine = await w.post("/v1/responses", document)
            assert (status, engine, body.count(b"event: response.created")) == (200, "two", 1)
            assert b"event: response.completed" in body


async def test_a_response_that_only_began_does_not_hide_a_hung_engine() -> None:
    async with world("one", "two", silence=1.0) as w:
        w.engines["one"].become(fault="stall", at=0)
        document = {"model": MODEL, "input": "go", "max_output_tokens": 3, "stream": True}
        answers = [await w.post("/v1/responses", document) for _ in range(2)]
        assert [(status, engine) for status, _, engine in answers] == [(200, "two")] * 2
        assert w.gateway.fleet.quarantined["silent"] >= 1


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"])
async def test_a_body_that_is_none_is_refused_on_every_route(path: str) -> None:
    async with world("engine") as w:
        for body in (b"", b"[]", b"{", b'{"model": 5}', b'{"model": "another"}'):
            async with w.client.post(w.url + path, data=body) as response:
                assert response.status in (400, 404)
                assert (await response.json())["error"]["type"] == "invalid_request_error"


async def _connect(w: World) -> Any:

    return await asyncio.open_connection("127.0.0.1", w.gateway.port)

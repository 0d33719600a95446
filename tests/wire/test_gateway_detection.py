"""A gateway before simulated engines that die, hang, stutter or merely work: who is found, how soon, and who is not."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from headrace_runtime.contract import Endpoint, FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.fleet import Slot
from headrace_runtime.gateway.serve import Gateway

pytestmark = pytest.mark.slow

SILENCE = 0.5
LIMIT = 20.0
"""Of every wait here, in seconds: what is asserted is that something happens, on whatever machine."""


class World:
    def __init__(self, gateway: Gateway, engines: dict[str, FakeEngine], client: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.engines = engines
        self.client = client

    def slot(self, name: str) -> Slot:
        return next(slot for slot in self.gateway.fleet.slots() if slot.endpoint.name == name)

    @property
    def suspected(self) -> int:
        """How often an engine was put out for what it did with requests. On a starved machine a health check may be
        late, which is no error of this kind."""
        reasons = self.gateway.fleet.quarantined
        return sum(reasons.values()) - reasons["unhealthy"]

    def reason(self, name: str) -> str:
        return self.slot(name).breaker.reason

    async def ask(self, **fields: Any) -> tuple[int, str, bytes]:
        """Status, engine and body."""
        document = {"model": "fake", "prompt": [1, 2, 3], "max_tokens": 5, "stream": True, **fields}
        url = f"http://127.0.0.1:{self.gateway.port}/v1/completions"
        async with self.client.post(url, json=document) as response:
            return response.status, response.headers.get("x-headrace-decode", ""), await response.read()

    async def admin(self, path: str) -> aiohttp.ClientResponse:
        async with self.client.get(f"http://127.0.0.1:{self.gateway.admin_port}{path}") as response:
            await response.read()
            return response

    async def metrics(self) -> str:
        return await (await self.admin("/metrics")).text()


async def until(what: Callable[[], bool], seconds: float = LIMIT) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def world(*names: str, silence: float = SILENCE, **contract: Any) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        engines = {name: FakeEngine(Script()) for name in names}
        endpoints = [
            Endpoint(
                name=name,
                url=await stack.enter_async_context(engine.serving()),
                role="prefill" if name.startswith("prefill") else "decode",
                revision="r1",
            )
            for name, engine in engines.items()
        ]
        discovery = FixedDiscovery(endpoints=tuple(endpoints))
        settings = {"access_log": False, "drain_seconds": 0.0, "port": 0, "admin_port": 0, **contract}
        gateway = Gateway(
            GatewayContract(
                namespace="n",
                deployment="d",
                served_name="fake",
                discovery=discovery,
                silence_seconds=silence,
                **settings,
            )
        )
        client = await stack.enter_async_context(aiohttp.ClientSession())
        await stack.enter_async_context(gateway.running())
        await until(lambda: gateway.fleet.discovered and all(slot.healthy for slot in gateway.fleet.slots()))
        yield World(gateway, engines, client)


async def test_engines_that_work_stay_in_and_are_asked_for_nothing_but_their_health() -> None:
    async with world("decode-0", "decode-1", silence=10.0) as w:
        for engine in w.engines.values():
            engine.become(itl=0.02)
        answers = await asyncio.gather(*(w.ask(max_tokens=60) for _ in range(4)))
        assert {status for status, _, _ in answers} == {200}
        assert sum(len(engine.seen) for engine in w.engines.values()) == 4
        assert not w.suspected


@pytest.mark.parametrize("fault", ["hang", "stall"], ids=["front end and engine", "the engine behind its front end"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_hung_engine_is_found_and_its_waiting_requests_answered_elsewhere(fault: Any, stream: bool) -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(fault=fault)
        answers = await asyncio.gather(*(w.ask(stream=stream) for _ in range(4)))
        assert [(status, engine) for status, engine, _ in answers] == [(200, "decode-1")] * 4
        assert w.reason("decode-0") in ("silent", "unhealthy")
        assert w.slot("decode-1").healthy


async def test_a_hung_engine_comes_back_by_a_token_and_not_by_its_health() -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(fault="stall")
        await asyncio.gather(*(w.ask() for _ in range(2)))
        assert w.reason("decode-0") == "silent"
        probes = len(w.engines["decode-0"].seen)
        await until(lambda: len(w.engines["decode-0"].seen) > probes)
        assert not w.slot("decode-0").healthy
        w.engines["decode-0"].become(fault="none")
        await until(lambda: w.slot("decode-0").healthy)
        assert {engine for _, engine, _ in [await w.ask() for _ in range(2)]} == {"decode-0", "decode-1"}


async def test_streams_that_began_are_taken_from_an_engine_that_hangs() -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(itl=0.01)
        w.engines["decode-1"].become(itl=0.001)
        asked = [asyncio.create_task(w.ask(max_tokens=1000)) for _ in range(2)]
        await until(lambda: any(watch.answer.beats > 2 for watch in w.slot("decode-0").watches))
        w.engines["decode-0"].become(fault="hang")
        async with asyncio.timeout(2 * LIMIT):
            answers = await asyncio.gather(*asked)
        assert [(status, body.count(b"[DONE]"), b"engine_lost" in body) for status, _, body in answers] == [
            (200, 1, False)
        ] * 2
        for number in (0, 500, 999):
            assert all(body.count(b'" t%d"' % number) == 1 for _, _, body in answers)
        assert w.reason("decode-0") in ("silent", "unhealthy")
        assert w.slot("decode-1").healthy


async def test_a_long_prompt_is_not_taken_for_a_hang() -> None:
    async with world("decode-0", "decode-1") as w:
        for engine in w.engines.values():
            engine.become(prefill_rate=1000.0)
        status, _, _ = await w.ask(prompt=[1] * 2000)
        assert status == 200
        assert not w.suspected
        assert sum(engine.aborted for engine in w.engines.values()) <= 1  # a question that was not needed any more


async def test_a_long_answer_in_one_piece_is_not_taken_for_a_hang() -> None:
    async with world("decode-0", "decode-1", silence=2.0) as w:
        for engine in w.engines.values():
            engine.become(itl=0.1)
        status, _, _ = await w.ask(stream=False, max_tokens=50)
        assert status == 200
        assert not w.suspected


async def test_a_full_engine_that_leaves_the_question_waiting_is_known_by_its_counters() -> None:
    async with world("decode-0", "decode-1", silence=3.0) as w:
        for engine in w.engines.values():
            engine.become(itl=0.1)
        asked = asyncio.create_task(w.ask(stream=False, max_tokens=60))
        await until(lambda: any(engine.running for engine in w.engines.values()))
        for engine in w.engines.values():
            engine.become(ttft=60.0)  # whoever comes now has to wait
        assert (await asked)[0] == 200
        assert sum(len(engine.seen) for engine in w.engines.values()) > 1
        assert not w.suspected


async def test_a_client_that_reads_nothing_puts_no_engine_out() -> None:
    async with world("decode-0", "decode-1", silence=2.0) as w:
        body = b'{"model":"fake","prompt":[1],"max_tokens":400000,"stream":true}'
        for engine in w.engines.values():
            engine.become(burst=1000, max_model_len=10**6)
        with socket.create_connection(("127.0.0.1", w.gateway.port)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            head = f"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            await until(lambda: any(watch.answer.paused for slot in w.gateway.fleet.slots() for watch in slot.watches))
            held = time.monotonic()
            await until(lambda: time.monotonic() > held + 3.0)
            assert (await w.ask())[0] == 200
        assert not w.suspected


async def test_bad_requests_put_no_engine_out() -> None:
    async with world("decode-0") as w:
        for _ in range(10):
            assert (await w.ask(prompt=[1] * 5000))[0] == 400
        assert not w.suspected


@pytest.mark.parametrize(
    "fault", [{"fault": "status", "error_code": 500}, {"fault": "error_line"}, {"fault": "reset"}], ids=str
)
async def test_an_engine_that_fails_several_requests_is_left_alone_for_a_while(fault: dict[str, Any]) -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(**fault)
        deadline = time.monotonic() + LIMIT
        while not w.gateway.fleet.quarantined.keys() & {"status", "error_event", "reset"}:
            assert (await w.ask())[:2] == (200, "decode-1")
            assert time.monotonic() < deadline
        w.engines["decode-0"].become(fault="none")
        await until(lambda: w.slot("decode-0").healthy)


async def test_a_dead_engine_is_out_before_anybody_asks_it() -> None:
    async with world("decode-0", "decode-1") as w:
        async with FakeEngine().serving() as gone:
            pass
        w.slot("decode-0").endpoint = w.slot("decode-0").endpoint.model_copy(update={"url": gone})
        began = time.monotonic()
        await until(lambda: w.reason("decode-0") == "connect")
        assert time.monotonic() - began < LIMIT / 2
        assert (await w.ask())[1] == "decode-1"


async def test_with_all_engines_in_quarantine_requests_are_still_tried() -> None:
    async with world("decode-0", "decode-1") as w:
        for slot in w.gateway.fleet.slots():
            w.gateway.fleet.failed(slot.endpoint, "connect")
        assert [slot.routable for slot in w.gateway.fleet.slots()] == [False, False]
        assert (await w.ask())[0] == 200


async def test_the_admin_port_tells_who_is_out_and_why() -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(healthy=False)
        await until(lambda: w.reason("decode-0") == "unhealthy")
        state = await (await w.admin("/state")).json()
        assert [engine["quarantine"]["reason"] for engine in state["engines"]] == ["unhealthy", ""]
        metrics = await w.metrics()
        assert 'headrace_gateway_quarantines_total{reason="unhealthy"} 1.0' in metrics
        assert 'headrace_gateway_engine_state{engine="decode-1",role="decode",state="closed"} 1.0' in metrics


async def test_a_link_that_hung_is_not_tried_by_every_request() -> None:
    async with world("prefill-0", "decode-0", silence=30.0, transfer_seconds=0.3) as w:
        w.engines["decode-0"].become(fault="hang_transfer")
        for _ in range(5):
            assert (await w.ask(prompt=[1] * 100))[0] == 200
        assert w.gateway.fleet.links.quarantined() == [("prefill-0", "decode-0")]
        split = [document for document in w.engines["decode-0"].seen if "kv_transfer_params" in document]
        assert 1 <= len(split) <= 3  # on a machine that takes seconds for five requests, one may try again
        w.engines["decode-0"].become(fault="none")
        deadline = time.monotonic() + LIMIT
        while w.gateway.fleet.links.quarantined() and time.monotonic() < deadline:
            assert (await w.ask(prompt=[1] * 100))[0] == 200
            await asyncio.sleep(0.1)
        assert w.gateway.fleet.links.quarantined() == []

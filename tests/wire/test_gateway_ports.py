"""What a running gateway shows and does beside requests: its ports, its end, and its first moments."""

import asyncio
from collections.abc import Awaitable

import aiohttp
import orjson
import pytest

from headrace_runtime.contract import FixedDiscovery, GatewayContract
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.serve import Gateway
from tests.wire.gateways import SHORT, TEXT, TOKENS, Got, endpoint, until, world


async def test_the_admin_port_tells_of_engines_and_requests() -> None:
    async with world("prefill-0", "decode-0") as w:
        await w.ask()
        admin = f"http://127.0.0.1:{w.gateway.admin_port}"

        async def get(path: str) -> bytes:
            async with w.client.get(admin + path) as response:
                assert response.status == 200
                return await response.read()

        assert await get("/healthz") == b"ok\n"
        assert await get("/readyz") == b"ready\n"
        state = orjson.loads(await get("/state"))
        assert {(one["name"], one["healthy"], one["load"]) for one in state["engines"]} == {
            ("prefill-0", True, 0),
            ("decode-0", True, 0),
        }
        metrics = await get("/metrics")
        assert b'headrace_gateway_requests_total{code="200",outcome="answered",route="/v1/completions"} 1.0' in metrics
        assert b'headrace_gateway_engines{role="decode",state="routable"} 1.0' in metrics


async def test_public_routes_answer_and_others_do_not() -> None:
    async with world("decode-0") as w:

        async def status(method: str, path: str) -> tuple[int, bytes]:
            async with w.client.request(method, w.url + path) as response:
                return response.status, await response.read()

        assert (await status("GET", "/health"))[0] == 200
        assert orjson.loads((await status("GET", "/v1/models"))[1])["data"][0]["id"] == "fake"
        assert (await status("GET", "/v1/completions"))[0] == 405
        assert (await status("GET", "/v1/models/fake"))[0] == 200
        w.gateway.fleet.publish([])
        assert (await status("GET", "/health"))[0] == 503


ENGINES_OWN = (
    "/metrics", "/load", "/version", "/server_info", "/tokenizer_info", "/kv_event_sources", "/is_sleeping", "/sleep",
    "/wake_up", "/pause", "/resume", "/abort_requests", "/reset_prefix_cache", "/reset_mm_cache", "/collective_rpc",
    "/release_kv_cache_memory", "/update_weights", "/init_weight_transfer_engine", "/scale_elastic_ep", "/profile",
    "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/invocations", "/ping", "/docs", "/openapi.json",
    "/v1/completions/render", "/inference/v1/generate", "/v1/responses/resp_1", "/v1/responses/resp_1/cancel",
    "/v1//completions", "/v1/completions/", "/%76%31/completions", "/v1/completions/../../sleep",
)  # fmt: skip


@pytest.mark.parametrize("path", ENGINES_OWN)
async def test_no_other_route_of_an_engine_is_reached(path: str) -> None:
    async with world("decode-0") as w:
        for method in ("GET", "POST"):
            reader, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port)
            writer.write(f"{method} {path} HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
            writer.close()
        assert w.engines["decode-0"].seen == []


async def test_draining_lets_streams_end_and_takes_nothing_new() -> None:
    asked: Awaitable[Got] | None = None
    async with world("decode-0", drain_seconds=10.0) as w:
        w.engines["decode-0"].become(itl=0.05)
        asked = asyncio.create_task(w.ask())
        await until(lambda: w.engines["decode-0"].running == 1)
        drained = asyncio.create_task(w.gateway._server.drain(10.0))
        await until(lambda: w.gateway._server.draining)
        async with w.client.get(f"http://127.0.0.1:{w.gateway.admin_port}/readyz") as response:
            assert response.status == 503
        with pytest.raises(aiohttp.ClientConnectionError):
            async with aiohttp.ClientSession() as other, other.get(w.url + "/health"):
                pass
        assert (await asked).text == TEXT
        assert await drained == 0


async def test_draining_cuts_what_outlasts_its_deadline() -> None:
    async with world("decode-0") as w:
        w.engines["decode-0"].become(itl=30.0)
        asked = asyncio.create_task(w.ask())
        await until(lambda: w.engines["decode-0"].running == 1)
        assert await w.gateway._server.drain(0.1) == 1
        with pytest.raises(aiohttp.ClientPayloadError):
            await asked


async def test_an_unhealthy_engine_is_left_out_and_comes_back() -> None:
    async with world("decode-0", "decode-1") as w:
        w.engines["decode-0"].become(healthy=False)
        await until(
            lambda: not next(slot for slot in w.gateway.fleet.slots() if slot.endpoint.name == "decode-0").healthy
        )
        assert {(await w.ask()).headers["x-headrace-decode"] for _ in range(3)} == {"decode-1"}
        w.engines["decode-0"].become(healthy=True)
        await until(lambda: all(slot.healthy for slot in w.gateway.fleet.slots()))


async def test_a_gateway_that_just_started_asks_its_engines_before_it_refuses() -> None:
    async with FakeEngine(Script()).serving() as url, aiohttp.ClientSession() as client:
        discovery = FixedDiscovery(endpoints=(endpoint("serve-0", url),))
        ports = {"port": 0, "admin_port": 0, "access_log": False, "drain_seconds": 0.0}
        contract = {"namespace": "n", "deployment": "d", "served_name": "fake", "discovery": discovery}
        gateway = Gateway(GatewayContract.model_validate({**contract, **ports}))
        async with gateway.running():
            assert gateway.fleet.unheard
            document = {"model": "fake", "prompt": SHORT, "max_tokens": TOKENS}
            async with client.post(f"http://127.0.0.1:{gateway.port}/v1/completions", json=document) as response:
                assert response.status == 200, await response.read()
            assert not gateway.fleet.unheard

"""What is read from an engine's metrics; an engine that no longer generates is noticed behind a good /health."""

import asyncio
import time
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.node.output import ERROR
from headrace_runtime.node.readiness import (
    KV_USED,
    RUNNING,
    WAITING,
    Client,
    Health,
    Intervals,
    Load,
    parse_load,
    watch,
    watch_quiet,
)

QUICK = Intervals(starting=0.02, health=0.02, health_timeout=0.2, token_timeout=0.1, progress=0.05)


def test_requests_are_those_running_and_waiting() -> None:
    text = (
        'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_waiting{engine="0"} 3.0\n'
        '# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{engine="0"} 40.0\n'
        "# TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_sum 10.0\n"
    )
    assert parse_load(text) == Load(requests=5.0, progress=50.0)


async def test_while_draining_blocks_that_are_still_to_be_fetched_count_like_a_request() -> None:
    metrics = {RUNNING: 1, WAITING: 0, KV_USED: 0.2}

    async def tell(request: web.Request) -> web.Response:
        return web.Response(text="".join(f"{name} {value}\n" for name, value in metrics.items()))

    app, health = web.Application(), Health()
    app.router.add_get("/metrics", tell)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        load = await (client := Client(session, str(server.make_url("")).rstrip("/"), "m")).load(5.0)
        assert load == Load(requests=1.0, progress=0.0, kv_used=0.2)
        watching = asyncio.create_task(watch_quiet(client, health, Intervals(draining=0.01), time.monotonic))
        async with asyncio.timeout(10):
            for still in ({RUNNING: 0}, {RUNNING: 0, WAITING: 1, KV_USED: 0.0}):
                metrics.update(still)
                began = time.monotonic()
                while time.monotonic() - began < 0.1:
                    await asyncio.sleep(0.01)
                    assert health.quiet_since is None
            metrics.update({WAITING: 0})
            while health.quiet_since is None:
                await asyncio.sleep(0.01)
        watching.cancel()


@pytest.mark.parametrize("text", ["", "python_info 1.0\n"])
def test_metrics_that_count_no_requests_say_nothing(text: str) -> None:
    assert parse_load(text) is None


async def test_ready_takes_a_token_and_not_only_a_good_health() -> None:
    health = Health()
    async with FakeEngine(Script(model="m", fault="status")).serving("127.0.0.1", 0) as url:
        async with aiohttp.ClientSession() as session:
            watching = asyncio.create_task(watch(Client(session, url, "m"), health, QUICK, time.monotonic))
            async with asyncio.timeout(5):
                while not health.error:
                    await asyncio.sleep(0.01)
            watching.cancel()
    assert health.ready_at is None
    assert health.error == "the first request was answered with status 503"


async def test_an_engine_that_hangs_behind_its_front_end_makes_no_progress() -> None:
    health, engine = Health(), FakeEngine(Script(model="m"))
    async with engine.serving("127.0.0.1", 0) as url:
        async with aiohttp.ClientSession() as session:
            watching = asyncio.create_task(watch(Client(session, url, "m"), health, QUICK, time.monotonic))
            async with asyncio.timeout(5):
                while health.ready_at is None:
                    await asyncio.sleep(0.01)
                engine.become(fault="stall")
                while time.monotonic() - health.progressed_at < 0.5:
                    await asyncio.sleep(0.01)
            watching.cancel()
    assert health.failures == 0


async def test_what_hangs_owes_an_answer_and_what_answers_owes_none() -> None:
    health, engine = Health(), FakeEngine(Script(model="m"))
    async with engine.serving("127.0.0.1", 0) as url:
        async with aiohttp.ClientSession() as session:
            patient = replace(QUICK, token_timeout=30.0)
            watching = asyncio.create_task(watch(Client(session, url, "m"), health, patient, time.monotonic))
            async with asyncio.timeout(10):
                while health.ready_at is None:
                    await asyncio.sleep(0.01)
                engine.become(fault="stall")
                while health.owing(time.monotonic()) != "core":
                    assert health.owing(time.monotonic()) is None
                    await asyncio.sleep(0.01)
                engine.become(fault="hang")
                while health.owing(time.monotonic()) != "front":
                    await asyncio.sleep(0.01)
                engine.become(fault="none")
                while health.owing(time.monotonic()) == "front":
                    await asyncio.sleep(0.01)
            watching.cancel()


async def test_what_is_sent_through_the_core_of_an_idle_engine_is_over_as_it_comes() -> None:
    engine = FakeEngine(Script(model="m", prefill_rate=1.0))
    async with engine.serving("127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
        assert await Client(session, url, "m").pass_through(30.0) == ""
    assert engine.seen[-1]["vllm_xargs"] == {REPLAY_FIELD: [0]}
    assert engine.seen[-1]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ValueError: max_model_len is too large", "ValueError: max_model_len is too large"),
        ("(EngineCore pid=7) ERROR 11-21 [core.py:9] torch.OutOfMemoryError: tried", "torch.OutOfMemoryError: tried"),
        ("INFO: 127.0.0.1 - GET /health", None),
        ('  File "x.py", line 3, in run', None),
    ],
)
def test_an_exceptions_line_is_told_from_the_rest(line: str, told: str | None) -> None:
    found = ERROR.search(line)
    assert (found[1] if found else None) == told

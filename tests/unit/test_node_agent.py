"""The agent with a simulated engine as a real process: what it says and does when the engine, or a file, misbehaves."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from headrace_runtime.contract import Backoff, Engine, Integrity, KvDisk, KvTiers, Model, NodeContract, NodeState, Place
from headrace_runtime.engine.arguments import Command
from headrace_runtime.node.agent import Agent, Image
from headrace_runtime.node.decide import Verdict
from headrace_runtime.node.engine import EngineParts
from headrace_runtime.node.http import application, listen
from headrace_runtime.node.launch import PlainLauncher
from headrace_runtime.node.output import Output
from headrace_runtime.node.process import Children
from headrace_runtime.node.readiness import Client, Intervals
from headrace_runtime.node.sessions import members
from tests import models

pytestmark = pytest.mark.slow

FAKE = [sys.executable, "-m", "headrace_runtime.engine.fake"]
CRASH = [sys.executable, "-c", "raise ValueError('max_model_len 99 is too large')"]
QUICK = Intervals(starting=0.05, health=0.05, health_timeout=0.3, progress=0.2, draining=0.05, token_timeout=1.0)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Running:
    agent: Agent
    url: str
    engine_url: str
    session: aiohttp.ClientSession
    task: asyncio.Task[None]

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.text()

    async def state(self) -> NodeState:
        return NodeState.model_validate_json((await self.get("/state"))[1])

    async def until(self, condition: Callable[[NodeState], bool]) -> NodeState:
        async with asyncio.timeout(40):
            while not condition(state := await self.state()):
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.03)
        return state


@asynccontextmanager
async def running(
    folder: Path,
    program: list[str] = FAKE,
    integrity: Integrity | None = None,
    lacks: Verdict | None = None,
    options: tuple[str, ...] = (),
    backoff: Backoff | None = None,
    *,
    tiers: KvTiers | None = None,
    drain_seconds: float = 20,
) -> AsyncIterator[Running]:
    model = folder / "model"
    models.write(model)
    contract = NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", path=str(model), served_name="m", integrity=integrity or Integrity()),
        engine=Engine(kv_tiers=tiers),
        backoff=backoff or Backoff(base_seconds=0.05, max_restarts=2),
        drain_seconds=drain_seconds,
    )
    place = Place(name="chat-serve-r1-0", address="127.0.0.1", engine_port=free_port(), agent_port=free_port())
    children = Children()
    children.adopt_orphans()
    output = Output(folder / "engine.log")
    argv = ["--port", str(place.engine_port), "--model", "m", *options] if program is FAKE else []
    engine_url = f"http://127.0.0.1:{place.engine_port}"
    async with aiohttp.ClientSession() as session:
        launcher, command = PlainLauncher(children, program), Command(tuple(argv), {})
        parts = EngineParts(lambda _weights: command, launcher, Client(session, engine_url, "m"), output, QUICK)
        agent = Agent(contract, place, Image("0.32.0", lacks), parts)
        runner = await listen(application(agent), place)
        task = asyncio.create_task(agent.run())
        try:
            yield Running(agent, f"http://127.0.0.1:{place.agent_port}", engine_url, session, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()
            output.close()


def ready(state: NodeState) -> bool:
    return state.phase == "Ready"


async def test_an_engine_becomes_ready_and_stays_so(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        assert (await node.get("/readyz"))[0] == 503
        state = await node.until(ready)
        assert state.reason == ""
        assert state.weights.verified is True
        assert state.ready_seconds
        assert state.engine_pid
        assert (await node.get("/readyz")) == (200, "Ready\n")
        assert (await node.get("/healthz"))[0] == 200


async def test_its_metrics_carry_the_phase(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        await node.until(ready)
        text = (await node.get("/metrics"))[1]
        assert 'headrace_node_phase{phase="Ready"} 1.0' in text
        assert "headrace_node_engine_restarts_total 0.0" in text
        assert "headrace_node_weights_verified 1.0" in text
        assert "headrace_node_weights_verified_at_seconds 1." in text


async def test_its_state_and_metrics_carry_how_kv_blocks_on_disk_are(tmp_path: Path) -> None:
    tiers = KvTiers(host_bytes=1 << 20, disk=KvDisk(size_bytes=1 << 30))
    async with running(tmp_path, integrity=Integrity(policy="Off"), tiers=tiers) as node:
        state = await node.until(ready)
        assert state.kv
        assert (state.kv.ready, state.kv.reason) == (False, "WeightsUnverified")
        assert 'headrace_kv_reason{reason="WeightsUnverified"} 1.0' in (await node.get("/metrics"))[1]


async def test_a_supervisor_is_shown_while_it_is_heard(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        async with node.session.post(f"{node.url}/supervise", json={"actor": "a1"}) as answer:
            assert NodeState.model_validate_json(await answer.text()).supervisor == "a1"
        for body in (b"", b"[]", b'{"actor": 3}', b'{"actor": ""}'):
            async with node.session.post(f"{node.url}/supervise", data=body) as answer:
                assert answer.status == 400


async def test_a_killed_engine_is_ready_again(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        first = await node.until(ready)
        assert first.engine_pid
        os.kill(first.engine_pid, signal.SIGKILL)
        again = await node.until(lambda state: ready(state) and state.engine_pid != first.engine_pid)
        assert again.engine_restarts == 1
        assert again.failure
        assert again.failure.reason == "EngineFailed"
        assert members(first.engine_pid) == set()


async def test_a_hung_engine_is_found_and_started_again(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        first = await node.until(ready)
        assert first.engine_pid
        os.kill(first.engine_pid, signal.SIGSTOP)
        again = await node.until(lambda state: ready(state) and state.engine_pid != first.engine_pid)
        assert again.engine_restarts == 1


async def test_a_crash_loop_ends_and_tells_the_engines_own_error(tmp_path: Path) -> None:
    async with running(tmp_path, program=CRASH) as node:
        state = await node.until(lambda state: state.phase == "Failed")
        assert state.reason == "RestartBudgetSpent"
        assert state.engine_restarts == 2
        assert "ValueError: max_model_len 99 is too large" in state.message
        assert (await node.get("/healthz"))[0] == 200


async def test_between_two_starts_it_says_why_it_waits(tmp_path: Path) -> None:
    async with running(tmp_path, program=CRASH, backoff=Backoff(base_seconds=60)) as node:
        state = await node.until(lambda state: "(restart 1 of 10)" in state.message)
        assert (state.phase, state.reason) == ("BackOff", "EngineFailed")
        assert state.message.startswith("the engine ended with exit code 1: ValueError: max_model_len 99")


async def test_a_program_that_cannot_be_started_is_a_failed_engine(tmp_path: Path) -> None:
    async with running(tmp_path, program=["/nowhere/vllm"]) as node:
        state = await node.until(lambda state: state.phase == "Failed")
        assert "/nowhere/vllm cannot be started: No such file or directory" in state.message


async def test_wrong_weights_never_start_an_engine(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    program = [sys.executable, "-c", f"open({str(marker)!r}, 'w').close()"]
    wrong = Integrity(digest="sha256:" + "0" * 64)
    async with running(tmp_path, program=program, integrity=wrong) as node:
        state = await node.until(lambda state: state.phase == "Failed")
        assert state.reason == "DigestMismatch"
        assert state.weights.verified is False
        assert (await node.get("/readyz")) == (503, "Failed DigestMismatch\n")
    assert not marker.exists()


async def test_a_warning_lets_the_engine_start(tmp_path: Path) -> None:
    async with running(tmp_path, integrity=Integrity(policy="Warn", digest="sha256:" + "0" * 64)) as node:
        state = await node.until(ready)
        assert state.weights.verified is False
        assert state.weights.problems


async def test_bits_that_flip_under_an_engine_end_it_after_its_streams_until_they_are_repaired(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    options = ("--tokens", "30", "--itl", "0.05")
    async with running(tmp_path, integrity=Integrity(rescan_seconds=0.1), options=options) as node:
        first = await node.until(ready)
        assert first.engine_pid
        question = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 30}
        async with node.session.post(f"{node.engine_url}/v1/completions", json=question) as stream:
            await stream.content.readline()
            good = weights.read_bytes()
            weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
            state = await node.until(lambda state: state.phase == "Draining")
            assert state.reason == "DigestMismatch"
            assert (await node.get("/readyz")) == (503, "Draining DigestMismatch\n")
            assert (await stream.text()).rstrip().endswith("data: [DONE]")
        state = await node.until(lambda state: state.phase == "Failed")
        assert (state.reason, state.engine_pid, state.weights.verified) == ("DigestMismatch", None, False)
        assert members(first.engine_pid) == set()
        weights.write_bytes(good)
        again = await node.until(ready)
        assert (again.weights.verified, again.reason) == (True, "")


async def test_an_image_without_an_engine_is_said_and_nothing_is_tried(tmp_path: Path) -> None:
    async with running(tmp_path, lacks=Verdict("EngineMissing", "the image has no vLLM")) as node:
        state = await node.until(lambda state: state.phase == "Failed")
        assert (state.reason, state.engine_pid, state.engine_restarts) == ("EngineMissing", None, 0)


async def test_a_drain_lets_a_running_stream_end(tmp_path: Path) -> None:
    async with running(tmp_path, options=("--tokens", "30", "--itl", "0.05")) as node:
        await node.until(ready)
        question = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 30}
        async with node.session.post(f"{node.engine_url}/v1/completions", json=question) as stream:
            await stream.content.readline()
            node.agent.drain()
            assert (await node.get("/readyz")) == (503, "Draining\n")
            rest = await stream.text()
        assert rest.rstrip().endswith("data: [DONE]")
        async with asyncio.timeout(15):
            await node.task


async def test_what_a_drain_cut_is_told_before_the_agent_leaves(tmp_path: Path) -> None:
    async with running(tmp_path, options=("--tokens", "2000", "--itl", "0.05"), drain_seconds=1.0) as node:
        await node.until(ready)
        question = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 2000}
        async with node.session.post(f"{node.engine_url}/v1/completions", json=question) as stream:
            await stream.content.readline()
            node.agent.drain()
            state = await node.until(lambda state: state.engine_pid is None and bool(state.message))
        assert (state.cut, state.phase, state.message) == (1, "Draining", "requests cut after 1 s: 1")
        assert "headrace_node_requests_cut_total 1.0" in (await node.get("/metrics"))[1]


async def test_an_idle_engine_that_is_asked_to_stay_is_ready_while_it_drains(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        first = await node.until(ready)
        async with node.session.post(f"{node.url}/stay") as answer:
            assert not NodeState.model_validate_json(await answer.text()).staying  # it does not drain at all
        node.agent.drain()
        state = await node.until(lambda state: state.staying)
        assert (state.phase, state.engine_pid) == ("Draining", first.engine_pid)
        assert await node.get("/readyz") == (200, "Draining\n")
        node.agent._stay_until = 0.0  # nobody asked again
        async with asyncio.timeout(20):
            await node.task


async def test_an_idle_engine_drains_in_seconds_and_its_agent_leaves(tmp_path: Path) -> None:
    async with running(tmp_path) as node:
        state = await node.until(ready)
        assert state.engine_pid
        node.agent.drain()
        async with asyncio.timeout(10):
            await node.task
        assert members(state.engine_pid) == set()


async def test_a_drain_before_the_engine_is_ready_does_not_wait(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    async with running(tmp_path, program=sleeper) as node:
        state = await node.until(lambda state: state.engine_pid is not None)
        node.agent.drain()
        async with asyncio.timeout(5):
            await node.task
        assert state.engine_pid
        assert members(state.engine_pid) == set()


@pytest.mark.parametrize("asked", ["/nothing", "/state/"])
async def test_other_paths_are_not_found(tmp_path: Path, asked: str) -> None:
    async with running(tmp_path) as node:
        assert (await node.get(asked))[0] == 404

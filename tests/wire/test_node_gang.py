"""Two agents of one engine over real HTTP: rank 0 with a simulated engine, rank 1 with a program that only lives."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from headrace_runtime.contract import Backoff, Engine, Model, NodeContract, NodeState, Parallelism, Place
from headrace_runtime.engine.arguments import Command
from headrace_runtime.node.agent import Agent, Image
from headrace_runtime.node.engine import EngineParts
from headrace_runtime.node.gang import Follower, Leader, asking
from headrace_runtime.node.http import application, listen
from headrace_runtime.node.launch import PlainLauncher
from headrace_runtime.node.output import Output
from headrace_runtime.node.process import Children
from headrace_runtime.node.readiness import Client, Intervals
from headrace_runtime.node.sessions import members
from tests import models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FAKE = (sys.executable, "-m", "headrace_runtime.engine.fake")
LIVES = (sys.executable, "-c", "import time; time.sleep(600)")
CRASH = (sys.executable, "-c", "raise ValueError('rank 1 has no device')")
QUICK = Intervals(starting=0.05, health=0.05, health_timeout=3, progress=0.2, draining=0.05, token_timeout=5.0)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Pod:
    agent: Agent
    url: str
    session: aiohttp.ClientSession
    task: asyncio.Task[None]

    async def state(self) -> NodeState:
        async with self.session.get(f"{self.url}/state") as answer:
            return NodeState.model_validate_json(await answer.text())

    async def readyz(self) -> int:
        async with self.session.get(f"{self.url}/readyz") as answer:
            return answer.status

    async def until(self, condition: Callable[[NodeState], bool]) -> NodeState:
        async with asyncio.timeout(90):
            while not condition(state := await self.state()):
                if self.task.done():
                    self.task.result()
                await asyncio.sleep(0.05)
        return state


def contract(folder: Path) -> NodeContract:
    return NodeContract(
        namespace="demo",
        deployment="chat",
        revision="r1",
        role="serve",
        model=Model(source="node:///m", path=str(folder / "model"), served_name="m"),
        engine=Engine(parallelism=Parallelism(tensor=2, pods=2)),
        backoff=Backoff(base_seconds=0.05, max_seconds=0.2, max_restarts=3),
        drain_seconds=60,
    )


@asynccontextmanager
async def pod(children: Children, folder: Path, rank: int, leader: str, program: tuple[str, ...]) -> AsyncIterator[Pod]:
    """One agent with its part of the engine. `leader`: `host:port` of rank 0's agent."""
    port = free_port()
    agent_port = int(leader.rpartition(":")[2]) if rank == 0 else free_port()
    place = Place(name=f"chat-serve-r1-0-r{rank}", address="127.0.0.1", engine_port=port, agent_port=agent_port)
    output = Output(folder / f"engine-{rank}.log")
    async with aiohttp.ClientSession() as session:
        client = Client(session, f"http://127.0.0.1:{port}", "m")
        first = Leader(2, ("127.0.0.1", free_port()), time.monotonic) if rank == 0 else None
        gang = first or Follower(rank, place.name, asking(session, leader), time.monotonic)
        argv = ("--port", str(port), "--model", "m") if program is FAKE else ()
        asked = gang if isinstance(gang, Follower) else client
        launcher = PlainLauncher(children, program)
        parts = EngineParts(lambda _: Command(argv, {}), launcher, asked, output, QUICK, gang)
        agent = Agent(contract(folder), place, Image("0.32.0", None), parts)
        runner = await listen(application(agent, first), place)
        task = asyncio.create_task(agent.run())
        try:
            yield Pod(agent, f"http://127.0.0.1:{agent_port}", session, task)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()
            output.close()


def parents() -> Children:
    """Of both agents: one process reaps its children at one place."""
    children = Children()
    children.adopt_orphans()
    return children


@asynccontextmanager
async def two(
    folder: Path, program: tuple[str, ...] = LIVES, leading: tuple[str, ...] = FAKE
) -> AsyncIterator[tuple[Pod, Pod]]:
    children = parents()
    models.write(folder / "model")
    leader = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(pod(children, folder, 0, leader, leading))
        yield first, await stack.enter_async_context(pod(children, folder, 1, leader, program))


def ready(state: NodeState) -> bool:
    return state.phase == "Ready"


async def test_rank_0_waits_for_rank_1_and_both_become_ready(tmp_path: Path) -> None:
    models.write(tmp_path / "model")
    children = parents()
    leader = f"127.0.0.1:{free_port()}"
    async with pod(children, tmp_path, 0, leader, FAKE) as first:
        state = await first.until(lambda state: state.reason == "RanksMissing")
        assert (state.message, state.engine_pid) == ("waits for rank 1, which is not heard", None)
        async with pod(children, tmp_path, 1, leader, LIVES) as second:
            await first.until(ready)
            await second.until(ready)
            assert await second.readyz() == 200
            assert (await second.state()).engine_restarts == 0


async def test_a_part_that_is_killed_has_both_started_anew(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        pids = [(await one.until(ready)).engine_pid or 0 for one in (first, second)]
        os.kill(pids[1], signal.SIGKILL)
        state = await first.until(lambda state: state.engine_restarts == 1 and ready(state))
        again = await second.until(lambda state: ready(state) and state.engine_pid != pids[1])
        assert state.engine_pid != pids[0]
        assert again.engine_pid
        assert members(pids[0]) | members(pids[1]) == set()


async def test_a_pod_that_dies_with_its_part_is_waited_for(tmp_path: Path) -> None:
    models.write(tmp_path / "model")
    children = parents()
    leader = f"127.0.0.1:{free_port()}"
    async with pod(children, tmp_path, 0, leader, FAKE) as first:
        async with pod(children, tmp_path, 1, leader, LIVES):
            await first.until(ready)
        async with pod(children, tmp_path, 1, leader, LIVES) as second:
            state = await first.until(lambda state: state.engine_restarts == 1 and ready(state))
            await second.until(ready)
            assert state.engine_pid


async def test_a_rank_whose_rank_0_dies_ends_its_part_and_joins_the_next(tmp_path: Path) -> None:
    models.write(tmp_path / "model")
    children = parents()
    leader = f"127.0.0.1:{free_port()}"
    async with AsyncExitStack() as stack:
        async with pod(children, tmp_path, 0, leader, FAKE):
            second = await stack.enter_async_context(pod(children, tmp_path, 1, leader, LIVES))
            part = (await second.until(ready)).engine_pid
        await second.until(lambda state: state.engine_pid is None)
        assert members(part or 0) == set()
        first = await stack.enter_async_context(pod(children, tmp_path, 0, leader, FAKE))
        await first.until(ready)
        await second.until(ready)


async def test_a_rank_that_cannot_run_spends_the_budget_of_rank_0_which_says_why(tmp_path: Path) -> None:
    # As vLLM's, rank 0's part answers nobody before all are there.
    async with two(tmp_path, CRASH, leading=LIVES) as (first, second):
        state = await first.until(lambda state: state.phase == "Failed")
        assert (state.reason, state.engine_restarts) == ("RestartBudgetSpent", 3)
        assert "rank 1: the engine ended with exit code 1: ValueError: rank 1 has no device" in state.message
        waits = await second.until(lambda state: state.message == "waits for rank 0, which is in phase Failed")
        assert (waits.phase, waits.reason, waits.engine_pid) == ("Waiting", "RanksMissing", None)
        assert await second.readyz() == 503


async def test_a_rank_that_drains_leaves_once_rank_0_has_no_request_left(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        await second.until(ready)
        second.agent.drain()
        await first.until(lambda state: state.phase in ("Draining", "Waiting"))
        async with asyncio.timeout(90):
            await second.task
        state = await first.until(lambda state: state.engine_pid is None)
        assert state.engine_restarts == 0, "a rank that left is no failure"


async def test_both_leave_when_both_are_told_to(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        await second.until(ready)
        for one in (first, second):
            one.agent.drain()
        async with asyncio.timeout(90):
            await first.task
            await second.task


async def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        stray = {"rank": 7, "pod": "stray", "phase": "Waiting", "willing": True}
        for body, said in (({"rank": 0}, "no report of a rank"), (stray, "none of rank 7")):
            async with first.session.post(f"{first.url}/gang", json=body) as answer:
                assert answer.status == 400
                assert said in await answer.text()
        async with first.session.post(f"{second.url}/gang", json=stray) as answer:
            assert answer.status == 404, "no other rank gives orders"

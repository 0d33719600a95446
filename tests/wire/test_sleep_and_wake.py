"""To sleep and back, all of it but Kubernetes and vLLM: workers and passes of the operator over a cluster in memory, a
real gateway whose long poll wakes them, and simulated engines that take some time to start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.cluster.fake import FakeRuntime
from headrace_operator.cluster.runtime import HttpRuntime
from headrace_operator.state import Canary, CanaryAnswer
from headrace_operator.testing import Sample, Scene
from headrace_operator.worker import Workers
from headrace_runtime.contract import CONTRACT_FILE, Endpoint, FixedDiscovery, GatewayContract, GatewayFigures
from headrace_runtime.engine.fake import FakeEngine, Script
from headrace_runtime.gateway.serve import Gateway
from tests.wire.gateways import TEXT, until

HERE = "127.0.0.1"
AFTER = 600.0
START_SECONDS = {"prefill": 1.0, "decode": 0.5}
STORM = 60


@dataclass
class Doors(FakeRuntime):
    """Agents in memory, a gateway over HTTP."""

    http: HttpRuntime = field(default_factory=HttpRuntime)

    async def figures(self, address: str) -> GatewayFigures | None:
        return await self.http.figures(HERE)

    async def next_request(self, address: str, seen: GatewayFigures | None) -> GatewayFigures | None:
        return await self.http.next_request(HERE, seen)

    async def canary(self, address: str, question: Canary) -> CanaryAnswer:
        self.questions.append(question)
        return await self.http.canary(HERE, question)


class Machine:
    """Scheduler, kubelet, watches and the gateway's discovery: pods of engines become simulated engines."""

    def __init__(self, scene: Scene, gateway: Gateway, workers: Workers, stack: AsyncExitStack) -> None:
        self.scene, self.gateway, self.workers, self.stack = scene, gateway, workers, stack
        self.engines: dict[str, Endpoint] = {}
        self.starting: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                there = set(self.scene.pods())
                self.starting &= there
                for pod in there - self.starting:
                    self.starting.add(pod)
                    group.create_task(self.start(pod))
                if gone := self.engines.keys() - there:
                    for pod in gone:
                        del self.engines[pod]
                    self.publish()
                if self.scene.kubelet_without_engines():
                    self.workers.wake(self.scene.ref.uid)
                await asyncio.sleep(0.01)

    async def start(self, pod: str) -> None:
        labels = self.scene.cluster.objects["Pod", "demo", pod]["metadata"]["labels"]
        role = labels[names.ROLE]
        await asyncio.sleep(START_SECONDS[role])
        url = await self.stack.enter_async_context(FakeEngine(Script()).serving())
        self.engines[pod] = Endpoint(name=pod, url=url, role=role, revision=labels[names.REVISION])
        self.scene.start(pod)
        self.publish()
        self.workers.wake(self.scene.ref.uid)

    def publish(self) -> None:
        self.gateway.fleet.publish(self.engines.values())


class House(Scene):
    def kubelet_without_engines(self) -> bool:
        """The gateway's pod, which is the gateway of the test."""
        before = len(self.cluster.objects), [obj.get("status") for obj in self.cluster.objects.values()]
        engines = {key: obj for key, obj in self.cluster.objects.items() if key[2] in self.pods()}
        for key in engines:
            del self.cluster.objects[key]
        self.kubelet()
        self.cluster.objects.update(engines)
        return before != (len(self.cluster.objects), [obj.get("status") for obj in self.cluster.objects.values()])


@dataclass
class World:
    scene: House
    gateway: Gateway
    machine: Machine
    client: aiohttp.ClientSession

    async def ask(self, number: int = 0) -> tuple[int, str]:
        body = {"model": "fake", "prompt": [number], "max_tokens": 5}
        async with self.client.post(f"http://{HERE}:{self.gateway.port}/v1/completions", json=body) as answer:
            said = await answer.json()
            return answer.status, said["choices"][0]["text"] if answer.status == 200 else str(said)

    def be_quiet(self) -> None:
        """As if nobody had asked for so long."""
        self.gateway._telemetry.figures.demand._empty_since -= AFTER

    @property
    def asleep(self) -> bool:
        return bool(self.scene.status["scaling"].get("asleepSince"))


@asynccontextmanager
async def world(**zero: Any) -> AsyncIterator[World]:
    written = Sample().split(prefill=1, decode=2).set("model.servedName", "fake").set("gateway.replicas", 1)
    scene = House(written.set("scaling.toZero", {"after": f"{AFTER:.0f}s", "holdRequests": 2 * STORM, **zero}))
    async with AsyncExitStack() as stack:
        told = GatewayContract(namespace="demo", deployment="chat", served_name="fake")
        settings = {"access_log": False, "drain_seconds": 1.0, "port": 0, "admin_port": 0}
        fixed = FixedDiscovery(endpoints=())
        gateway = Gateway(told.model_copy(update={"discovery": fixed, **settings}))
        await stack.enter_async_context(gateway.running())
        http = await stack.enter_async_context(HttpRuntime(gateway_port=gateway.admin_port))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        doors = Doors(http=http)
        scene.runtime = doors
        scene.world = replace(scene.world, runtime=doors, now=lambda: datetime.now(UTC))
        workers = Workers.of(scene.world, resync_seconds=60, concurrency=4)
        stack.push_async_callback(workers.close)
        machine = Machine(scene, gateway, workers, stack)
        task = asyncio.create_task(machine.run())
        stack.callback(task.cancel)
        workers.notice(scene.ref, 1)
        await until(lambda: "conditions" in scene.status and scene.condition(c.READY) == "True", seconds=60)
        # The kubelet brings the contract, and the gateway takes up what is live in it.
        text = scene.cluster.objects["ConfigMap", "demo", "chat-gateway"]["data"][CONTRACT_FILE]
        gateway._live.contract = gateway._live.contract.model_copy(
            update={"hold": GatewayContract.model_validate_json(text).hold}
        )
        gateway._reloaded("contract", "changed")
        yield World(scene, gateway, machine, client)
        assert not task.done(), task


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_deployment_goes_to_sleep_is_woken_once_by_a_storm_and_loses_nobody() -> None:
    async with world() as w:
        assert await w.ask() == (200, TEXT)
        w.be_quiet()
        w.machine.workers.wake(w.scene.ref.uid)
        await until(lambda: not w.scene.pods() and w.asleep, seconds=60)
        await until(lambda: len(w.gateway._polls._waiting) == 1, seconds=60)
        assert (w.scene.condition(c.READY), w.scene.reason(c.READY)) == ("True", "Asleep")
        questions = len(w.scene.runtime.questions)
        answers = await asyncio.gather(*(w.ask(number) for number in range(STORM)))
        assert answers == [(200, TEXT)] * STORM
        await until(lambda: w.scene.reason(c.READY) == "Answered", seconds=60)
        assert len(w.scene.pods()) == 3
        assert len(w.scene.runtime.questions) == questions
        reasons = [reason for _, reason, _ in w.scene.cluster.events]
        assert (reasons.count("Slept"), reasons.count("Woken")) == (1, 1)
        inputs = w.scene.status["scaling"]["lastDecisions"][0]["inputs"]
        assert float(inputs["first engine"].removesuffix(" s")) >= START_SECONDS["decode"]

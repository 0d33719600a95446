"""Several operators, as processes, against a real API server: who works, and how soon another does. Each has a way to
the server of its own, on which its writes are recorded."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from headrace_operator.api.crd import crd
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, LEASE
from headrace_operator.cluster.client import APPLY, KubernetesCluster
from headrace_operator.errors import ClusterError
from headrace_operator.state import Object
from headrace_operator.testing import Sample
from sweep.life import write_kubeconfig
from sweep.proxy import Upstream, Watches
from tests.api.ways import CuttableProxy

pytestmark = pytest.mark.timeout(240)
PATIENCE = 90.0
"""For whatever has no time of its own to keep."""
PROMPT = Watches("at once", 0.02)


async def until(what: str, done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await done():
            await asyncio.sleep(0.02)
    assert what


@dataclass
class Recorder(CuttableProxy):
    """One operator's way to the API server, with the times of what it wrote, renewals left out."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    async def _write(self, request: web.BaseRequest, body: bytes) -> web.StreamResponse:
        began = time.monotonic()
        answer = await super()._write(request, body)
        if "/leases" not in request.path:
            self.spans.append((began, time.monotonic()))
        return answer


@dataclass
class Process:
    """One operator."""

    name: str
    way: Recorder
    process: asyncio.subprocess.Process

    async def looked(self) -> bool:
        """It has asked for the Lease, and so is ready to lead."""
        return self.way.asked > 0

    async def wrote(self) -> bool:
        return bool(self.way.spans)

    async def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@dataclass
class Stage:
    """One namespace with one deployment, whose user edits it all the time."""

    cluster: KubernetesCluster
    upstream: Upstream
    folder: Path
    namespace: str
    stack: AsyncExitStack

    async def operator(self, name: str) -> Process:
        way = Recorder(self.upstream, watches=PROMPT)
        await self.stack.enter_async_context(way.listening())
        self.stack.callback(way.cut_watches)
        folder = self.folder / name
        folder.mkdir()
        environment = {
            "HEADRACE_NAMESPACES": self.namespace,
            "HEADRACE_LEASE": f"{self.namespace}/headrace",
            "HEADRACE_INSTANCE": name,
            "HEADRACE_PORT": "0",
            "KUBECONFIG": str(write_kubeconfig(folder, way.address)),
        }
        words = (sys.executable, "-m", "headrace_operator", "run")
        process = await asyncio.create_subprocess_exec(*words, env=os.environ | environment)

        async def gone() -> None:
            if process.returncode is None:
                process.kill()
                await process.wait()

        self.stack.push_async_callback(gone)
        operator = Process(name, way, process)
        await until(f"{name} asks for the Lease", operator.looked)
        return operator

    async def edit(self, number: int) -> None:
        body = Sample().serve().set("gateway.replicas", 1 + number % 2).build()
        body["metadata"] = {"name": "chat", "namespace": self.namespace}
        query = {"fieldManager": "user", "force": "true"}
        path = INFERENCE_DEPLOYMENT.path(self.namespace, "chat")
        await self.cluster._call("PATCH", path, query, body, content_type=APPLY)

    async def edit_for_ever(self) -> None:
        number = 0
        while True:
            number += 1
            await self.edit(number)
            await asyncio.sleep(0.1)

    async def lease(self) -> Object:
        found = await self.cluster.get(LEASE, self.namespace, "headrace")
        assert found is not None
        spec: Object = found["spec"]
        return spec


@asynccontextmanager
async def stage_of(kubeconfig: Path, folder: Path, namespace: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(await KubernetesCluster.connect(kubeconfig=kubeconfig))
        upstream = await stack.enter_async_context(Upstream(kubeconfig))
        body = crd()
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{body['metadata']['name']}"
        query = {"fieldManager": "test", "force": "true"}
        await cluster._call("PATCH", path, query, body, content_type=APPLY)
        await cluster._call("POST", "/api/v1/namespaces", None, {"metadata": {"name": namespace}})
        stage = Stage(cluster, upstream, folder, namespace, stack)

        async def taken() -> bool:
            try:
                await stage.edit(0)
            except ClusterError:
                return False
            return True

        await until("our kind is served", taken)
        editing = asyncio.create_task(stage.edit_for_ever())
        try:
            yield stage
        finally:
            editing.cancel()
            await asyncio.wait({editing})
    assert editing.cancelled(), "the edits were to go on until the end"


@pytest.fixture
async def stage(api_kubeconfig: Path, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with stage_of(api_kubeconfig, tmp_path, f"test-{abs(hash(request.node.name)) % 10**8}") as made:
        yield made


def overlap(one: Process, other: Process) -> bool:
    """Whether a write of one was under way while the other had begun to write, or the other way round."""
    (a, b), (c, d) = ((spans[0][0], max(end for _, end in spans)) for spans in (one.way.spans, other.way.spans))
    return a < d and c < b


async def test_one_that_leaves_hands_over_and_one_that_is_killed_is_missed_soon(stage: Stage) -> None:
    first = await stage.operator("first")
    await until("the first writes", first.wrote)
    second = await stage.operator("second")
    assert not second.way.spans
    began = time.monotonic()
    assert await first.end(signal.SIGTERM) == 0
    assert not (await stage.lease())["holderIdentity"].startswith("first"), "it was to be released"
    await until("the second writes", second.wrote)
    handover = second.way.spans[0][0] - began
    third = await stage.operator("third")
    killed = time.monotonic()
    await second.end(signal.SIGKILL)
    await until("the third writes", third.wrote)
    takeover = third.way.spans[0][0] - killed
    print(f"first write of the next after SIGTERM: {handover:.2f} s, after SIGKILL: {takeover:.2f} s")
    assert not overlap(first, second)
    assert not overlap(second, third)
    assert (await stage.lease())["leaseTransitions"] == 2


async def test_one_that_is_cut_off_writes_nothing_when_it_is_back_and_leads_again_when_it_is_its_turn(
    stage: Stage,
) -> None:
    first = await stage.operator("first")
    await until("the first writes", first.wrote)
    second = await stage.operator("second")
    cut = time.monotonic()
    first.way.killed.set()
    await until("the second writes", second.wrote)
    takeover = second.way.spans[0][0] - cut
    before, asked = len(first.way.spans), first.way.asked
    first.way.revive()

    async def stands_by() -> bool:
        return first.way.asked > asked + 3

    await until("the first looks at the Lease again", stands_by)
    assert len(first.way.spans) == before
    assert not overlap(first, second)
    print(f"first write of the next after the leader was cut off: {takeover:.2f} s")
    assert first.process.returncode is None
    await second.end(signal.SIGTERM)

    async def works_again() -> bool:
        return len(first.way.spans) > before

    await until("the first leads again", works_again)

"""An evicted engine with its agent, its successor, and a gateway between them and a stream of requests: the
operator's question, the agent's answer to the readiness probe and the gateway's routes, together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace_operator.cluster.runtime import HttpRuntime
from headrace_runtime.contract import Endpoint
from tests.unit.test_node_agent import Running, ready, running
from tests.wire.gateways import until
from tests.wire.test_gateway_drain import Stage, stage

pytestmark = pytest.mark.slow


async def probe(node: Running) -> bool:
    """What the kubelet's readiness probe sees."""
    return (await node.get("/readyz"))[0] == 200


@asynccontextmanager
async def watched(on: Stage, node: Running, going: asyncio.Event) -> AsyncIterator[None]:
    """The gateway learns of the pod as of any: told to go, or not, and Ready by what the probe saw last."""

    async def follow() -> None:
        while True:
            is_ready, leaves = await probe(node), going.is_set()
            said = {"draining": leaves, "ready": is_ready, "stays": leaves and is_ready}
            on.list(Endpoint(name="old", url=node.engine_url, role="serve", revision="r", **said))
            await asyncio.sleep(0.1)

    following = asyncio.create_task(follow())
    try:
        yield
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_the_only_engine_is_evicted_and_no_request_is_lost(tmp_path: Path) -> None:
    going = asyncio.Event()
    async with running(tmp_path) as old, HttpRuntime(agent_port=int(old.url.rpartition(":")[2])) as operator:
        await old.until(ready)
        async with stage(tmp_path, model="m") as on, watched(on, old, going):
            await until(lambda: [slot.healthy for slot in on.gateway.fleet.slots()] == [True], 30)
            async with on.flowing():
                await on.until_by("old")
                going.set()
                old.agent.drain()
                await operator.stay("127.0.0.1")
                assert (await old.state()).staying
                answered = len(on.by)
                await until(lambda: len(on.by) > answered + 10, 30)
                await on.start("serve-successor")
                await on.until_by("serve-successor")
                old.agent._stay_until = 0.0  # the operator sees that the successor is ready, and asks no more
                async with asyncio.timeout(30):
                    await old.task
                answered = len(on.by)
                await until(lambda: len(on.by) > answered + 10, 30)
            assert on.failed == []

"""A canary from end to end but for the cluster: a real gateway shares real requests between simulated engines of two
revisions, the operator's door reads what it counted, and the verdict is the one that the engines' script deserves."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from headrace_operator.api.lifecycle import Canary
from headrace_operator.api.v1alpha1 import CanaryStep
from headrace_operator.cluster.runtime import HttpRuntime
from headrace_operator.figures import in_step
from headrace_operator.plan.canary import Verdict, judge, told
from tests.wire.gateways import SHORT, World, world

CANARY = Canary.model_validate({"steps": [50, 100], "interval": "1s"})
STEP = CanaryStep(revision="r2", step=50, share=50, since=datetime(2026, 1, 1, tzinfo=UTC))
PLACES = {"serve-1": {"revision": "r1"}, "serve-2": {"revision": "r2"}}


async def verdict(w: World) -> Verdict:
    async with HttpRuntime(gateway_port=w.gateway.admin_port) as runtime:
        return judge(CANARY, STEP, "r1", [in_step(await runtime.figures("127.0.0.1"), told(STEP))], "r2")


async def clients(w: World, number: int = 260) -> None:
    """Forty at a time; every one gets its answer."""
    room = asyncio.Semaphore(40)

    async def one() -> None:
        async with room:
            assert (await w.ask(prompt=SHORT, max_tokens=3)).status == 200

    await asyncio.gather(*(one() for _ in range(number)))


async def judged(w: World) -> Verdict:
    """Once the step has lasted for its interval."""
    async with asyncio.timeout(30):
        while (found := await verdict(w)).state == "Going":
            await asyncio.sleep(0.05)
        return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sentence", "script", "expected", "why"),
    [
        ("as good", {}, "Passed", "50 % of requests"),
        ("slow to begin", {"ttft": 0.8}, "Failed", "slower, time to first token"),
        ("slow to go on", {"itl": 0.5}, "Failed", "slower, time between tokens"),
        ("failing", {"fault": "status"}, "Failed", "more errors"),
    ],
)
async def test_a_revision_is_judged_as_its_engines_are(
    sentence: str, script: dict[str, Any], expected: str, why: str
) -> None:
    async with world("serve-1", "serve-2", places=PLACES, canary=told(STEP)) as w:
        w.engines["serve-1"].become(ttft=0.2, itl=0.05)
        w.engines["serve-2"].become(**{"ttft": 0.2, "itl": 0.05, **script})
        await clients(w)
        found = await judged(w)
        assert found.state == expected, f"{sentence}: {found.message}"
        assert found.message.startswith(why)


async def test_without_clients_it_goes_on_by_time() -> None:
    async with world("serve-1", "serve-2", places=PLACES, canary=told(STEP)) as w:
        assert (await verdict(w)).state == "Going"
        found = await judged(w)
        assert (found.state, found.message[:7]) == ("Passed", "by time")

"""The API server is away, or watches are too old: a whole operator carries on when it is back, without a restart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web

from headrace_operator import handlers
from headrace_operator.cluster import INFERENCE_DEPLOYMENT, mirror
from headrace_operator.testing import Sample
from sweep.proxy import Upstream, Watches
from sweep.stage import Client, Stage, install, served
from sweep.watched import operating
from tests.api.ways import CuttableProxy

pytestmark = pytest.mark.timeout(180)
PATIENCE = 60.0
GONE = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}
AWAY = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "ServiceUnavailable", "code": 503}


@dataclass
class Way(CuttableProxy):
    """The operator's way to the API server, with trouble on demand."""

    away: bool = False
    """What answers is a balancer that has no server behind it."""
    expired: bool = False
    """Whatever version a watch begins with is too old."""
    refused: int = 0

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self.away:
            return await super()._handle(request)
        self.refused += 1
        return web.json_response(AWAY, status=503)

    async def _stream(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.expired:
            self.refused += 1
            return web.Response(text=json.dumps({"type": "ERROR", "object": GONE}) + "\n")
        return await super()._stream(request)


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await done():
            await asyncio.sleep(0.05)


@dataclass
class Scene:
    """A namespace whose operator looks at the world through the way."""

    stage: Stage
    way: Way
    cluster: Client

    async def seen(self, generation: int) -> None:
        """Until the status is of this generation."""

        async def done() -> bool:
            found = await self.cluster.get(INFERENCE_DEPLOYMENT, self.stage.namespace, self.stage.ref.name)
            assert found is not None
            return bool(found.get("status", {}).get("observedGeneration") == generation)

        await until(done)

    async def refusals(self, more: int) -> None:
        """Until the operator was refused so many times more."""
        enough = self.way.refused + more

        async def done() -> bool:
            return self.way.refused >= enough

        await until(done)


@pytest.fixture
async def scene(
    api_kubeconfig: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    # More tries in a second than a day of the real ones.
    monkeypatch.setattr(handlers, "GROWING", (0.02,))
    monkeypatch.setattr(mirror, "PAUSES", (0.02,))
    async with (
        Upstream(api_kubeconfig) as upstream,
        await Client.connect(kubeconfig=api_kubeconfig) as client,
    ):
        await install(client)

        async def is_served() -> bool:
            return await served(client)

        await until(is_served)
        stage = Stage(client, f"outage-{abs(hash(request.node.name)) % 10**8}")
        await stage.open()
        way = Way(upstream, watches=Watches("at once", 0.02))
        async with way.listening():
            async with operating(way, stage, tmp_path):
                yield Scene(stage, way, client)
            way.cut_watches()


async def test_an_edit_while_the_server_is_away_is_seen_when_it_is_back(scene: Scene) -> None:
    await scene.stage.edit(Sample().serve())
    await scene.seen(1)
    scene.way.away = True
    scene.way.cut_watches()
    await scene.stage.edit(Sample().serve(2))
    await scene.refusals(100)
    scene.way.away = False
    await scene.seen(2)
    await scene.stage.edit(Sample().serve(1))
    await scene.seen(3)


async def test_watches_that_are_too_old_begin_again_with_a_list(scene: Scene) -> None:
    await scene.stage.edit(Sample().serve())
    await scene.seen(1)
    scene.way.expired = True
    scene.way.cut_watches()
    await scene.refusals(5)
    await scene.stage.edit(Sample().serve(2))
    await scene.seen(2)
    scene.way.expired = False
    await scene.stage.edit(Sample().serve(1))
    await scene.seen(3)

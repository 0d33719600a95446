"""One life of the operator: a client, a world and a pass, made anew for each life and thrown away with it.

The operator keeps nothing at all between lives: client, world and pass are built from the kubeconfig alone, as by a new
process, and whatever still runs of a killed one finds its connections cut. Passes are made one at a time, between the
steps of the simulated kubelets, so that a run is the same run every time: `worker.py`, which decides only *when* a pass
is made, and kopf, which wakes it, are not in it.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from headrace_operator.cluster import Runtime
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.errors import ClusterError
from headrace_operator.reconcile import World, reconcile
from headrace_operator.state import Look, Ref
from headrace_operator.testing import DEFAULTS
from sweep.proxy import Proxy

PASS_SECONDS = 120.0

Pass = Callable[[Ref], Awaitable[Look]]


def sound(world: World) -> Pass:
    """The operator's own pass."""
    return lambda ref: reconcile(world, ref)


@dataclass(frozen=True)
class Build:
    """How an operator is made: `cluster` is its client, `make_pass` what it does with its world."""

    cluster: type[KubernetesCluster] = KubernetesCluster
    make_pass: Callable[[World], Pass] = sound


class Operator:
    """An operator that is started when it is needed, and that can be killed."""

    def __init__(self, build: Build, proxy: Proxy, runtime: Runtime, folder: Path) -> None:
        self._build = build
        self._proxy = proxy
        self._runtime = runtime
        self._folder = folder
        self._stack = AsyncExitStack()
        self._pass: Pass | None = None
        self.lives = 0

    async def close(self) -> None:
        await self._stack.aclose()
        self._pass = None

    async def make_pass(self, ref: Ref) -> Look | None:
        """One pass. None: it was killed in it. An error of the API server is an answer, as in `worker.py`."""
        if self._pass is None:
            self._pass = await self._start()
        self._proxy.begin_pass()
        work, killed = asyncio.ensure_future(self._pass(ref)), asyncio.create_task(self._proxy.killed.wait())
        try:
            async with asyncio.timeout(PASS_SECONDS):
                await asyncio.wait({work, killed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
        if self._proxy.killed.is_set():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.close()
            self._proxy.revive()
            return None
        try:
            return await work
        except ClusterError:
            return Look(retry=True)

    async def _start(self) -> Pass:
        self.lives += 1
        kubeconfig = write_kubeconfig(self._folder, self._proxy.address)
        self._stack = AsyncExitStack()
        cluster = await self._stack.enter_async_context(await self._build.cluster.connect(kubeconfig=kubeconfig))
        token = secrets.token_hex(8)
        world = World(cluster, self._runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: token)
        return self._build.make_pass(world)


def write_kubeconfig(folder: Path, server: str) -> Path:
    """A kubeconfig that leads to a proxy: no certificate, no user."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "sweep",
        "clusters": [{"name": "sweep", "cluster": {"server": server}}],
        "users": [{"name": "sweep", "user": {}}],
        "contexts": [{"name": "sweep", "context": {"cluster": "sweep", "user": "sweep"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path

"""The operator as it really runs, kopf and workers and all, behind watches that are late or leave things out.

The sweep makes passes one at a time and needs no watch; here nothing but watches (the resync is far off) tells the
operator to look. A watch may tell late and may leave out what a later event supersedes: the end must be the same.
Called by `suite.py`.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from headrace_operator import handlers
from headrace_operator.cluster.mirror import MirroredCluster
from headrace_operator.operation import mirroring
from headrace_operator.reconcile import World
from headrace_operator.settings import Settings
from headrace_operator.testing import DEFAULTS
from headrace_operator.worker import Workers
from sweep.life import Build, Operator, write_kubeconfig
from sweep.oracle import Ending, count, ending_objects
from sweep.proxy import Proxy
from sweep.scenarios import Scenario
from sweep.stage import Stage

FAR_OFF = 3600.0
"""Seconds between resyncs: no run is saved by one."""
WITHIN = 240.0
"""Seconds in which the end of one edit must be reached."""
QUIET = 4.0
"""Seconds without any request of the operator, beyond the watches' delay, after which all is quiet."""
LOGIN_WITHIN = 60.0

_login = asyncio.Lock()
"""kopf finds its API server by an environment variable, once, at its start: one at a time."""


@asynccontextmanager
async def operating(proxy: Proxy, stage: Stage, folder: Path) -> AsyncIterator[None]:
    """A whole operator that looks after one namespace through the proxy, while the block runs.

    In a thread with a loop of its own: kopf, when it ends, cancels every task of its loop that is younger than itself.
    """
    kubeconfig, stop = write_kubeconfig(folder, proxy.address), threading.Event()
    async with _login:
        with _environment("KUBECONFIG", str(kubeconfig)):
            running = asyncio.create_task(asyncio.to_thread(asyncio.run, _operator(kubeconfig, stage, stop)))
            try:
                await _watching(proxy, running)
            except BaseException:
                stop.set()
                raise
    try:
        yield
    finally:
        stop.set()
        await running


async def _operator(kubeconfig: Path, stage: Stage, stop: threading.Event) -> None:
    settings = Settings(namespaces=stage.namespace, port=0)
    async with await MirroredCluster.connect(kubeconfig=kubeconfig) as cluster:
        world = World(cluster, stage.runtime, DEFAULTS, lambda: datetime.now(UTC), lambda: "a-token")
        workers = Workers.of(world, resync_seconds=FAR_OFF, concurrency=4)
        async with mirroring(cluster, settings, workers):
            await handlers.run(workers, settings, stop)


async def _watching(proxy: Proxy, running: "asyncio.Task[None]") -> None:
    """Returns once the operator watches. Raises what it ended with if it ended, TimeoutError if it does neither."""
    watching = asyncio.create_task(proxy.watched.wait())
    try:
        async with asyncio.timeout(LOGIN_WITHIN):
            await asyncio.wait({watching, running}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watching.cancel()
    if running.done():
        running.result()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


async def play(scenario: Scenario, stage: Stage, proxy: Proxy, folder: Path) -> Ending:
    """The scenario from its start to its end."""
    complaints: list[str] = []
    async with operating(proxy, stage, folder):
        if scenario.start is not None:
            await stage.edit(scenario.start)
            complaints += await _settle(scenario, stage, proxy)
        proxy.counting = True
        for edit in scenario.edits:
            await stage.edit(edit)
            complaints += await _settle(scenario, stage, proxy)
    before = len(proxy.writes)
    operator = Operator(Build(), proxy, stage.runtime, folder)
    await operator.make_pass(stage.ref)
    await operator.close()
    if late := proxy.writes[before:]:
        complaints.append(f"a new operator still found something to write: {', '.join(map(str, late))}")
    return Ending(
        objects=ending_objects(await stage.objects(), stage.namespace),
        counts=count(proxy.writes),
        writes=tuple(proxy.writes),
        passes=frozenset(),
        complaints=tuple(complaints),
        struck=proxy.spoiled > 0,
    )


async def _settle(scenario: Scenario, stage: Stage, proxy: Proxy) -> list[str]:
    """Everybody acts, until the operator says that it is done with this edit and asks nothing any more."""
    end, last, asked = monotonic() + WITHIN, monotonic(), -1
    while monotonic() < end:
        changed = await stage.step()
        if proxy.counting and (under := await stage.below(scenario.floors)) is not None:
            return [under]
        if changed or proxy.asked != asked:
            last, asked = monotonic(), proxy.asked
        elif monotonic() - last > QUIET + proxy.watches.window and await stage.judged():
            return []
        await asyncio.sleep(0.1)
    return [f"not quiet after {WITHIN:.0f} s; last: {', '.join(map(str, proxy.writes[-3:]))}"]

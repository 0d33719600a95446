"""The running operator: stands for the Lease, works while it leads, and goes when a signal comes.

Here the parts are put together: client, passes, workers, kopf, election, and the small HTTP server that answers whether
this process leads or not. A process that loses the Lease ends its workers and stands again; it is not restarted for it.
Called by `__main__.py`.
"""

import asyncio
import logging
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime

from headrace_operator import handlers, metrics
from headrace_operator.cluster.client import KubernetesCluster
from headrace_operator.cluster.fence import Fence
from headrace_operator.cluster.mirror import MirroredCluster
from headrace_operator.cluster.runtime import HttpRuntime
from headrace_operator.election import Election, Lease, Term
from headrace_operator.policies import Policy
from headrace_operator.reconcile import World
from headrace_operator.settings import Settings
from headrace_operator.worker import Workers

logger = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Until a signal comes. SettingsError: there is no usable way to an API server."""
    signalled = asyncio.Event()
    _claim_signals(signalled)
    async with AsyncExitStack() as stack:
        if settings.port:
            stack.push_async_callback((await metrics.serve(settings.port)).cleanup)
        if not settings.lease:
            metrics.LEADER.set(1)
            await _work(settings, signalled, None)
            return
        election = await stack.enter_async_context(_election(settings))
        while (term := await _won(election, signalled)) is not None:
            async with term:
                await _work(settings, signalled, term)
            if not (term.lost.is_set() or signalled.is_set()):
                return


def _claim_signals(signalled: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)


@asynccontextmanager
async def _election(settings: Settings) -> AsyncIterator[Election]:
    namespace, _, name = settings.lease.partition("/")
    async with await KubernetesCluster.connect(instance=settings.instance) as cluster:
        # Not the pod's name alone: a container that starts anew in its pod is another process.
        yield Election(Lease(cluster, namespace, name, f"{settings.instance}_{secrets.token_hex(4)}"))


async def _won(election: Election, signalled: asyncio.Event) -> Term | None:
    """The term, once it is won. None: a signal came before."""
    winning, ending = asyncio.create_task(election.win()), asyncio.create_task(signalled.wait())
    try:
        await asyncio.wait({winning, ending}, return_when=asyncio.FIRST_COMPLETED)
        return winning.result() if winning.done() else None
    finally:
        winning.cancel()
        ending.cancel()


async def _work(settings: Settings, signalled: asyncio.Event, term: Term | None) -> None:
    """Look after everything until a signal comes or the term is lost. The term is resigned before kopf takes its time
    to end."""
    fence = term.fence if term is not None else None
    stop = asyncio.Event()
    ending = asyncio.create_task(_end(signalled, term, stop))
    try:
        async with _workers(settings, fence) as workers:
            await handlers.run(workers, settings, stop, lambda: _claim_signals(signalled))
    finally:
        ending.cancel()


async def _end(signalled: asyncio.Event, term: Term | None, stop: asyncio.Event) -> None:
    reasons = {asyncio.create_task(signalled.wait())}
    if term is not None:
        reasons.add(asyncio.create_task(term.lost.wait()))
    try:
        await asyncio.wait(reasons, return_when=asyncio.FIRST_COMPLETED)
        if term is not None:
            await term.resign()
        stop.set()
    finally:
        for reason in reasons:
            reason.cancel()


@asynccontextmanager
async def _workers(settings: Settings, fence: Fence | None) -> AsyncIterator[Workers]:
    async with (
        await MirroredCluster.connect(instance=settings.instance, fence=fence) as cluster,
        HttpRuntime() as runtime,
        Policy(settings.policy_names, settings.policy_limits) as policy,
    ):
        world = World(
            cluster,
            runtime,
            settings.defaults,
            now=lambda: datetime.now(UTC),
            token=lambda: secrets.token_hex(32),
            policy=policy,
        )
        workers = Workers.of(world, resync_seconds=settings.resync_seconds, concurrency=settings.concurrency)
        async with mirroring(cluster, settings, workers):
            yield workers


@asynccontextmanager
async def mirroring(cluster: MirroredCluster, settings: Settings, workers: Workers) -> AsyncIterator[None]:
    """Children are watched, and wake their owners' workers, while the block lasts. What ends the watches ends it."""
    async with asyncio.TaskGroup() as group:
        watches = group.create_task(cluster.mirror(settings.namespace_list, workers.wake, workers.edited))
        try:
            yield
        finally:
            watches.cancel()

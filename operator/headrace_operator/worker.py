"""One worker per InferenceDeployment: a task that waits until it is woken, makes one pass, and waits again. No kopf in
here.

Wakes that come while a pass runs, or in the moment before it, melt into one further pass. Where all turns are taken, a
user's edit goes before what only has to be looked at again (`turns.py`). A pass that failed is repeated with growing
pauses that start anew after a success. A worker forgets nothing it would miss: all it has is a flag, an urgency, a
count of failures, and whom to listen to while its object sleeps (`sleepers.py`). Called by `handlers.py`; errors of
every kind end here, in the log and the metrics.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import uniform

from headrace_operator import metrics
from headrace_operator.cluster import Runtime
from headrace_operator.errors import ClusterError, Conflict
from headrace_operator.reconcile import World, reconcile
from headrace_operator.sleepers import Sleepers
from headrace_operator.state import Look, Ref
from headrace_operator.turns import Turns, Urgency
from headrace_runtime.contract import GatewayFigures

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 0.05
"""Between a wake and its pass: what happens in one go is one reason to look."""
SETTLES = 6
"""So many times that, where children changed: pods that start together tell so one after the other, and each pass in
between would be a write of the status."""
RESYNCS_PER_SECOND = 2.0
"""Of all objects together: an idle operator costs no more with a thousand of them than with a hundred."""
PASS_SECONDS = 120.0
"""No pass takes longer, whatever it waits for."""

Pass = Callable[[Ref], Awaitable[Look]]


def backoff(failures: int, *, base: float = 0.5, longest: float = 60.0) -> float:
    """Seconds to wait after so many failures in a row: 0.5, 1, 2, … 60. None after none."""
    return min(longest, base * 2.0 ** min(failures - 1, 30)) if failures > 0 else 0.0


def resync_after(seconds: float, objects: int) -> float:
    """Seconds until an object that nobody woke is looked at again: as set, or longer where there are many."""
    return max(seconds, objects / RESYNCS_PER_SECOND)


@dataclass
class _Worker:
    """What is kept of one object."""

    ref: Ref
    wake: asyncio.Event
    generation: int | None = None
    urgency: Urgency = Urgency.ROUTINE
    """Of the next pass."""
    task: "asyncio.Task[None] | None" = None


class Workers:
    """All workers of this process, by the uid of their object."""

    def __init__(
        self,
        make_pass: Pass,
        *,
        resync_seconds: float = 60.0,
        concurrency: int = 16,
        runtime: Runtime | None = None,
    ) -> None:
        """`runtime`: through which deployments that sleep are listened to. None: no pass asks for that."""
        self._make_pass = make_pass
        self._sleepers = Sleepers(runtime, self.edited) if runtime is not None else None
        self._resync_seconds = resync_seconds
        self._turns = Turns(concurrency)
        self._workers: dict[str, _Worker] = {}

    @classmethod
    def of(cls, world: World, *, resync_seconds: float, concurrency: int) -> "Workers":
        """Workers whose pass is `reconcile` in this world."""
        return cls(
            lambda ref: reconcile(world, ref),
            resync_seconds=resync_seconds,
            concurrency=concurrency,
            runtime=world.runtime,
        )

    def __len__(self) -> int:
        return len(self._workers)

    def notice(self, ref: Ref, generation: int, *, fresh: bool = False) -> None:
        """The object was seen. Only a new generation is news: its status is written by nobody but us. `fresh`: it was
        made just now, and not before this process started."""
        worker = self._workers.get(ref.uid)
        if worker is None:
            worker = self._workers[ref.uid] = _Worker(ref, asyncio.Event())
            worker.task = asyncio.create_task(self._run(worker), name=f"worker {ref}")
            metrics.WORKERS.set(len(self._workers))
        if worker.generation != generation:
            edited = fresh or worker.generation is not None
            worker.generation = generation
            self._rouse(worker, Urgency.EDIT if edited else Urgency.CHANGE)

    def wake(self, uid: str) -> None:
        """Something of this object changed. An object that nobody noticed yet is woken by being noticed."""
        if (worker := self._workers.get(uid)) is not None:
            self._rouse(worker, Urgency.CHANGE)

    def edited(self, uid: str) -> None:
        """The same of what somebody waits for: an InferenceRole was edited, or a request came to who sleeps."""
        if (worker := self._workers.get(uid)) is not None:
            self._rouse(worker, Urgency.EDIT)

    def _rouse(self, worker: _Worker, urgency: Urgency) -> None:
        if urgency < worker.urgency:
            worker.urgency = urgency
            self._turns.hurry(worker.ref.uid, urgency)
        worker.wake.set()

    def end(self, uid: str) -> None:
        """The object is gone or going: whatever its worker does is broken off."""
        if (worker := self._workers.pop(uid, None)) is not None and worker.task is not None:
            worker.task.cancel()
            metrics.WORKERS.set(len(self._workers))
            self._listen(uid, {})

    def _listen(self, uid: str, gateways: Mapping[str, GatewayFigures | None]) -> None:
        if self._sleepers is not None:
            self._sleepers.listen(uid, gateways)

    async def close(self) -> None:
        """End all workers and wait until they have ended."""
        tasks = [worker.task for worker in self._workers.values() if worker.task is not None]
        for uid in list(self._workers):
            self.end(uid)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sleepers is not None:
            await self._sleepers.close()

    async def _run(self, worker: _Worker) -> None:
        failures = 0
        while True:
            await worker.wake.wait()
            await self._settle(worker)
            async with self._turns.turn(worker.ref.uid, worker.urgency):
                worker.wake.clear()
                worker.urgency = Urgency.ROUTINE
                look = await self._pass(worker.ref)
            if not look.retry:
                self._listen(worker.ref.uid, look.listen)
            if look.ended:
                self._workers.pop(worker.ref.uid, None)
                metrics.WORKERS.set(len(self._workers))
                return
            failures = failures + 1 if look.retry else 0
            await _wait(worker.wake, self._pause(look, failures))

    async def _settle(self, worker: _Worker) -> None:
        """A few moments for what comes in one go. Not for a user: an edit ends it after one."""
        for _ in range(SETTLES):
            await asyncio.sleep(SETTLE_SECONDS)
            if worker.urgency is not Urgency.CHANGE:
                return

    def _pause(self, look: Look, failures: int) -> float:
        if failures:
            return backoff(failures)
        # Spread out, so that a thousand objects of one start are not looked at in the same second for ever.
        resync = resync_after(self._resync_seconds, len(self._workers)) * uniform(0.8, 1.2)  # noqa: S311
        return look.seconds if look.seconds is not None else resync

    async def _pass(self, ref: Ref) -> Look:
        """One pass; an error is a reason to try again."""
        with metrics.PASS_SECONDS.time():
            try:
                async with asyncio.timeout(PASS_SECONDS):
                    look = await self._make_pass(ref)
            except Conflict as error:
                logger.debug("%s: %s", ref, error)
                return Look(seconds=0.0)
            except ClusterError as error:
                logger.warning("%s: %s", ref, error)
                metrics.ERRORS.labels(reason=error.reason or str(error.status)).inc()
                return Look(retry=True)
            except Exception as error:
                # The last resort of the process: one object's surprise must not end the work on all others.
                logger.exception("%s: a pass failed", ref)
                metrics.ERRORS.labels(reason=type(error).__name__).inc()
                return Look(retry=True)
        return look


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    """Until woken, or at most so long; leaves the flag set either way."""
    try:
        async with asyncio.timeout(seconds):
            await wake.wait()
    except TimeoutError:
        wake.set()

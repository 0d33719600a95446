"""The agent of one engine pod: looks, decides, acts, a few times a second, until it may leave.

It owns the engine. Ray, the operator and the gateway learn of it over HTTP and are not needed for it: a lost head,
raylet or operator never stops a healthy engine, and no engine outlives its agent. What to do is decided in `decide.py`
(pure); this module looks and acts. Called by `http.py` for state, run by `serve.py`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from headrace_runtime.contract import EngineFailure, NodeContract, NodeState, Place
from headrace_runtime.node.adapters import Adapters
from headrace_runtime.node.custody import Custody
from headrace_runtime.node.decide import Decision, Seen, Verdict, decide
from headrace_runtime.node.engine import EngineLife, EngineParts
from headrace_runtime.node.kv import KvTier
from headrace_runtime.node.launch import LaunchError
from headrace_runtime.node.raylet import Raylet
from headrace_runtime.node.sweep import sweep

log = logging.getLogger(__name__)

STEP_SECONDS = 0.2
SUPERVISED_SECONDS = 10.0
STAY_SECONDS = 20.0
"""How long an engine that was asked to answer on does so. Its operator asks again every five seconds."""


@dataclass(frozen=True)
class Image:
    """What the pod's image carries."""

    engine_version: str | None
    lacks: Verdict | None


@dataclass
class Failures:
    """Of the engines that ended since one was last ready."""

    count: int = 0
    at: float = 0.0
    was_ready: bool = False
    last: Verdict | None = None

    def note(self, verdict: Verdict, now: float, was_ready: bool) -> None:
        if was_ready:
            self.count, self.was_ready = 0, True
        self.count, self.at, self.last = self.count + 1, now, verdict

    def forget(self) -> None:
        self.count, self.was_ready, self.last = 0, False, None


class Agent:
    """Owner of one engine. `run` returns when the engine has been drained and ended."""

    def __init__(
        self,
        contract: NodeContract,
        place: Place,
        image: Image,
        parts: EngineParts,
        raylet: Raylet | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.contract, self.place, self.image = contract, place, image
        self._parts, self._raylet, self._adapters = parts, raylet, adapters
        self._gang = parts.gang
        self._now: Callable[[], float] = time.monotonic
        self._engine: EngineLife | None = None
        self._failures = Failures()
        self._wake = asyncio.Event()
        self._weights = Custody(contract, self._wake.set)
        self._kv = KvTier(contract, Path(place.run_dir))
        self._failure: EngineFailure | None = None
        self._draining_at: float | None = None
        self._stay_until = float("-inf")
        self._cut = 0
        self._cut_at: float | None = None
        self._decision = Decision("Stay", "Waiting")
        self._phase_since = self._stepped_at = self._now()
        self._restarts = 0
        self._starts = 0
        self._ready_seconds: float | None = None
        self._supervisor = ("", float("-inf"))
        self._settled = asyncio.Event()
        """The first engine has come to something, good or bad."""

    # ---- asked over HTTP and by signals -------------------------------------------------------------------------

    def drain(self) -> None:
        """Leave once the engine has no request left, or `drain_seconds` have passed. Safe to repeat."""
        if self._draining_at is None:
            self._draining_at = self._now()
            self._weights.cancel()
            self._enter(Decision("Stay", "Draining"))  # at once: a readiness probe may come before the next step
            self._wake.set()

    def stay(self) -> None:
        """While it drains, answer on for some seconds: no other engine does yet. Safe to repeat, and meant to be."""
        self._stay_until = self._now() + STAY_SECONDS
        self._wake.set()

    def seconds_since_step(self) -> float:
        return self._now() - self._stepped_at

    def supervise(self, actor: str) -> None:
        self._supervisor = (actor, self._now())

    def state(self) -> NodeState:
        now, decision, engine = self._now(), self._decision, self._engine
        actor, heard_at = self._supervisor
        supervised = now - heard_at <= SUPERVISED_SECONDS
        return NodeState(
            pod=self.place.name,
            role=self.contract.role,
            revision=self.contract.revision,
            phase=decision.phase,
            reason=decision.reason,
            message=decision.message,
            engine_version=self.image.engine_version,
            engine_pid=engine.pid if engine else None,
            engine_restarts=self._restarts,
            failure=self._failure,
            staying=decision.staying,
            cut=self._cut,
            cut_at=self._cut_at,
            since_seconds=now - self._phase_since,
            ready_seconds=self._ready_seconds,
            weights=self._weights.state(),
            kv=self._kv.state(),
            adapters=self._adapters.states() if self._adapters else (),
            ray=self._raylet.state(supervised) if self._raylet else None,
            supervisor=actor if supervised else None,
        )

    # ---- the loop -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Step until the engine is drained. What it started is gone when it returns, or raises."""
        background = self._background()
        try:
            while await self.step():
                for task in background:
                    if task.done():
                        task.result()  # an agent that cannot read weights or join Ray must say so, not sit there
                with suppress(TimeoutError):
                    async with asyncio.timeout(STEP_SECONDS):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            self._weights.cancel()
            for task in background:
                task.cancel()
            if self._engine:
                await self._engine.kill()
            if self._raylet:
                await self._raylet.stop()
            await self._parts.launcher.close()

    def _background(self) -> list[asyncio.Task[None]]:
        work = [] if self.image.lacks else [self._weights.run(), self._warm()]
        if self._adapters and not self.image.lacks:
            work.append(self._adapters.run())
        if self._raylet:
            work.append(self._join_ray(self._raylet))
        if self._gang:
            work.append(self._gang.run())
        return [asyncio.create_task(one) for one in work]

    async def step(self) -> bool:
        """Look, decide, act. False when the agent may leave."""
        now = self._stepped_at = self._now()
        seen = self._look(now)
        decision = decide(seen, now, self.contract)
        self._enter(decision)
        if decision.cut:
            self._cut, self._cut_at = self._cut + decision.cut, time.time()
        if decision.act == "Start":
            self._start()
        elif decision.act == "Terminate" and self._engine:
            self._engine.terminate()
        elif decision.act == "Kill":
            await self._kill(decision, now)
        if self._gang:
            willing = decision.reason == "RanksMissing" and decision.act == "Stay"
            self._gang.note(decision.phase, ready=self._ready_seconds is not None, willing=willing)
        return decision.act != "Leave"

    def _look(self, now: float) -> Seen:
        refused = isinstance(self._weights.verdict, Verdict)
        gang = self._gang.seen(now) if self._gang else None
        left = gang is not None and gang.leaving_for is not None
        if self._engine and (refused or left or self._draining_at is not None):
            self._engine.drain()
        engine = self._engine.seen(now) if self._engine else None
        if engine and engine.ready_at is not None and not engine.ended and self._ready_seconds is None:
            assert self._engine
            self._ready_seconds = self._engine.ready_seconds
            self._failures.forget()
            log.info("engine ready %.1f s after its start", self._ready_seconds)
        failures = self._failures
        return Seen(
            lacks=self.image.lacks,
            weights=self._weights.verdict,
            refused_at=self._weights.refused_at,
            engine=engine,
            failures=failures.count,
            failed_at=failures.at,
            was_ready=failures.was_ready,
            failure=failures.last,
            adapters_pending=self._adapters is not None and self._adapters.pending,
            draining_at=self._draining_at,
            gang=gang,
            staying=now < self._stay_until,
            cut=self._cut,
        )

    def _enter(self, decision: Decision) -> None:
        if decision.phase != self._decision.phase:
            self._phase_since = self._now()
            log.info("%s%s", decision.phase, f": {decision.reason}: {decision.message}" if decision.reason else "")
        self._decision = decision
        if decision.phase in ("Ready", "BackOff", "Failed"):
            self._settled.set()

    def _start(self) -> None:
        self._restarts = self._starts
        self._starts += 1
        self._ready_seconds = None
        if self._adapters:
            self._adapters.engine_started()
        weights = self._weights.state().digest
        self._kv.engine_starts(weights)
        if self._gang:
            self._gang.begin()
        self._engine = EngineLife(self._parts, weights, self._now)
        self._weights.engine_started()

    async def _kill(self, decision: Decision, now: float) -> None:
        assert self._engine
        was_ready = self._engine.seen(now).ready_at is not None
        why = self._engine.why()
        if not await self._engine.kill():
            return  # something of it still holds its device: again at the next step
        self._engine = None
        self._weights.engine_ended()
        await asyncio.to_thread(sweep)
        message = f"{decision.message}: {why}" if why else decision.message
        if self._gang:
            self._gang.end(message)
        if decision.phase == "BackOff":
            self._failures.note(Verdict(decision.reason, message), now, was_ready)
            self._failure = EngineFailure(at=time.time(), reason=decision.reason)
            log.warning("%s", message)

    # ---- beside the loop ----------------------------------------------------------------------------------------

    async def _warm(self) -> None:
        try:
            await self._parts.launcher.warm()
        except LaunchError as error:
            log.warning("%s", error)  # the launch tries again, and its failure counts

    async def _join_ray(self, raylet: Raylet) -> None:
        """On CPU Ray's start would take the cores from the engine's: it waits until that has come to something."""
        if self.contract.engine.device == "cpu":
            await self._settled.wait()
        await raylet.run()

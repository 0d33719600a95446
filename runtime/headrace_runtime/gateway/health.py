"""Looks after the engines: `/health` of each every second, probes of those in quarantine, questions to silent ones.

Tells the fleet what it found and decides nothing. vLLM's `/health` is written by its front end: it is 200 while the
engine behind drains, for seconds after it died, and for ever while it is stopped. So an engine comes back by a real
token alone, and one that owes bytes and sends none is asked whether it computes at all, before `fleet.py` gives it up.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import orjson

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.fleet import Fleet, Slot
from headrace_runtime.gateway.quarantine import Reason
from headrace_runtime.gateway.request import COMPLETIONS
from headrace_runtime.gateway.upstream import LATE, EngineError, Pool

log = logging.getLogger(__name__)

PROBE_HEADERS = (("x-request-id", "headrace-probe"),)
COMPUTED = (b"vllm:generation_tokens_total", b"vllm:prompt_tokens_total", b"vllm:kv_cache_usage_perc",
            b"vllm:iteration_tokens_total_count")  # fmt: skip
"""Series of vLLM that move only when the engine itself does a step; the front end alone never moves them."""


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds."""

    every: float = 1.0
    every_while_out: float = 0.25
    """What is back sooner serves sooner, and a refused connection costs nothing."""
    deadline: float = 1.0
    """Of a health check."""
    probe: float = 5.0
    """Of a probe, at the least: an engine that is slower than others has longer."""
    tick: float = 0.25
    question: float = 0.5
    """Between two looks at a silent engine's counters."""


class Warden:
    """Looks after the engines of one fleet. `model` is the name they serve it under."""

    def __init__(self, fleet: Fleet, pool: Pool, model: str, timing: Timing | None = None) -> None:
        self._fleet = fleet
        self._pool = pool
        self._timing = timing or Timing()
        self._probe_body = orjson.dumps({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0})
        self._attended: dict[Slot, asyncio.Task[None]] = {}
        self._asked: dict[Slot, asyncio.Task[None]] = {}
        self._new = asyncio.Event()
        fleet.on_new(lambda _: self._new.set())

    async def watch(self) -> None:
        """Runs until cancelled. New engines are checked at once. A slow engine delays no other's check."""
        last = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                self._new.clear()
                now = time.monotonic()
                # A process that was itself kept from running has heard nobody: that time says nothing of the engines.
                self._fleet.tick(min(now - last, self._timing.tick))
                last = now
                self._keep(group, self._attended, self._fleet.slots(), self._attend)
                self._keep(group, self._asked, self._fleet.suspects(), self._ask)
                try:
                    async with asyncio.timeout(self._timing.tick):
                        await self._new.wait()
                except TimeoutError:
                    continue

    def _keep(
        self,
        group: asyncio.TaskGroup,
        tasks: dict[Slot, asyncio.Task[None]],
        wanted: list[Slot],
        work: Callable[[Slot], Coroutine[Any, Any, None]],
    ) -> None:
        """One task for each of `wanted`, none for others."""
        for slot in tasks.keys() - set(wanted):
            tasks.pop(slot).cancel()
        for slot in wanted:
            if slot not in tasks or tasks[slot].done():
                tasks[slot] = group.create_task(work(slot))

    async def _attend(self, slot: Slot) -> None:
        """Checks, and probes where they are due, as long as the engine is there."""
        while True:
            began = time.monotonic()
            await self._check(slot.endpoint)
            if self._fleet.begin_probe(slot):
                await self._probe(slot)
            every = self._timing.every if slot.healthy else self._timing.every_while_out
            await asyncio.sleep(max(0.0, began + every - time.monotonic()))

    async def _check(self, endpoint: Endpoint) -> None:
        began = time.monotonic()
        problem = await self._health(endpoint.url)
        if problem == "timeout" and time.monotonic() - began > LATE * self._timing.deadline:
            log.debug("this process was kept from running: %s may have answered in time", endpoint.name)
        elif problem:
            self._fleet.unwell(endpoint, problem)
        else:
            self._fleet.answered(endpoint)

    async def _health(self, url: str) -> Reason:
        """What is wrong, or nothing. A failure is an answer here: it is logged, never raised."""
        try:
            status, _ = await self._get(url, "/health")
        except EngineError as error:
            log.debug("%s: %s", url, error)
            return "connect" if error.cause == "connect" else "timeout"
        return "" if status == 200 else "unhealthy"

    async def _probe(self, slot: Slot) -> None:
        """Whether an engine in quarantine gives a token again."""
        try:
            async with asyncio.timeout(max(self._timing.probe, self._fleet.patience(slot))):
                alive = await self._gives_token(slot.endpoint.url)
        except TimeoutError:
            alive = False
        if alive:
            self._fleet.alive(slot)
        else:
            self._fleet.probe_failed(slot)

    async def _ask(self, slot: Slot) -> None:
        """Whether an engine that owes bytes and sends none computes: a token of its own, or counters that move (it may
        be busy for long with answers that are sent in one piece). The fleet ends the wait, by giving the engine up."""
        token = asyncio.create_task(self._gives_token(slot.endpoint.url))
        try:
            before = await self._counters(slot.endpoint.url)
            while not token.done():
                await asyncio.wait([token], timeout=self._timing.question)
                after = await self._counters(slot.endpoint.url)
                if before and after and before != after:
                    self._fleet.alive(slot)
                    return
                before = after or before
            if await token:
                self._fleet.alive(slot)
        finally:
            token.cancel()

    async def _gives_token(self, url: str) -> bool:
        """A refusal (4xx) counts too: it is well, and no completion is what it serves."""
        try:
            exchange = await self._pool.post(url, COMPLETIONS, self._probe_body, PROBE_HEADERS)
            try:
                await exchange.whole()
            finally:
                exchange.abort()
        except EngineError as error:
            log.debug("probe of %s: %s", url, error)
            return False
        return exchange.status < 500

    async def _counters(self, url: str) -> tuple[bytes, ...]:
        """The lines of `COMPUTED`; none where the engine does not say."""
        try:
            _, body = await self._get(url, "/metrics")
        except EngineError as error:
            log.debug("metrics of %s: %s", url, error)
            return ()
        return tuple(line for line in body.splitlines() if line.startswith(COMPUTED))

    async def _get(self, url: str, target: str) -> tuple[int, bytes]:
        """Raises EngineError, also where it takes longer than a health check may."""
        try:
            async with asyncio.timeout(self._timing.deadline):
                exchange = await self._pool.get(url, target)
                try:
                    body = await exchange.whole()
                finally:
                    exchange.abort()
        except TimeoutError:
            raise EngineError("timeout", f"no {target} within {self._timing.deadline} s") from None
        return exchange.status, body

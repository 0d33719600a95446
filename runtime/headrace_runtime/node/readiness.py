"""Whether an engine answers: one generated token first, then its `/health` and its progress for as long as it lives.

No single signal of vLLM is trusted. `/health` has said 200 on an engine that dies at its first request, so ready means
one token. It also says 200 while only the front end lives and EngineCore hangs, so an engine whose token counters do
not move is sent a request that is over as it comes: it passes through EngineCore and back between two steps and
computes nothing, so that it waits for no queue and for no long prompt (`engine/replay.py`). What counts as failed is
decided in `decide.py`; here it is only measured.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from headrace_runtime.contract import REPLAY_FIELD
from headrace_runtime.node.pulse import Part

UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
PROMPT = "ready"
TOKEN = 0
"""A token id that every vocabulary has."""
OWING_SECONDS = 1.0
"""An answer that is quicker was never due."""

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USED = "vllm:kv_cache_usage_perc"
PROGRESS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:iteration_tokens_total_sum")


@dataclass(frozen=True)
class Intervals:
    """Seconds. A busy front end on a loaded core answers `/health` late, never as late as `health_timeout`."""

    starting: float = 0.2
    health: float = 1.0
    health_timeout: float = 3.0
    token_timeout: float = 60.0
    progress: float = 3.0
    draining: float = 0.5


@dataclass
class Health:
    """What has been measured of one engine so far; written here, read by the agent's loop. Times are monotonic."""

    ready_at: float | None = None
    failures: int = 0
    progressed_at: float = 0.0
    """When it was last known to generate, or not to have been asked to."""
    front_asked_at: float | None = None
    """When its front end was asked for what it has not answered yet."""
    core_asked_at: float | None = None
    """The same of a request that passes through EngineCore."""
    quiet_since: float | None = None
    """While draining: since when it has had no request, nor KV blocks that a decode engine may still fetch."""
    requests: int = 0
    """While draining: running and waiting, as last counted."""
    error: str = ""

    def owing(self, now: float) -> Part | None:
        """The part that an answer is due from. The front end first: nothing passes through one that does not answer."""
        if self.front_asked_at is not None and now - self.front_asked_at > OWING_SECONDS:
            return "front"
        if self.core_asked_at is not None and now - self.core_asked_at > OWING_SECONDS:
            return "core"
        return None


@dataclass(frozen=True)
class Load:
    """From an engine's `/metrics`."""

    requests: float
    """Running and waiting."""
    progress: float
    """A sum of counters that any computed token moves."""
    kv_used: float = 0.0
    """Share of the KV blocks that may not be given away. Without a request they are those of prompts handed over, which
    the decode engine has not fetched yet; blocks that only might serve another prompt do not count. 0 again at the
    latest when the lease of the last one ends (vLLM's `kv_lease_duration`, 30 s)."""


class Asked(Protocol):
    """An engine, as its agent asks after it. On a rank above 0 it is rank 0 that knows (`node/gang.py`)."""

    async def healthy(self, seconds: float) -> bool: ...

    async def generate(self, seconds: float) -> str: ...

    async def pass_through(self, seconds: float) -> str: ...

    async def load(self, seconds: float) -> Load | None: ...


class Client:
    """One engine's HTTP server, as its agent uses it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str) -> None:
        self._session, self._url, self._model = session, url, model

    async def healthy(self, seconds: float) -> bool:
        try:
            async with self._session.get(f"{self._url}/health", timeout=aiohttp.ClientTimeout(seconds)) as answer:
                return answer.status == 200
        except UNREACHABLE:
            return False

    async def generate(self, seconds: float) -> str:
        """Have one token generated. Returns what went wrong, empty if nothing did."""
        return await self._complete({}, seconds)

    async def pass_through(self, seconds: float) -> str:
        """Send a request through EngineCore and back. Returns as `generate`."""
        return await self._complete({"vllm_xargs": {REPLAY_FIELD: [TOKEN]}}, seconds)

    async def _complete(self, more: Mapping[str, object], seconds: float) -> str:
        body = {"model": self._model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0, **more}
        limit = aiohttp.ClientTimeout(seconds)
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body, timeout=limit) as answer:
                if answer.status != 200:
                    return f"the first request was answered with status {answer.status}"
                words = await answer.json()
                return "" if words["usage"]["completion_tokens"] == 1 else "the first request gave no token"
        except (*UNREACHABLE, ValueError, KeyError, TypeError) as error:
            return f"the first request failed: {type(error).__name__}"

    async def load(self, seconds: float) -> Load | None:
        """None when the engine does not say."""
        try:
            async with self._session.get(f"{self._url}/metrics", timeout=aiohttp.ClientTimeout(seconds)) as answer:
                return parse_load(await answer.text()) if answer.status == 200 else None
        except (*UNREACHABLE, ValueError):
            return None


def parse_load(text: str) -> Load | None:
    """From the Prometheus text of vLLM; None if it does not count its requests. ValueError if it is no such text."""
    names = (RUNNING, WAITING, KV_USED, *PROGRESS)
    sums = dict.fromkeys(names, 0.0)
    seen = set()
    few = "".join(line for line in text.splitlines(keepends=True) if line.startswith(names))  # of some thousand lines
    for family in text_string_to_metric_families(few):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
                seen.add(sample.name)
    if RUNNING not in seen:
        return None
    progress = sum(sums[name] for name in PROGRESS)
    return Load(requests=sums[RUNNING] + sums[WAITING], progress=progress, kv_used=sums[KV_USED])


async def watch(client: Asked, health: Health, intervals: Intervals, now: Callable[[], float]) -> None:
    """Measure one engine into `health` until cancelled."""
    while not await client.healthy(intervals.health_timeout):  # noqa: ASYNC110 - what is polled is another process
        await asyncio.sleep(intervals.starting)
    while problem := await client.generate(intervals.token_timeout):
        health.error = problem
        await asyncio.sleep(intervals.health)
    health.error = ""
    health.ready_at = health.progressed_at = now()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_watch_health(client, health, intervals, now))
        tasks.create_task(_watch_progress(client, health, intervals, now))


async def _watch_health(client: Asked, health: Health, intervals: Intervals, now: Callable[[], float]) -> None:
    while True:
        health.front_asked_at = health.front_asked_at or now()
        if await client.healthy(intervals.health_timeout):
            health.failures, health.front_asked_at = 0, None
        else:
            health.failures += 1
        await asyncio.sleep(intervals.health)


async def _watch_progress(client: Asked, health: Health, intervals: Intervals, now: Callable[[], float]) -> None:
    last = -1.0
    while True:
        load = await client.load(intervals.health_timeout)
        if load and load.progress != last:
            last, health.progressed_at = load.progress, now()
        else:
            health.core_asked_at = now()
            if not await client.pass_through(intervals.token_timeout):
                health.progressed_at = now()
            health.core_asked_at = None
        await asyncio.sleep(intervals.progress)


async def watch_quiet(client: Asked, health: Health, intervals: Intervals, now: Callable[[], float]) -> None:
    """While draining, in place of `watch`: measure since when nobody needs the engine any more, until cancelled."""
    while True:
        load = await client.load(intervals.health_timeout)
        if load is not None:
            health.requests = int(load.requests)
        if load is None or load.requests > 0 or load.kv_used > 0:
            health.quiet_since = None
        elif health.quiet_since is None:
            health.quiet_since = now()
        await asyncio.sleep(intervals.draining)

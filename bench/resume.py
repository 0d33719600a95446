"""An engine killed in the midst of its streams: what its clients wait, and when it serves again.

Two real vLLM engines with a tiny model, each under the agent that owns it in a pod; some clients stream through our
gateway, and one engine is killed at a random moment (its core alone, or all of its processes, in turn). *Waits* are of
the streams that it was writing: from the last token before the kill to the first that its client did not have yet.
Three ways, which alternate: the gateway goes on at the other engine · the gateway does not, and the client asks again
from scratch · there is no other engine and no agent that keeps a warm one: the client asks until a cold start is done.
Every answer is compared with the one that an undisturbed engine gives, in 32-bit floats so that batches do not matter.
"""

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from socket import socket
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
from rich.progress import Progress

from bench.engines import gateway
from bench.programs import free_port, running, wait_for
from bench.report import Options, Report, at_least, at_most, spread
from headrace_runtime.contract import (
    Endpoint,
    Engine,
    FixedDiscovery,
    Model,
    NodeContract,
    NodeState,
    Place,
    Resume,
)
from local.engine import build, models
from local.programs import wait_until

MODEL = "tiny"
STREAMS = 6
PROMPT, ANSWER = 64, 400
KILL_AFTER = range(50, 250)
"""Tokens that the first of the streams has at the kill."""
ASK_AGAIN_SECONDS = 0.1
SERVED_SECONDS = 120.0
ENDED_SECONDS = 10.0
COMPLETIONS = "/v1/completions"

COLUMNS = ("engine killed under load", "kills", "streams it wrote", "their wait, s", "lost", "different", "serves, s")


class Owned:
    """An engine under its agent, as a pod has it."""

    def __init__(self, folder: Path, name: str) -> None:
        ports = {"engine_port": free_port(), "agent_port": free_port(), "kv_transfer_port": free_port()}
        place = Place(name=name, address="127.0.0.1", run_dir=str(folder / name), **ports)
        contract = NodeContract(
            namespace="bench",
            deployment="bench",
            revision="bench",
            role="serve",
            model=Model(source="bench", path=str(models.folder() / MODEL), served_name=MODEL),
            engine=Engine(device="cpu", dtype="float32", max_model_len=2048, kv_cache_bytes=256 * 1024**2),
            drain_seconds=1.0,
        )
        file = folder / f"{name}.json"
        file.write_text(contract.model_dump_json(by_alias=True))
        options = [f"--{key.replace('_', '-')}={value}" for key, value in place.model_dump().items()]
        self._argv = [str(build.python()), "-m", "headrace_runtime", "node", f"--contract={file}", *options]
        self._log = folder / f"{name}.log"
        self._life = ExitStack()
        self.url = f"http://127.0.0.1:{place.engine_port}"
        self._agent_url = f"http://127.0.0.1:{place.agent_port}"
        self.endpoint = Endpoint(name=name, url=self.url, role="serve", revision="bench")

    def start(self) -> None:
        self._program = self._life.enter_context(running(self._argv, self._log))

    def wait(self) -> None:
        wait_for(f"{self._agent_url}/readyz", self._program, self._log)

    def stop(self) -> None:
        self._life.close()

    async def kill(self, client: aiohttp.ClientSession, core_alone: bool) -> None:
        async with client.get(f"{self._agent_url}/state") as answer:
            group = NodeState.model_validate(await answer.json()).engine_pid
        if group is None:
            raise RuntimeError(f"{self.endpoint.name} has no engine to kill")
        if core_alone:
            os.kill(_core(group), signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)

    def kill_with_agent(self) -> None:
        """Gives back once nothing of it holds the port: an engine goes a moment after its agent."""
        os.killpg(self._program.pid, signal.SIGKILL)
        self._life.close()
        wait_until(f"the engine at {self.url} is gone", lambda: not _listens(self.url), ENDED_SECONDS)


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def _core(group: int) -> int:
    """The process of a vLLM's process group that holds the model."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            of_group = int((process / "stat").read_text().rpartition(")")[2].split()[2]) == group
            if of_group and b"EngineCore" in (process / "cmdline").read_bytes():
                return int(process.name)
    raise RuntimeError(f"process group {group} has no EngineCore")


@dataclass
class Told:
    """One answer as its client saw it, however often it had to ask."""

    body: dict[str, Any]
    engine: str = ""
    """That began it."""
    tokens: list[int] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    """When the client had one token more than ever before."""
    done: bool = False

    def wait(self, since: float) -> float:
        """The longest time without progress, from the last before `since` on."""
        before = max((at for at in self.progress if at <= since), default=since)
        times = [before, *(at for at in self.progress if at > since)]
        return max((late - early for early, late in pairwise(times)), default=0.0)

    def hear(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        new = len(self.tokens) - len(self.progress)
        self.progress += [perf_counter()] * max(0, new)


@dataclass
class Way:
    """All kills of one way to go on. Times in seconds."""

    name: str
    kills: int = 0
    waits: list[float] = field(default_factory=list)
    lost: int = 0
    different: int = 0
    served: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        waits = spread(self.waits, 2) if self.waits else "-"
        counts = [str(self.lost), str(self.different)]
        return [self.name, str(self.kills), str(len(self.waits)), waits, *counts, spread(self.served, 2)]


def run(options: Options) -> Report:
    repeats, restarts = (2, 1) if options.quick else (5, 3)
    report = Report("resume", f"{repeats} kills each way, {restarts} cold starts; median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting two engines", total=2 * repeats + restarts)
        engines = [Owned(folder, f"engine-{index}") for index in range(2)]
        for engine in engines:
            stack.callback(engine.stop)
            engine.start()
        for engine in engines:
            engine.wait()
        fronts = Fronts(
            stack.enter_context(gateway_before(folder, engines, Resume())),
            stack.enter_context(gateway_before(folder, engines, None)),
            stack.enter_context(gateway_before(folder, engines[:1], None)),
        )
        bench = Bench(engines, fronts)
        asyncio.run(bench.measure(repeats, restarts, lambda what: progress.update(task, advance=1, description=what)))
    bench.report(report)
    return report


@dataclass(frozen=True)
class Fronts:
    """URLs of gateways: one that resumes, one that does not, one that has the first engine only."""

    resumes: str
    gives_up: str
    alone: str


@contextmanager
def gateway_before(folder: Path, engines: Sequence[Owned], resume: Resume | None) -> Iterator[str]:
    endpoints = FixedDiscovery(endpoints=tuple(engine.endpoint for engine in engines))
    with gateway(folder, MODEL, endpoints, len(engines), resume) as front:
        yield front.url


class Bench:
    """The measurement: one kill after the other, each under its own streams."""

    def __init__(self, engines: Sequence[Owned], fronts: Fronts) -> None:
        self._engines, self._fronts = engines, fronts
        self._chance = random.Random(1)
        self._resumed = Way("the gateway goes on at the other engine")
        self._again = Way("the client asks again from scratch")
        self._cold = Way("the client asks until a cold start is done")

    async def measure(self, repeats: int, restarts: int, step: Callable[[str], None]) -> None:
        timeout = aiohttp.ClientTimeout(SERVED_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as self._client:
            await self._compare(self._resumed, [Told(self._body()) for _ in range(STREAMS)])  # warms what is lazy
            self._resumed.lost = self._resumed.different = 0
            for index in range(repeats):
                victim, core_alone = self._engines[index % 2], index % 4 < 2
                for way, front in ((self._resumed, self._fronts.resumes), (self._again, self._fronts.gives_up)):

                    async def kill(victim: Owned = victim, core_alone: bool = core_alone) -> None:
                        await victim.kill(self._client, core_alone)

                    await self._kill(way, front, victim, kill)
                    step(way.name)
            for _ in range(restarts):
                await self._kill(self._cold, self._fronts.alone, self._engines[0], self._start_cold)
                step(self._cold.name)

    async def _start_cold(self) -> None:
        await asyncio.to_thread(self._engines[0].kill_with_agent)
        self._engines[0].start()

    async def _kill(self, way: Way, front: str, victim: Owned, kill: Callable[[], Any]) -> None:
        told = [Told(self._body()) for _ in range(STREAMS)]
        asked = [asyncio.create_task(self._ask(front, one)) for one in told]
        enough = self._chance.choice(KILL_AFTER)
        while max(len(one.progress) for one in told) < enough or not all(one.progress for one in told):
            if any(one.done() for one in asked):
                raise RuntimeError("a stream ended before its engine was to be killed")
            await asyncio.sleep(0.002)
        killed = perf_counter()
        await kill()
        way.kills += 1
        way.served.append(await self._serves(victim.url) - killed)
        await asyncio.gather(*asked)
        way.waits += [one.wait(killed) for one in told if one.engine == victim.endpoint.name]
        await self._settle()
        await self._compare(way, told)

    async def _compare(self, way: Way, told: Sequence[Told]) -> None:
        """With what the engines say undisturbed: afterwards, so that no cache knows the prompts when they matter."""
        undisturbed = [Told(one.body) for one in told]
        await asyncio.gather(*(self._ask(self._fronts.resumes, one) for one in undisturbed))
        for one, true in zip(told, undisturbed, strict=True):
            if not true.done:
                raise RuntimeError("an undisturbed stream was lost")
            way.lost += not one.done
            way.different += one.done and one.tokens != true.tokens

    async def _ask(self, front: str, told: Told) -> None:
        """Ask until there is a whole answer."""
        deadline = perf_counter() + SERVED_SECONDS
        while perf_counter() < deadline:
            told.tokens = []
            with suppress(aiohttp.ClientError):  # the answer is not whole then: it is asked for again
                async with self._client.post(front + COMPLETIONS, json=told.body) as response:
                    told.engine = told.engine or response.headers.get("x-headrace-decode", "")
                    if response.status == 200 and await self._hear(response, told):
                        return
            if front == self._fronts.resumes and told.progress:
                return  # here a stream that breaks is lost
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def _hear(self, response: aiohttp.ClientResponse, told: Told) -> bool:
        async for line in response.content:
            if line == b"data: [DONE]\n":
                told.done = True
            elif line.startswith(b"data: "):
                event = orjson.loads(line[6:])
                if "error" in event:
                    return False
                told.hear([token for choice in event["choices"] for token in choice["token_ids"]])
        return told.done

    async def _serves(self, url: str) -> float:
        """When the engine gives a token again."""
        deadline = perf_counter() + SERVED_SECONDS
        body = {"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 1}
        while perf_counter() < deadline:
            with suppress(aiohttp.ClientError):  # not yet
                async with self._client.post(url + COMPLETIONS, json=body) as answer:
                    await answer.read()
                    if answer.status == 200:
                        return perf_counter()
            await asyncio.sleep(0.02)
        raise RuntimeError(f"nothing answers at {url}")

    async def _settle(self) -> None:
        """Until agents and gateways have seen that all engines are well."""
        for engine in self._engines:
            await asyncio.to_thread(engine.wait)
        await asyncio.sleep(2.0)  # two health checks of the gateways

    def _body(self) -> dict[str, Any]:
        prompt = [self._chance.randrange(10, 4000) for _ in range(PROMPT)]
        fixed = {"max_tokens": ANSWER, "temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True}
        return {"model": MODEL, "prompt": prompt, **fixed}

    def report(self, report: Report) -> None:
        ways = [self._resumed, self._again, self._cold]
        report.rows += [way.row() for way in ways]
        report.notes += [
            "wait: from a stream's last token before the kill to the first that its client did not have yet",
            "serves: from the kill to the next token of the killed engine, asked directly",
        ]
        again = median([*self._resumed.served, *self._again.served])
        report.checks += [
            at_most(
                "lost and different answers where the gateway resumes", self._resumed.lost + self._resumed.different, 0
            ),
            at_most("seconds from the kill until the engine serves again", again, 5.0),
            at_least("a cold start, of that", median(self._cold.served) / again, 5.0),
            at_least("wait when asked again from scratch, of resumed", _ratio(self._again, self._resumed), 3.0),
            at_least("wait for a cold start, of resumed", _ratio(self._cold, self._resumed), 5.0),
        ]


def _ratio(theirs: Way, ours: Way) -> float:
    return median(theirs.waits) / median(ours.waits)

"""An engine that changes its role while it is under load, against stopping it and starting it again in the new one.

Two real vLLM engines with a tiny model behind our gateway, which reads their roles from a file. In the background some
clients stream without a pause. *Decision*: the file is replaced, as the operator replaces a label; the clock runs from
there to the first token of a request that the engine served in its new role, so that everything in between counts: the
file being read, the route, the request itself. The restart is what one does without role changes: take the engine out
of the routes, let it finish, end it, start it, put it back. Its row says how much of the time was the engine's start.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import aiohttp
from rich.progress import Progress

from bench.engines import Front, Kind, Worker, engines, gateway
from bench.load import says_error
from bench.report import Options, Report, at_least, at_most, spread
from headrace_runtime.contract import FileDiscovery, RoleName

KIND = Kind("tiny")
STREAMS = 6
PROMPT, ANSWER = 200, 64
SERVED_SECONDS = 120.0
ANSWER_SECONDS = 300.0
AFTER_SECONDS = 1.0
"""A gap that ends so long after a change is still put down to it."""

COLUMNS = ("change under load", "to the first token in the new role, ms", "requests lost", "longest gap of others, ms")


@dataclass
class Others:
    """What the clients in the background saw."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """When a gap between two tokens ended, and how long it was, in seconds."""

    def longest(self, since: float) -> float:
        return max((gap for at, gap in self.gaps if at >= since), default=0.0)

    def usual(self) -> float:
        """The median gap: one step of a decode engine."""
        return median(gap for _, gap in self.gaps)


@dataclass
class Way:
    """All repeats of one way to change a role. Times in seconds."""

    name: str
    took: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    lost: int = 0

    def row(self) -> list[str]:
        gaps = spread([gap * 1e3 for gap in self.gaps])
        took = spread([took * 1e3 for took in self.took]) if self.took else "-"
        return [self.name, took, str(self.lost), gaps]


def run(options: Options) -> Report:
    repeats, restarts = (4, 1) if options.quick else (20, 3)
    report = Report("rolechange", f"{repeats} changes there and back, {restarts} restarts; median (min..max)", COLUMNS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        progress = stack.enter_context(Progress(transient=True))
        task = progress.add_task("starting two engines", total=repeats + restarts)
        pair = stack.enter_context(engines(folder, 2, KIND))
        routes = Routes(folder / "engines.json", pair)
        routes.write("decode")
        front = stack.enter_context(gateway(folder, KIND.model, FileDiscovery(path=str(routes.file)), len(pair)))
        bench = Bench(front, routes)
        asyncio.run(bench.measure(repeats, restarts, lambda what: progress.update(task, advance=1, description=what)))
    bench.report(report)
    return report


class Routes:
    """The file that the gateway reads: the first engine has the role that is written, the other one always decodes."""

    def __init__(self, file: Path, pair: Sequence[Worker]) -> None:
        self.file = file
        self.moved, self._other = pair

    def write(self, role: RoleName, *, draining: bool = False) -> None:
        found = (self.moved.endpoint(role, draining=draining), self._other.endpoint("decode"))
        half = self.file.with_suffix(".new")
        half.write_text(json.dumps([endpoint.model_dump(by_alias=True) for endpoint in found]))
        half.rename(self.file)


class Bench:
    """The measurement: clients in the background, one change after the other before them."""

    def __init__(self, front: Front, routes: Routes) -> None:
        self._front, self._routes = front, routes
        self._chance = random.Random(1)
        self._others = Others()
        self._steady, self._restart = Way("none"), Way("stop and start again: decode to prefill")
        self._to: dict[RoleName, Way] = {
            "prefill": Way("role change: decode to prefill"),
            "decode": Way("role change: prefill to decode"),
        }
        self._start_seconds: list[float] = []

    async def measure(self, repeats: int, restarts: int, step: Callable[[str], None]) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_SECONDS)) as self._client:
            clients = [asyncio.create_task(self._stream_for_ever()) for _ in range(STREAMS)]
            try:
                await asyncio.sleep(AFTER_SECONDS)
                for _ in range(repeats):
                    async with self._noted(self._steady):
                        pass
                    for role, way in self._to.items():
                        async with self._noted(way) as began:
                            self._routes.write(role)
                            way.took.append(await self._served(role) - began)
                    step("role changes")
                for _ in range(restarts):
                    async with self._noted(self._restart) as began:
                        await self._stop_and_start()
                        self._restart.took.append(await self._served("prefill") - began)
                    self._routes.write("decode")
                    step("restarts")
            finally:
                for client in clients:
                    client.cancel()
                await asyncio.gather(*clients, return_exceptions=True)

    def report(self, report: Report) -> None:
        ways = [self._steady, *self._to.values(), self._restart]
        report.rows += [way.row() for way in ways]
        changes = [took for way in self._to.values() for took in way.took]
        step = self._others.usual()
        longest = max(gap for way in self._to.values() for gap in way.gaps)
        report.notes += [
            f"of a restart, {spread(self._start_seconds)} s were the engine's start; the rest, that its answers ended",
            f"others, through all of it: {self._others.answered} answers, one token each {step * 1e3:.1f} ms; the "
            f"longest gap around a change of role was {longest / step:.1f} such steps, "
            f"without a change {max(self._steady.gaps) / step:.1f}",
            *self._others.lost[:3],
        ]
        faster = median(self._restart.took) / median(changes)
        report.checks.append(at_least("times faster than stopping and starting", faster, 20.0))
        report.checks.append(at_most("requests lost by changes of role", sum(w.lost for w in self._to.values()), 0))

    @asynccontextmanager
    async def _noted(self, way: Way) -> AsyncIterator[float]:
        """When it began; what others saw meanwhile and shortly after is the way's."""
        began, lost = perf_counter(), len(self._others.lost)
        yield began
        await asyncio.sleep(AFTER_SECONDS)
        way.gaps.append(self._others.longest(began))
        way.lost += len(self._others.lost) - lost

    async def _stop_and_start(self) -> None:
        """As without changes of role: out of the routes, its answers to their end, the engine ended and started."""
        worker = self._routes.moved
        self._routes.write("decode", draining=True)
        while not await asyncio.to_thread(self._drained):  # noqa: ASYNC110 - what is polled is another process
            await asyncio.sleep(0.02)
        await asyncio.to_thread(worker.stop)
        began = perf_counter()
        worker.start()
        await asyncio.to_thread(worker.wait)
        self._start_seconds.append(perf_counter() - began)
        self._routes.write("prefill")

    def _drained(self) -> bool:
        state = self._front.state()[self._routes.moved.name]
        return bool(state["draining"]) and state["load"] == 0

    async def _served(self, role: RoleName) -> float:
        """When the first token came of a request that the moved engine served in this role."""
        deadline = perf_counter() + SERVED_SECONDS
        while perf_counter() < deadline:
            headers, first = await self._ask(1)
            if headers.get(f"x-headrace-{role}") == self._routes.moved.name:
                return first
        raise RuntimeError(f"{self._routes.moved.name} served nothing as {role} within {SERVED_SECONDS:g} s")

    async def _stream_for_ever(self) -> None:
        while True:
            await self._ask(ANSWER)

    async def _ask(self, tokens: int) -> tuple[Mapping[str, str], float]:
        """One streamed answer, noted: its headers, and when its first token came."""
        prompt = [self._chance.randrange(10, 4000) for _ in range(PROMPT)]
        body = {"model": KIND.model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        first, last, text = 0.0, 0.0, b""
        async with self._client.post(f"{self._front.url}/v1/completions", json=body) as answer:
            try:
                async for part in answer.content.iter_any():
                    text += part
                    now = perf_counter()
                    if last:
                        self._others.gaps.append((now, now - last))
                    first, last = first or now, now
            except aiohttp.ClientError as error:
                text += repr(error).encode()
        if answer.status == 200 and text.endswith(b"data: [DONE]\n\n") and not says_error(text):
            self._others.answered += 1
        else:
            self._others.lost.append(f"lost: HTTP {answer.status}: {text[-200:]!r}")
        return answer.headers, first

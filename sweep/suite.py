"""The whole sweep: a clean run of each scenario, all points of it, and the planted bugs. Called by `__main__.py` and by
the short form among the tests.

Points run several at a time, each in its own namespace of one API server; a seed draws which, where not all shall run.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from sweep import watched
from sweep.life import Build
from sweep.oracle import Ending, differences
from sweep.planted import Planted
from sweep.point import play
from sweep.proxy import AT_PASSES, AT_WATCHES, AT_WRITES, Cut, Proxy, Upstream, Watches, Way
from sweep.scenarios import SCENARIOS, Scenario
from sweep.stage import Client, Stage, install, served

SOUND = Build()


Point = Cut | Watches
"""One disturbance of one scenario."""


@dataclass(frozen=True)
class Failure:
    """A point whose run was not as the clean one."""

    cut: Point | None
    differences: tuple[str, ...]


@dataclass
class Result:
    """What became of one scenario."""

    scenario: Scenario
    clean: Ending
    cuts: Sequence[Point]
    passed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures and self.passed == len(self.cuts)


@dataclass(frozen=True)
class Caught:
    """How a planted bug was noticed. `cut` None and `differences` not empty: without any cut."""

    planted: Planted
    tried: int
    cut: Cut | None = None
    differences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return bool(self.differences)


def cuts(clean: Ending, ways: Sequence[Way] = (*AT_WRITES, *AT_PASSES)) -> list[Cut]:
    """Every point of a scenario. The lists of a pass are replayed where older ones than its own exist."""
    found = [Cut(way, number) for number in range(1, len(clean.writes) + 1) for way in ways if way in AT_WRITES]
    first = min(clean.passes, default=0)
    earliest = {Way.OLD: first + 1, Way.OLDEST: first + 2}
    found += [Cut(w, n) for n in sorted(clean.passes) for w in ways if w in AT_PASSES and n >= earliest[w]]
    return found


def spoilt(scenario: Scenario) -> tuple[Watches, ...]:
    """How the watches are spoiled. Not where a user interferes half-way, since there is no half-way to be told."""
    return AT_WATCHES if scenario.counts else ()


class Suite:
    """One API server with our kind, and room for so many runs at a time."""

    def __init__(self, client: Client, upstream: Upstream, jobs: int) -> None:
        self._client = client
        self._upstream = upstream
        self._room = asyncio.Semaphore(jobs)

    async def play(self, scenario: Scenario, cut: Cut | None = None, build: Build = SOUND) -> Ending:
        """One run in a new namespace, once there is room."""
        async with self._room:
            namespace = f"{scenario.name}-{secrets.token_hex(4)}"
            return await play(scenario, cut, self._client, self._upstream, namespace, build)

    async def clean(self, scenario: Scenario, build: Build = SOUND) -> Ending:
        """The run without a cut, which all others are held against."""
        return await self.play(scenario, build=build)

    async def point(self, scenario: Scenario, clean: Ending, cut: Cut, build: Build = SOUND) -> list[str]:
        """What is not as in the clean run."""
        ending = await self.play(scenario, cut, build)
        missed = [] if ending.struck else ["the cut never came: this run was another one"]
        return missed + differences(clean, ending, counts=scenario.counts)

    async def watch(self, scenario: Scenario, clean: Ending, watches: Watches) -> list[str]:
        """The same of a whole operator, kopf included, whose watches are spoiled."""
        async with self._room:
            namespace = f"{scenario.name}-{secrets.token_hex(4)}"
            stage, proxy = Stage(self._client, namespace), Proxy(self._upstream, watches=watches)
            await stage.open()
            with TemporaryDirectory(prefix="headrace-sweep-") as folder:
                async with proxy.listening():
                    ending = await watched.play(scenario, stage, proxy, Path(folder))
        missed = [] if ending.struck else ["no event was spoiled: nothing was tried"]
        return missed + differences(clean, ending, counts=scenario.counts)

    async def sweep(
        self, scenario: Scenario, clean: Ending, chosen: Sequence[Point], done: Callable[[], object] = lambda: None
    ) -> Result:
        """Runs the points; `done` is called after each."""
        result = Result(scenario, clean, chosen, failures=[Failure(None, clean.complaints)] if clean.complaints else [])

        async def one(at: Point) -> None:
            disturbed = self.watch(scenario, clean, at) if isinstance(at, Watches) else self.point(scenario, clean, at)
            if found := await disturbed:
                result.failures.append(Failure(at, tuple(found)))
            else:
                result.passed += 1
            done()

        async with asyncio.TaskGroup() as group:
            for cut in chosen:
                group.create_task(one(cut))
        return result

    async def catch(self, planted: Planted, draw: random.Random) -> Caught:
        """Runs points against a planted bug until one notices it."""
        scenario = next(one for one in SCENARIOS if one.name == planted.scenario)
        clean = await self.clean(scenario)
        unharmed = await self.clean(scenario, planted.build)
        if found := differences(clean, unharmed, counts=scenario.counts):
            return Caught(planted, 0, None, tuple(found))
        points = cuts(unharmed, planted.ways)
        draw.shuffle(points)
        for number, cut in enumerate(points, start=1):
            if found := await self.point(scenario, clean, cut, planted.build):
                return Caught(planted, number, cut, tuple(found))
        return Caught(planted, len(points))


@asynccontextmanager
async def suite(kubeconfig: Path, jobs: int) -> AsyncIterator[Suite]:
    """A suite upon an empty API server."""
    async with await Client.connect(kubeconfig=kubeconfig) as client, Upstream(kubeconfig) as upstream:
        await install(client)
        async with asyncio.timeout(60):
            while not await served(client):  # noqa: ASYNC110 - the API server tells nobody
                await asyncio.sleep(0.05)
        yield Suite(client, upstream, jobs)

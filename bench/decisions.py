"""What one routing decision costs, in real µs, and what listening to idle engines costs, in real processor time.

`python -m bench.decisions publish|listen FOLDER COUNT` are the two processes of the idle measurement.
"""

import asyncio
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from bench.programs import cpu_seconds, running
from headrace_runtime.contract import Endpoint, KvEvents
from headrace_runtime.engine.fake_kvevents import publishing
from headrace_runtime.gateway.affinity import Affinity, Reading
from headrace_runtime.gateway.blocks import Stored
from headrace_runtime.gateway.fleet import Fleet
from headrace_runtime.gateway.kvevents import follow
from headrace_runtime.gateway.prefix import PrefixIndex
from headrace_runtime.gateway.prompts import exact
from headrace_runtime.gateway.routing import Need, rank
from local.programs import wait_until

BLOCK: Final = 16
"""Tokens: vLLM's default on a GPU."""
ENGINES: Final = (8, 100)
DEPTHS: Final = (24, 128, 750)
"""Blocks of the prompt. 750 of 16 tokens are the mean prompt of the conversation trace."""
CALLS: Final = 200
READY_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Timed:
    """µs per decision, a figure for each repeat; the arms took turns."""

    engines: int
    depth: int
    ours: list[float]
    naive: list[float]


class Scene:
    """Engines that all hold a third of a prompt, a system prompt say, and one that holds all of it."""

    def __init__(self, engines: int, depth: int) -> None:
        chance = random.Random(depth)
        tokens = [chance.randrange(50_000) for _ in range(depth * BLOCK)]
        endpoints = [
            Endpoint(name=f"engine-{number}", url=f"http://e{number}", role="serve", revision="r")
            for number in range(engines)
        ]
        self._fleet, self._affinity = Fleet(), Affinity(clock=lambda: 0.0)
        self._fleet.publish(endpoints)
        self._held: dict[str, set[int]] = {}
        for number, endpoint in enumerate(endpoints):
            self._fleet.answered(endpoint)
            self._affinity.index.join(endpoint.name)
            self._affinity.index.heard(endpoint.name, 0.0)
            mine = tokens[: (depth if number == engines // 2 else depth // 3) * BLOCK]
            self._affinity.index.store(endpoint.name, Stored(range(len(mine) // BLOCK), None, mine, BLOCK))
            self._held[endpoint.name] = {key for key, _ in exact(mine, BLOCK)}
            self._affinity.waiting[endpoint.name] = chance.randrange(2000)
        self._reading = Reading(exact(tokens, BLOCK), True, len(tokens) + 1)
        self._turn = 0

    def ours(self) -> str:
        """As a journey does it."""
        need = Need(prompt=self._affinity.prompt(self._reading))
        self._turn += 1
        return rank(need, self._fleet.engines(), "PrefixAware", self._turn)[0].decode.name

    def naive(self) -> str:
        """A set of blocks for each engine, and a walk along the prompt in each."""
        best, least = "", float("inf")
        for name, held in self._held.items():
            reached = 0
            for key, tokens in self._reading.path:
                if key not in held:
                    break
                reached = tokens
            cost = self._affinity.waiting[name] + self._reading.tokens - reached
            if cost < least:
                best, least = name, cost
        return best


def decisions(repeats: int) -> list[Timed]:
    """Raises RuntimeError should the two ways choose differently."""
    found = []
    for engines in ENGINES:
        for depth in DEPTHS:
            scene = Scene(engines, depth)
            if scene.ours() != scene.naive():
                raise RuntimeError(f"{engines} engines, {depth} blocks: the two ways chose differently")
            pairs = [(_median_us(scene.ours), _median_us(scene.naive)) for _ in range(repeats)]
            found.append(Timed(engines, depth, [ours for ours, _ in pairs], [naive for _, naive in pairs]))
    return found


def _median_us(work: Callable[[], object]) -> float:
    times = []
    for _ in range(CALLS):
        began = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - began) / 1e3)
    return median(times)


def memory_per_block(blocks: int = 100_000) -> float:
    """Bytes that the index takes for a block that one engine holds."""
    index, batch = PrefixIndex(), 1000
    index.join("engine")
    tokens = list(range(batch * BLOCK))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(0, blocks, batch):
            names = [2**62 + first + number for number in range(batch)]
            index.store("engine", Stored(names, names[0] - 1 if first else None, tokens, BLOCK))
        return (tracemalloc.get_traced_memory()[0] - before) / len(index)
    finally:
        tracemalloc.stop()


# Idle


def idle_share(engines: int, seconds: float) -> float:
    """Of one core, that listening to so many engines takes while none of them says anything."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-")))
        pids = {}
        for role in ("publish", "listen"):
            argv = [sys.executable, "-m", "bench.decisions", role, str(folder), str(engines)]
            pids[role] = stack.enter_context(running(argv, folder / f"{role}.log")).pid
            wait_until(f"the process that is to {role}", (folder / f"{role}.ready").exists, READY_SECONDS)
        before, began = cpu_seconds(pids["listen"]), time.monotonic()
        time.sleep(seconds)
        return (cpu_seconds(pids["listen"]) - before) / (time.monotonic() - began)


def addresses(folder: Path, count: int) -> list[KvEvents]:
    return [KvEvents(publish=f"ipc://{folder}/p{n}", replay=f"ipc://{folder}/r{n}") for n in range(count)]


async def _publish(folder: Path, count: int) -> None:
    async with AsyncExitStack() as stack:
        for events in addresses(folder, count):
            await stack.enter_async_context(publishing(events))
        (folder / "publish.ready").touch()
        await asyncio.Event().wait()


async def _listen(folder: Path, count: int) -> None:
    index = PrefixIndex()
    engines = [
        Endpoint(name=f"e{number}", url="http://e", role="serve", revision="r", kv_events=events)
        for number, events in enumerate(addresses(folder, count))
    ]
    following = asyncio.create_task(follow(lambda: engines, index))
    while not all(index.timely(engine.name) for engine in engines):  # noqa: ASYNC110 - before the measurement only
        await asyncio.sleep(0.1)
    (folder / "listen.ready").touch()
    await following


def main(arguments: Sequence[str]) -> None:
    role, folder, count = arguments
    uvloop.run((_publish if role == "publish" else _listen)(Path(folder), int(count)))


if __name__ == "__main__":
    main(sys.argv[1:])

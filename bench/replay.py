"""*Simulated* replay of a trace by eight engines and the gateway's own routing: reuse of prompts, time to first token.

The routing is not modelled: `affinity.py`, `prefix.py` and `routing.py` decide, and learn the engines' KV events and
first tokens `EVENT_SECONDS` late and nothing else. The engines are `enginemodel.py`. Whether these are right is seen by
replaying round-robin in Dynamo's replay too: `routing.py` prints the difference.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from bench.enginemodel import BLOCK, BLOCKS, Running, SimulatedEngine
from bench.report import percentile
from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.affinity import Affinity, Placed, Reading
from headrace_runtime.gateway.blocks import Stored
from headrace_runtime.gateway.prefix import PrefixIndex
from headrace_runtime.gateway.prompts import exact
from headrace_runtime.gateway.routing import Engine, Need, Policy, rank
from simulator.request import Request

ENGINES: Final = 8
EVENT_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one replay. `reuse`: share of all prompt tokens that no engine computed. Times in ms, *simulated*."""

    reuse: float
    mean: float
    median: float
    p90: float
    p99: float
    gap: float
    """Mean time between tokens."""
    routed: tuple[tuple[Request, ...], ...] = ()
    """The requests of each engine."""


def replay(requests: Sequence[Request], policy: Policy) -> Outcome:
    """Raises RuntimeError should an engine be left with requests that never fit."""
    fleet = SimulatedFleet(policy)
    ran = [fleet.take(request) for request in requests]
    for engine in fleet.engines.values():
        engine.advance(float("inf"))
    fleet.hear(float("inf"))
    if any(one.end is None for one in ran):
        raise RuntimeError("some requests were never answered")
    firsts = [((one.first or 0.0) - one.request.at) * 1e3 for one in ran]
    gaps = [((one.end or 0.0) - (one.first or 0.0)) * 1e3 for one in ran]
    return Outcome(
        reuse=sum(one.reused for one in ran) / sum(request.prompt for request in requests),
        mean=sum(firsts) / len(firsts),
        median=percentile(firsts, 0.5),
        p90=percentile(firsts, 0.9),
        p99=percentile(firsts, 0.99),
        gap=sum(gaps) / sum(max(1, request.output - 1) for request in requests),
        routed=tuple(map(tuple, fleet.routed.values())),
    )


class SimulatedFleet:
    """Engines behind a gateway that knows what it is told, and no more."""

    def __init__(self, policy: Policy) -> None:
        self.engines = {f"engine-{number}": SimulatedEngine() for number in range(ENGINES)}
        self._endpoints = {
            name: Endpoint(name=name, url=f"http://{name}", role="serve", revision="r") for name in self.engines
        }
        self._policy = policy
        self.routed: dict[str, list[Request]] = {name: [] for name in self.engines}
        self._now = 0.0
        self._turn = 0
        self._affinity = Affinity(clock=lambda: self._now)
        self._loads = dict.fromkeys(self.engines, 0)
        self._placed: dict[Running, tuple[Placed, ExitStack]] = {}
        for name in self.engines:
            self._affinity.index.join(name)
            self._affinity.index.heard(name, 0.0)

    def take(self, request: Request) -> Running:
        """Route one request, once all engines have come as far as its arrival."""
        for engine in self.engines.values():
            engine.advance(request.at)
        self.hear(request.at)
        path = [(key, blocks * BLOCK) for key, blocks in exact(request.blocks, 1)]
        reading = Reading(path, True, request.prompt)
        engines = [Engine(self._endpoints[name], True, load) for name, load in self._loads.items()]
        need = Need(prompt=self._affinity.prompt(reading))
        name = rank(need, engines, self._policy, self._turn)[0].decode.name
        self._turn += 1
        one, stack = Running(request), ExitStack()
        self._placed[one] = (stack.enter_context(self._affinity.placed(reading, name)), stack)
        self._loads[name] += 1
        self.routed[name].append(request)
        self.engines[name].waiting.append(one)
        return one

    def hear(self, now: float) -> None:
        """What engines said up to now, as late as events are."""
        self._now = now
        index = self._affinity.index
        for name, engine in self.engines.items():
            while engine.happened and engine.happened[0][0] + EVENT_SECONDS <= now:
                when, what, one, blocks = engine.happened.popleft()
                if blocks:
                    learn(index, name, when, what, blocks)
                elif one is not None and what == "first":
                    self._placed[one][0].computed()
                elif one is not None:
                    self._placed.pop(one)[1].close()
                    self._loads[name] -= 1


def learn(index: PrefixIndex, name: str, when: float, what: str, blocks: Sequence[int]) -> None:
    """An engine's event of these blocks: that they are there, or no longer."""
    if what == "removed":
        index.remove(name, blocks)
    else:
        index.store(name, Stored(blocks, None, blocks, 1))
    index.heard(name, when)


# What no routing can pass


def unlimited(requests: Sequence[Request]) -> float:
    """Share of prompt tokens that were there before, in one cache that keeps all."""
    return pooled(requests, sum(len(request.blocks) for request in requests))


def pooled(requests: Sequence[Request], blocks: int = ENGINES * BLOCKS, belady: bool = False) -> float:
    """The same for one cache as large as those of all engines together, which drops the least recently used block, or
    that which is used next last (Belady); a prompt's tail before its head."""
    uses = _next_uses(requests) if belady else None
    cache: OrderedDict[int, float] = OrderedDict()
    queue: list[tuple[float, int]] = []
    reused = 0
    for place, request in enumerate(requests):
        hit = 0
        while hit < len(request.blocks) and request.blocks[hit] in cache:
            hit += 1
        reused += hit * BLOCK
        for depth, block in reversed(list(enumerate(request.blocks))):
            cache.pop(block, None)
            following = uses[place][depth] if uses else 0.0
            cache[block] = following
            if uses:
                heapq.heappush(queue, (-following, block))
        while len(cache) > blocks:
            if not uses:
                cache.popitem(last=False)
                continue
            negative, block = heapq.heappop(queue)
            if cache.get(block) == -negative:
                del cache[block]
    return reused / sum(request.prompt for request in requests)


def _next_uses(requests: Sequence[Request]) -> list[list[float]]:
    """For each block of each request, the place of the next request that has it; tails later than heads."""
    following: dict[int, int] = {}
    found: list[list[float]] = []
    for place in range(len(requests) - 1, -1, -1):
        blocks = requests[place].blocks
        found.append([following.get(block, len(requests)) + depth / 1e4 for depth, block in enumerate(blocks)])
        following |= dict.fromkeys(blocks, place)
    found.reverse()
    return found

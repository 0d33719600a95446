"""Where a prompt's KV blocks come from: the gateway's choice for each request, against always the same. *Simulated*.

Two prefill and two decode engines (`tieredengine.py`). Each prompt is new but for a part of it that lies on the disk of
one of them. *decode*: the decode engine that costs least loads what it has and computes the rest. *prefill*: a prefill
engine does that, and decode fetches the blocks. *ours*: the gateway weighs both ways for each request. All three know
the same: `affinity.py`, `prefix.py` and `routing.py` of the gateway decide, and learn what they are told and when.

The measure is the time from a request to the end of its answer: it holds the wait for the first token as well as what
answers lose when their engine computes somebody's prompt. What times are is told to nobody: what loading and fetching
cost is learnt, from the defaults on.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Final, Literal

from rich.progress import Progress

from bench.enginemodel import BLOCK, Running, prefill_seconds
from bench.replay import learn
from bench.report import Options, Report, at_most, percentile, spread
from bench.tieredengine import TieredEngine
from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.affinity import Affinity, Placed, Reading
from headrace_runtime.gateway.blocks import Stored
from headrace_runtime.gateway.prompts import exact
from headrace_runtime.gateway.routing import Choice, Engine, Need, rank
from simulator.request import Request

REVISION: Final = "r"
PREFILLS, DECODES = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
PROMPT, ANSWER = 16 * BLOCK, 64
COMPUTED: Final = prefill_seconds(PROMPT) / PROMPT
"""Seconds of a token of these prompts, computed."""
LINK: Final = 0.05
"""Of that, a token on the link between two engines."""
SHORT: Final = 64
EVENT_SECONDS: Final = 0.002
HITS: Final = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
LOADS: Final = (0.3, 0.7, 1.1)
"""Prompts that come, against what the two prefill engines can compute."""
NOISE: Final = 1.05

Arm = Literal["decode", "prefill", "ours"]
ARMS: Final[tuple[Arm, ...]] = ("decode", "prefill", "ours")
COLUMNS = (
    "on which disk, how quick, load",
    "decode ms",
    "prefill ms",
    "ours ms",
    "TTFT p99 ms,\neach of them",
    "ours: %\nalone",
    "ours against\nthe better",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """`hits`: share of each prompt on a disk, one of these by turns. `disk`: a token from it, against one computed.
    `held_by`: on whose disks prompts lie."""

    name: str
    hits: Sequence[float]
    load: float
    disk: float = 0.25
    held_by: Sequence[str] = DECODES
    slow: str = ""
    """This engine's disk takes eight times as long."""
    mixed: bool = False
    """Neither fixed way is right for all of its requests."""

    def disk_seconds(self, engine: str) -> float:
        return self.disk * COMPUTED * BLOCK * (8.0 if engine == self.slow else 1.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run; *simulated* ms."""

    whole: float
    ttft_p99: float
    alone: float
    """Share of the requests that no prefill engine took part in."""


@dataclass(slots=True, eq=False)
class Under:
    """A request under way."""

    request: Request
    choice: Choice
    reading: Reading
    began: dict[str, float] = field(default_factory=dict)
    """When each of its engines was asked."""
    first: float = 0.0
    end: float | None = None
    stack: ExitStack = field(default_factory=ExitStack)
    placed: dict[str, Placed] = field(default_factory=dict)


class Fleet:
    """The engines behind a gateway that knows what it is told, and no more."""

    def __init__(self, scene: Scene, arm: Arm) -> None:
        link = LINK * COMPUTED * BLOCK
        self.engines = {name: TieredEngine(scene.disk_seconds(name), link) for name in (*PREFILLS, *DECODES)}
        self._endpoints = {
            name: Endpoint.model_validate({
                "name": name, "url": f"http://{name}", "role": name.partition("-")[0], "revision": REVISION,
            })
            for name in self.engines
        }  # fmt: skip
        self._arm = arm
        self._now, self._turn = 0.0, 0
        self._affinity = Affinity(clock=lambda: self._now)
        self._loads = dict.fromkeys(self.engines, 0)
        self._running: dict[Running, Under] = {}
        for name in self.engines:
            self._affinity.index.join(name)
            self._affinity.index.heard(name, 0.0)

    def lay_on_disk(self, name: str, blocks: Sequence[int]) -> None:
        """And the gateway knows of it: an engine computed them once."""
        index = self._affinity.index
        self.engines[name].on_disk |= set(blocks)
        index.store(name, Stored(blocks, None, blocks, 1))
        index.remove(name, blocks)
        index.refer(name, blocks, "disk")

    def take(self, request: Request) -> Under:
        self.advance(request.at)
        path = [(key, blocks * BLOCK) for key, blocks in exact(request.blocks, 1)]
        under = Under(request, self._choose(Reading(path, True, request.prompt)), Reading(path, True, request.prompt))
        decode, prefill = under.choice.decode.name, under.choice.prefill
        placed = self._affinity.placed(under.reading, decode, fetched=prefill is not None)
        under.placed[decode] = under.stack.enter_context(placed)
        self._loads[decode] += 1
        if prefill is None:
            self._submit(under, decode, request.at, fetched=False)
        else:
            self._loads[prefill.name] += 1
            of_prefill = ExitStack()
            under.placed[prefill.name] = of_prefill.enter_context(self._affinity.placed(under.reading, prefill.name))
            under.stack.callback(of_prefill.close)
            self._submit(under, prefill.name, request.at, fetched=False)
        return under

    def advance(self, until: float) -> None:
        """Prefill engines first: what they hand over comes to decode in the same span of time."""
        for names in (PREFILLS, DECODES):
            for name in names:
                self.engines[name].advance(until)
                self._hear(name, until)
        self._now = until

    def _choose(self, reading: Reading) -> Choice:
        prompt = self._affinity.prompt(reading, SHORT)
        # A canary is always split: that is the fixed way by prefill. Decode alone is what an unsplit request gets.
        need = Need(self._arm != "decode", REVISION if self._arm == "prefill" else None, prompt=prompt)
        engines = [Engine(self._endpoints[name], True, load) for name, load in self._loads.items()]
        self._turn += 1
        return rank(need, engines, "PrefixAware", self._turn)[0]

    def _submit(self, under: Under, name: str, at: float, fetched: bool) -> None:
        of = under.request
        one = Running(of if name in DECODES else Request(of.at, of.prompt, 1, of.ids))
        self._running[one] = under
        under.began[name] = at
        self.engines[name].submit(one, at, fetched)

    def _hear(self, name: str, until: float) -> None:
        """What an engine did, as late as its events are."""
        happened, index = self.engines[name].happened, self._affinity.index
        while happened and happened[0][0] + EVENT_SECONDS <= until:
            when, what, one, blocks = happened.popleft()
            self._now = max(self._now, when)
            if blocks:
                learn(index, name, when, what, blocks)
            elif one is not None and what == "first":
                self._first(self._running[one], name, when)
            elif one is not None:
                self._ended(self._running.pop(one), name, when)

    def _first(self, under: Under, name: str, when: float) -> None:
        placed = under.placed[name]
        placed.took(when - under.began[name])
        placed.computed()
        if name in PREFILLS:
            placed.ended()
            self._submit(under, under.choice.decode.name, when + EVENT_SECONDS, fetched=True)
        else:
            under.first = when

    def _ended(self, under: Under, name: str, when: float) -> None:
        self._loads[name] -= 1
        if name in DECODES:
            under.end = when
            under.stack.close()


def run_scene(scene: Scene, arm: Arm, requests: int, seed: int) -> Outcome:
    """Raises RuntimeError should a request never be answered."""
    chance, fleet, at = random.Random(seed), Fleet(scene, arm), 0.0
    rate = scene.load * len(PREFILLS) / prefill_seconds(PROMPT)
    ran = []
    for number in range(requests):
        at += chance.expovariate(rate)
        ids = tuple(range(1 + number * 100, 1 + number * 100 + PROMPT // BLOCK))
        hit = round(chance.choice(scene.hits) * len(ids))
        if hit:
            fleet.lay_on_disk(chance.choice(scene.held_by), ids[:hit])
        ran.append(fleet.take(Request(at, PROMPT, ANSWER, ids)))
    while any(under.end is None for under in ran) and at < 1e5:
        at += 1.0
        fleet.advance(at)
    if any(under.end is None for under in ran):
        raise RuntimeError(f"{scene.name}, {arm}: some requests were never answered")
    return Outcome(
        fmean(((under.end or 0.0) - under.request.at) * 1e3 for under in ran),
        percentile([(under.first - under.request.at) * 1e3 for under in ran], 0.99),
        sum(under.choice.prefill is None for under in ran) / requests,
    )


def scenes() -> list[Scene]:
    found = [Scene(f"{hit:.0%} on decode's, quick, {load:g}", (hit,), load) for hit in HITS for load in LOADS]
    found += [Scene(f"{hit:.0%} on decode's, slow, {load:g}", (hit,), load, 1.5) for hit in HITS[2:] for load in LOADS]
    for load in LOADS:
        found += [
            Scene(f"0 to 100% on decode's, quick, {load:g}", HITS, load, mixed=True),
            Scene(f"100% on anybody's, quick, {load:g}", (1.0,), load, held_by=(*PREFILLS, *DECODES), mixed=True),
            Scene(f"0 to 100% on anybody's, quick, {load:g}", HITS, load, held_by=(*PREFILLS, *DECODES), mixed=True),
            Scene(f"100% on decode's, one of them sick, {load:g}", (1.0,), load, slow=DECODES[0], mixed=True),
        ]
    return found


def run(options: Options) -> Report:
    seeds, requests = (2, 200) if options.quick else (3, 500)
    chosen = [scene for scene in scenes() if not options.quick or scene.load == LOADS[1]]
    report = Report("storage-path", f"simulated, {seeds} repeats of {requests} requests, median (min..max)", COLUMNS)
    report.notes += [
        f"prompts of {PROMPT} tokens: {COMPUTED * PROMPT * 1e3:.0f} ms to compute, {LINK:g} of that to send; answers "
        f"of {ANSWER} tokens; ms: from a request to its answer's end",
        "a quick disk loads in a quarter of the time that computing takes, a slow one in 1.5 times; load: against what "
        "both prefill engines can compute",
    ]
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for scene in chosen:
            progress.update(task, advance=1, description=scene.name)
            _judge(report, scene, {arm: [run_scene(scene, arm, requests, s) for s in range(seeds)] for arm in ARMS})
    return report


def _judge(report: Report, scene: Scene, ran: dict[Arm, list[Outcome]]) -> None:
    def of(arm: Arm, what: Callable[[Outcome], float]) -> list[float]:
        return [what(one) for one in ran[arm]]

    whole: dict[Arm, list[float]] = {arm: of(arm, lambda one: one.whole) for arm in ARMS}
    better: Arm = "decode" if median(whole["decode"]) < median(whole["prefill"]) else "prefill"
    ratios = [ours / theirs for ours, theirs in zip(whole["ours"], whole[better], strict=True)]
    p99 = " / ".join(f"{median(of(arm, lambda one: one.ttft_p99)):.0f}" for arm in ARMS)
    alone = f"{100 * fmean(of('ours', lambda one: one.alone)):.0f}"
    report.rows.append([scene.name, *(spread(whole[arm], 0) for arm in ARMS), p99, alone, spread(ratios, 2)])
    limit = 1.0 if scene.mixed else NOISE
    report.checks.append(at_most(f"{scene.name}: ours against {better} (simulated)", median(ratios), limit))
    if median(ratios) > 1.0:
        report.notes.append(f"{scene.name}: {better} is better, {spread(ratios, 3)}")

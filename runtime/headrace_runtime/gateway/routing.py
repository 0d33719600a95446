"""Which engines serve a request: facts and engines in, choices in order of preference out.

Pure: no clock, no chance, no I/O; `turn` (a counter) is what spreads equals. Called by `journey.py` once per try.

PrefixAware gives each engine a cost in tokens, and the least is best: what the engine has yet to do for other prompts,
plus what it would have to do for this one, plus `WRITING_WEIGHT` for each token of context that it is writing on, since
that slows its steps a little, plus `FRESH_WEIGHT` for each token that it computed lately, since caches are finite. What
lies on the device costs nothing; what is loaded from host memory or disk, or fetched from a prefill engine, costs what
`sources.py` learnt; the rest is computed. Waiting for a long queue and computing a prompt again are thus weighed in the
same unit. Where nothing is known of what engines hold, that is least-loaded routing, by tokens in place of requests.

A decode engine that holds most of a prompt in its own tiers may serve it alone, where that costs less than a prefill
engine and the transfer. What it has to compute holds up the answers it is writing (`HELD_UP_WEIGHT`).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal

from headrace_runtime.contract import Endpoint
from headrace_runtime.gateway.sources import USUAL, Rates, Work

Policy = Literal["PrefixAware", "LeastLoaded", "RoundRobin"]

WRITING_WEIGHT: Final = 0.05
"""A decode step over a full cache takes about a tenth longer than one over an empty one: `bench routing` prints what
other weights do."""
FRESH_WEIGHT: Final = 0.01
"""Without it, prompts that have but a system prompt in common would all go to the engine that had the first of them,
while others are idle and their caches empty."""
HELD_UP_WEIGHT: Final = 0.25
"""Of each request in flight on a decode engine, for each token of another's prompt that is computed there."""
FRESH_MOST: Final = 100_000.0
"""Most by which one engine counts as having computed more lately than the one that computed least. An engine that was
just started has computed nothing: without a limit it is given every answer until it has caught up with minutes of work
of all the others, in one batch. Between engines of the same age the difference is smaller anyway."""
MOST: Final = 0.5
"""Of a prompt, that a decode engine must hold to serve it alone: else prompts would come to be computed there for good,
which is what prefill engines are for."""

_AVOIDED: Final = 1e12
_LAST_RESORT: Final = 1e15
"""Added to costs: worse than any number of tokens."""
_NAME: Final = attrgetter("name")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as the gateway knows it now. `load` counts this gateway's requests in flight on it, of either phase."""

    endpoint: Endpoint
    healthy: bool = True
    load: int = 0
    last: bool = False
    """It drains, and nobody else of its role is left to ask."""
    name: str = field(init=False)
    usable: bool = field(init=False)
    """It may be given a request."""

    def __post_init__(self) -> None:
        """Once for each engine that changed, where every request asks."""
        endpoint = self.endpoint
        object.__setattr__(self, "name", endpoint.name)
        object.__setattr__(self, "usable", self.healthy and endpoint.ready and (self.last or not endpoint.draining))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What PrefixAware goes by: all in tokens, by engine's name; one that is missing has none."""

    tokens: int
    """Of the request's prompt."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Of these, what the engine has on its device (`prefix.py`)."""
    host: Mapping[str, float] = field(default_factory=dict)
    """What follows on that in its host memory."""
    disk: Mapping[str, float] = field(default_factory=dict)
    """What follows on these on its disk."""
    rates: Mapping[str, Rates] = field(default_factory=dict)
    """What loading and fetching cost there; one that is missing has the usual."""
    waiting: Mapping[str, float] = field(default_factory=dict)
    """Cost of other prompts, sent there and not yet computed or loaded."""
    writing: Mapping[str, float] = field(default_factory=dict)
    """Context of the answers that the engine is writing."""
    fresh: Mapping[str, float] = field(default_factory=dict)
    """Lately computed there, and so put into its cache in place of what somebody may come back for."""
    short: int = 0
    """A decode engine computes up to so many tokens itself: what asking a prefill engine costs by itself."""

    def work(self, engine: str, fetched: bool = False) -> Work:
        """What the engine would have to do for it; `fetched`: from a prefill engine, all that is not on its device."""
        device = self.held.get(engine, 0.0)
        if fetched:
            return Work(fetched=max(0.0, self.tokens - device))
        host, disk = self.host.get(engine, 0.0), self.disk.get(engine, 0.0)
        return Work(max(0.0, self.tokens - device - host - disk), host, disk)

    def cost(self, engine: str, fetched: bool = False) -> float:
        """Of that work, in computed tokens: `Rates.cost`, without a value for each engine of a fleet."""
        rates, lacking = self.rates.get(engine, USUAL), self.tokens - self.held.get(engine, 0.0)
        if fetched:
            return max(0.0, rates.fetched * lacking)
        host, disk = self.host.get(engine, 0.0), self.disk.get(engine, 0.0)
        return max(0.0, lacking - host - disk) + rates.host * host + rates.disk * disk


@dataclass(frozen=True, slots=True)
class Need:
    """What one request asks of an engine."""

    split: bool = False
    """The prompt is worth a prefill engine."""
    canary: str | None = None
    """Only this revision will do."""
    tried: frozenset[str] = frozenset()
    """Names of engines that failed this request already."""
    avoid: frozenset[str] = frozenset()
    """Names of engines to come last, though they may well be sound: a transfer to them gave no token in time."""
    prompt: Prompt | None = None
    """For PrefixAware, which without it is LeastLoaded."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`decode` writes the tokens. Without `prefill` it computes the prompt too."""

    decode: Endpoint
    prefill: Endpoint | None = None


def rank(need: Need, engines: Sequence[Engine], policy: Policy = "LeastLoaded", turn: int = 0) -> tuple[Choice, ...]:
    """All engines that may serve the request, best first; empty where there is none.

    - Only healthy, ready engines that are not draining; of the canary's revision where one is asked for.
    - Where a split is wanted, complete pairs come before engines without a partner. During a rollout that keeps long
      prompts on the revision that has both roles.
    - A prefill engine writes tokens only where no other is left: the role belongs to the request, not to the process.
    - An engine that failed is not asked again, unless it is the only one.
    - PrefixAware: a decode engine that holds most of a prompt is as good as a pair, if it costs no more.
    """
    usable = _usable(engines, need.canary)
    fresh = [engine for engine in usable if engine.name not in need.tried] if need.tried else usable
    writers = [engine for engine in fresh if engine.endpoint.role != "prefill"] or fresh
    if not writers and len(usable) == 1:
        writers = usable
    prefills = [engine for engine in fresh if engine.endpoint.role == "prefill"] if need.split else []
    if policy == "PrefixAware" and need.prompt is not None:
        return _by_cost(need, need.prompt, writers, _turned(prefills, turn), turn)
    ordered = sorted(_in_order(writers, policy, turn), key=lambda engine: engine.name in need.avoid)
    if not need.split:
        return tuple(Choice(engine.endpoint) for engine in ordered)
    partners = _best_prefill(_in_order(prefills, policy, turn))
    choices = [Choice(writer.endpoint, _partner(writer.endpoint, partners)) for writer in ordered]
    return tuple(sorted(choices, key=lambda choice: choice.prefill is None))


def costs(prompt: Prompt, engines: Iterable[str], fetched: bool = False) -> list[float]:
    """Of each engine, what stands between the request and its first token; `fetched`: from a prefill engine."""
    held, waiting, tokens = prompt.held.get, prompt.waiting.get, prompt.tokens
    writing, fresh = prompt.writing.get, prompt.fresh.get
    plain = not (fetched or prompt.host or prompt.disk)
    names = tuple(engines)
    most = _most_fresh(prompt, names)
    found = []
    for name in names:
        ahead = waiting(name, 0.0) + WRITING_WEIGHT * writing(name, 0.0) + FRESH_WEIGHT * min(fresh(name, 0.0), most)
        lacking = tokens - held(name, 0.0)
        if lacking <= 0:
            found.append(ahead)
        elif plain:
            found.append(ahead + lacking)
        else:
            found.append(ahead + prompt.cost(name, fetched))
    return found


def _most_fresh(prompt: Prompt, engines: Iterable[str]) -> float:
    """What counts of `Prompt.fresh` at most."""
    fresh = prompt.fresh.get
    return FRESH_MOST + min((fresh(name, 0.0) for name in engines), default=0.0)


def alone(prompt: Prompt, engine: Engine) -> float | None:
    """What a decode engine that serves the prompt without a prefill engine costs more than `costs` says; None where it
    may not: it holds too little."""
    name = engine.name
    lacking = prompt.tokens - prompt.held.get(name, 0.0) - prompt.host.get(name, 0.0) - prompt.disk.get(name, 0.0)
    if lacking <= prompt.short:
        return 0.0
    if lacking > (1 - MOST) * prompt.tokens:
        return None
    return HELD_UP_WEIGHT * engine.load * lacking


def _by_cost(
    need: Need, prompt: Prompt, writers: Sequence[Engine], prefills: Sequence[Engine], turn: int
) -> tuple[Choice, ...]:
    """`rank` for PrefixAware, the best two only: every request of a busy gateway comes by here."""
    endpoints, names = [engine.endpoint for engine in writers], _names(writers)
    totals = costs(prompt, names)
    partnered: list[Endpoint | None] = [None] * len(endpoints)
    if need.split:
        of_prefill = dict(zip(_names(prefills), costs(prompt, _names(prefills)), strict=True))
        partners = _best_prefill(sorted(prefills, key=lambda engine: of_prefill[engine.name]))
        most = _most_fresh(prompt, of_prefill)
        fetched = costs(prompt, names, fetched=True)
        for place, writer in enumerate(writers):
            more = alone(prompt, writer) if need.canary is None else None
            by_itself = totals[place] + (_LAST_RESORT if more is None else more)
            partner = _partner(writer.endpoint, partners)
            pair = math.inf
            if partner is not None:
                # How much prefill engines computed lately says which of them to take, not whether to take one.
                fresh = FRESH_WEIGHT * min(prompt.fresh.get(partner.name, 0.0), most)
                pair = fetched[place] + prompt.short + of_prefill[partner.name] - fresh
            totals[place] = min(pair, by_itself)
            partnered[place] = partner if pair < by_itself else None
    if need.avoid:
        totals = [total + _AVOIDED * (name in need.avoid) for name, total in zip(names, totals, strict=True)]
    best = []
    for _ in range(min(2, len(endpoints))):
        place = _least(totals, names, turn)
        best.append(Choice(endpoints[place], partnered[place]))
        totals[place] = math.inf
    return tuple(best)


def _least(totals: Sequence[float], names: Sequence[str], turn: int) -> int:
    """Where the least is; equals take turns by name."""
    least = min(totals)
    equals = [place for place, total in enumerate(totals) if total == least]
    return equals[0] if len(equals) == 1 else sorted(equals, key=lambda place: names[place])[turn % len(equals)]


def _names(engines: Iterable[Engine]) -> list[str]:
    return [engine.name for engine in engines]


def _usable(engines: Iterable[Engine], canary: str | None) -> list[Engine]:
    usable = [engine for engine in engines if engine.usable]
    return usable if canary is None else [engine for engine in usable if engine.endpoint.revision == canary]


def _in_order(engines: Iterable[Engine], policy: Policy, turn: int) -> list[Engine]:
    """By load, then by turn among equals; or by turn alone."""
    turned = _turned(engines, turn)
    return turned if policy == "RoundRobin" else sorted(turned, key=lambda engine: engine.load)


def _turned(engines: Iterable[Engine], turn: int) -> list[Engine]:
    named = sorted(engines, key=_NAME)
    start = turn % len(named) if named else 0
    return named[start:] + named[:start]


def _best_prefill(engines: Iterable[Engine]) -> dict[tuple[str, str], Endpoint]:
    """The first prefill engine of each revision and KV layout: blocks of another of either cannot be read."""
    best: dict[tuple[str, str], Endpoint] = {}
    for engine in engines:
        best.setdefault((engine.endpoint.revision, engine.endpoint.kv_layout), engine.endpoint)
    return best


def _partner(writer: Endpoint, partners: dict[tuple[str, str], Endpoint]) -> Endpoint | None:
    return partners.get((writer.revision, writer.kv_layout)) if writer.role == "decode" else None

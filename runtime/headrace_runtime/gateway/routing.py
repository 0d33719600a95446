"""Which engines serve a request: facts and engines in, choices in order of preference out.

Pure: no clock, no chance, no I/O; `turn` (a counter) is what spreads equals. Called by `journey.py` once per try.

PrefixAware gives each engine a cost in tokens, and the least is best: what the engine has yet to compute of other
prompts, plus what it would have to compute of this one (its length less what the engine holds already), plus
`WRITING_WEIGHT` for each token of context that it is writing on, since that slows its steps a little, plus
`FRESH_WEIGHT` for each token that it computed lately, since caches are finite. Waiting for a long queue and computing a
prompt again are thus weighed in the same unit. Where nothing is known of what engines hold, that is least-loaded
routing, by tokens in place of requests.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal

from headrace_runtime.contract import Endpoint

Policy = Literal["PrefixAware", "LeastLoaded", "RoundRobin"]

WRITING_WEIGHT: Final = 0.05
"""A decode step over a full cache takes about a tenth longer than one over an empty one: `bench routing` prints what
other weights do."""
FRESH_WEIGHT: Final = 0.01
"""Without it, prompts that have but a system prompt in common would all go to the engine that had the first of them,
while others are idle and their caches empty."""
FETCH_WEIGHT: Final = 0.1
"""Cost of a token whose KV blocks come from a prefill engine, against one that is computed."""

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
    name: str = field(init=False)
    usable: bool = field(init=False)
    """It may be given a request."""

    def __post_init__(self) -> None:
        """Once for each engine that changed, where every request asks."""
        endpoint = self.endpoint
        object.__setattr__(self, "name", endpoint.name)
        object.__setattr__(self, "usable", self.healthy and endpoint.ready and not endpoint.draining)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What PrefixAware goes by: all in tokens, by engine's name; one that is missing has none."""

    tokens: int
    """Of the request's prompt."""
    held: Mapping[str, float] = field(default_factory=dict)
    """Of these, what the engine has in its cache (`prefix.py`)."""
    waiting: Mapping[str, float] = field(default_factory=dict)
    """Of other prompts, sent there and not yet computed."""
    writing: Mapping[str, float] = field(default_factory=dict)
    """Context of the answers that the engine is writing."""
    fresh: Mapping[str, float] = field(default_factory=dict)
    """Lately computed there, and so put into its cache in place of what somebody may come back for."""
    short: int = 0
    """A decode engine computes up to so many tokens itself: not worth a prefill engine."""


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
    prompts
      on the revision that has both roles.
    - A prefill engine writes tokens only where no other is left: the role belongs to the request, not to the process.
    - An engine that failed is not asked again, unless it is the only one.
    - PrefixAware: a decode engine that holds all of a prompt but `short` tokens is as good as a pair.
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


def costs(prompt: Prompt, engines: Iterable[str], to_do: float = 1.0) -> list[float]:
    """Of each engine, tokens that stand between the request and its first token: `to_do` for each that it lacks."""
    held, waiting, tokens = prompt.held.get, prompt.waiting.get, prompt.tokens
    writing, fresh = prompt.writing.get, prompt.fresh.get
    found = []
    for name in engines:
        ahead = waiting(name, 0.0) + WRITING_WEIGHT * writing(name, 0.0) + FRESH_WEIGHT * fresh(name, 0.0)
        lacking = tokens - held(name, 0.0)
        found.append(ahead + to_do * lacking if lacking > 0 else ahead)
    return found


def explain(need: Need, engines: Sequence[Engine], choices: Sequence[Choice], policy: Policy) -> str:
    """The choice in one line of plain words, for people who ask why: numbers and names of engines, nothing else."""
    if not choices:
        return f"{policy}: none of {len(engines)} engines may serve this request"
    first, loads = choices[0], {engine.name: engine.load for engine in engines}

    def account(endpoint: Endpoint) -> str:
        name, prompt = endpoint.name, need.prompt
        if prompt is None:
            return f"{name} ({loads[name]} requests in flight)"
        held, waiting, writing = (of.get(name, 0.0) for of in (prompt.held, prompt.waiting, prompt.writing))
        return (
            f"{name} (holds {held:.0f} of {prompt.tokens} prompt tokens; {waiting:.0f} tokens wait there, "
            f"{writing:.0f} are in answers)"
        )

    words = [f"{policy} chose {account(first.decode)} among {len(choices)}"]
    if first.prefill is not None:
        words.append(f"prefill on {account(first.prefill)}")
    if len(choices) > 1:
        words.append(f"next best {account(choices[1].decode)}")
    return ", ".join(words)


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
        fetched = costs(prompt, names, FETCH_WEIGHT)
        for place, writer in enumerate(endpoints):
            if prompt.held.get(writer.name, 0.0) > prompt.tokens - prompt.short:
                continue  # as good as a pair
            partner = partnered[place] = _partner(writer, partners)
            totals[place] = (
                totals[place] + _LAST_RESORT if partner is None else fetched[place] + of_prefill[partner.name]
            )
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

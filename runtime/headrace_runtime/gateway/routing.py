"""Which engines serve a request: facts and engines in, choices in order of preference out.

Pure: no clock, no chance, no I/O; `turn` (a counter) is what spreads equals. Called by `journey.py` once per try.

PrefixAware gives each engine a cost in tokens, and the least is best: what the engine has yet to compute of other
prompts, plus what it would have to compute of this one (its length less what the engine holds already), plus
`WRITING_WEIGHT` for each token of context that it is writing on, since that slows its steps a little. Waiting for a
long queue and computing a prompt again are thus weighed in the same unit. Where nothing is known of what engines hold,
that is least-loaded routing, by tokens in place of requests.
"""

import heapq
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
FETCH_WEIGHT: Final = 0.1
"""Cost of a token whose KV blocks come from a prefill engine, against one that is computed."""

_NAME: Final = attrgetter("endpoint.name")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as the gateway knows it now. `load` counts this gateway's requests in flight on it, of either phase."""

    endpoint: Endpoint
    healthy: bool = True
    load: int = 0


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
    fresh = [engine for engine in usable if engine.endpoint.name not in need.tried] if need.tried else usable
    writers = [engine for engine in fresh if engine.endpoint.role != "prefill"] or fresh
    if not writers and len(usable) == 1:
        writers = usable
    prefills = [engine for engine in fresh if engine.endpoint.role == "prefill"] if need.split else []
    if policy == "PrefixAware" and need.prompt is not None:
        return _by_cost(need, need.prompt, _turned(writers, turn), _turned(prefills, turn))
    ordered = sorted(_in_order(writers, policy, turn), key=lambda engine: engine.endpoint.name in need.avoid)
    if not need.split:
        return tuple(Choice(engine.endpoint) for engine in ordered)
    partners = _best_prefill(_in_order(prefills, policy, turn))
    choices = [Choice(writer.endpoint, _partner(writer.endpoint, partners)) for writer in ordered]
    return tuple(sorted(choices, key=lambda choice: choice.prefill is None))


def cost(prompt: Prompt, engine: str, to_do: float = 1.0) -> float:
    """Tokens that stand between the request and its first token there, `to_do` for each that the engine lacks."""
    lacking = prompt.tokens - prompt.held.get(engine, 0.0)
    ahead = prompt.waiting.get(engine, 0.0) + WRITING_WEIGHT * prompt.writing.get(engine, 0.0)
    return ahead + to_do * lacking if lacking > 0 else ahead


def explain(need: Need, engines: Sequence[Engine], choices: Sequence[Choice], policy: Policy) -> str:
    """The choice in one line of plain words, for people who ask why: numbers and names of engines, nothing else."""
    if not choices:
        return f"{policy}: none of {len(engines)} engines may serve this request"
    first, loads = choices[0], {engine.endpoint.name: engine.load for engine in engines}

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


def _by_cost(need: Need, prompt: Prompt, writers: Sequence[Engine], prefills: Sequence[Engine]) -> tuple[Choice, ...]:
    """`rank` for PrefixAware, the best two only. The engines are in turn, which decides between equals."""
    costs = {engine.endpoint.name: cost(prompt, engine.endpoint.name) for engine in prefills}
    partners = _best_prefill(sorted(prefills, key=lambda engine: costs[engine.endpoint.name]))
    enough = prompt.tokens - prompt.short if need.split else math.inf
    ranked: list[tuple[bool, bool, float, int]] = []
    for place, engine in enumerate(writers):
        endpoint, name = engine.endpoint, engine.endpoint.name
        partner = _partner(endpoint, partners) if partners else None
        held_already = prompt.held.get(name, 0.0) > enough
        if partner is None or held_already:
            total = cost(prompt, name)
        else:
            total = costs[partner.name] + cost(prompt, name, FETCH_WEIGHT)
        alone = need.split and partner is None and not held_already
        ranked.append((alone, name in need.avoid, total, place))
    choices = []
    for *_, place in heapq.nsmallest(2, ranked):
        endpoint = writers[place].endpoint
        held_already = prompt.held.get(endpoint.name, 0.0) > enough
        choices.append(Choice(endpoint, None if held_already else _partner(endpoint, partners)))
    return tuple(choices)


def _usable(engines: Iterable[Engine], canary: str | None) -> list[Engine]:
    ready = [one for one in engines if one.healthy and one.endpoint.ready and not one.endpoint.draining]
    return ready if canary is None else [one for one in ready if one.endpoint.revision == canary]


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

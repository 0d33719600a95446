"""Which engines serve a request: facts and engines in, choices in order of preference out.

Pure: no clock, no chance, no I/O; `turn` (a counter) is what spreads equals. Called by `flow.py` once per try.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace_runtime.contract import Endpoint

Policy = Literal["LeastLoaded", "RoundRobin"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine as the gateway knows it now. `load` counts this gateway's requests in flight on it, of either phase."""

    endpoint: Endpoint
    healthy: bool = True
    load: int = 0


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
    """
    usable = [engine for engine in engines if _usable(engine, need.canary)]
    fresh = [engine for engine in usable if engine.endpoint.name not in need.tried]
    writers = [engine for engine in fresh if engine.endpoint.role != "prefill"] or fresh
    if not writers and len(usable) == 1:
        writers = usable
    ordered = sorted(_in_order(writers, policy, turn), key=lambda engine: engine.endpoint.name in need.avoid)
    if not need.split:
        return tuple(Choice(engine.endpoint) for engine in ordered)
    prefills = [engine for engine in fresh if engine.endpoint.role == "prefill"]
    partners = _best_prefill(_in_order(prefills, policy, turn))
    choices = [Choice(writer.endpoint, _partner(writer.endpoint, partners)) for writer in ordered]
    return tuple(sorted(choices, key=lambda choice: choice.prefill is None))


def _usable(engine: Engine, canary: str | None) -> bool:
    endpoint = engine.endpoint
    of_revision = canary is None or endpoint.revision == canary
    return engine.healthy and endpoint.ready and not endpoint.draining and of_revision


def _in_order(engines: Iterable[Engine], policy: Policy, turn: int) -> list[Engine]:
    """By load, then by turn among equals; or by turn alone."""
    named = sorted(engines, key=lambda engine: engine.endpoint.name)
    start = turn % len(named) if named else 0
    turned = named[start:] + named[:start]
    return turned if policy == "RoundRobin" else sorted(turned, key=lambda engine: engine.load)


def _best_prefill(engines: Iterable[Engine]) -> dict[tuple[str, str], Endpoint]:
    """The first prefill engine of each revision and KV layout: blocks of another of either cannot be read."""
    best: dict[tuple[str, str], Endpoint] = {}
    for engine in engines:
        best.setdefault((engine.endpoint.revision, engine.endpoint.kv_layout), engine.endpoint)
    return best


def _partner(writer: Endpoint, partners: dict[tuple[str, str], Endpoint]) -> Endpoint | None:
    return partners.get((writer.revision, writer.kv_layout)) if writer.role == "decode" else None

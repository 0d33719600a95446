"""What gateways counted, as values to decide by: one reading or the difference of two, over all gateways. Pure.

Counts of a gateway only grow, so that a window of time is a later reading less an earlier one. A reading that is
missing, late, of another process or not possible (a count that fell) is None: *unknown*, never zero. Whoever decides
must not take the absence of figures for the absence of load. Windows of several gateways are merged by addition.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Final

from headrace_runtime.contract import CanaryShare, DemandFigures, GatewayFigures, RoleFigures, RoleName, Sketch

EMPTY: Final = Sketch()
Roles = tuple[RoleFigures, ...]


@dataclass(frozen=True)
class RevisionFigures:
    """Engines of one role in one revision, or of several, added up. `contract/figures.py` says what each counts."""

    requests: int = 0
    errors: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    looked_up_tokens: int = 0
    cached_tokens: int = 0
    answers: int = 0
    output_tokens: int = 0
    ttft: Sketch = EMPTY
    itl: Sketch = EMPTY

    @property
    def error_share(self) -> float | None:
        return _ratio(self.errors, self.requests)

    @property
    def prompt_mean(self) -> float | None:
        """Tokens of a prompt."""
        return _ratio(self.prompt_tokens, self.prompts)

    @property
    def output_mean(self) -> float | None:
        """Tokens of an answer."""
        return _ratio(self.output_tokens, self.answers)

    @property
    def cached_share(self) -> float | None:
        """Of prompts' tokens, those that engines held. None where no gateway knew what they hold."""
        return _ratio(self.cached_tokens, self.looked_up_tokens)

    def plus(self, other: "RevisionFigures") -> "RevisionFigures":
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        return RevisionFigures(**counts, ttft=self.ttft.plus(other.ttft), itl=self.itl.plus(other.itl))

    def minus(self, before: "RevisionFigures") -> "RevisionFigures | None":
        """What came since `before`. None where something fell."""
        counts = {name: getattr(self, name) - getattr(before, name) for name in _COUNTS}
        ttft, itl = self.ttft.minus(before.ttft), self.itl.minus(before.itl)
        if ttft is None or itl is None or min(counts.values()) < 0:
            return None
        return RevisionFigures(**counts, ttft=ttft, itl=itl)


NOTHING: Final = RevisionFigures()
_COUNTS: Final = tuple(one.name for one in fields(RevisionFigures) if one.name not in ("ttft", "itl"))


@dataclass(frozen=True)
class Demand:
    """What was asked in some time, and how far it was done. `contract/figures.py` says what is counted."""

    requests: int = 0
    prompt_tokens: int = 0
    prompts: Sketch = EMPTY
    writing: float = 0.0
    """Answers under way, times seconds."""
    unanswered: float = 0.0
    """At the window's end: seconds."""

    def plus(self, other: "Demand") -> "Demand":
        return Demand(
            requests=self.requests + other.requests,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            prompts=self.prompts.plus(other.prompts),
            writing=self.writing + other.writing,
            unanswered=max(self.unanswered, other.unanswered),
        )


@dataclass(frozen=True)
class Window:
    """What was counted in some time, of one gateway or merged. What waits and runs is as it was at the window's end."""

    seconds: float
    """Of merged ones, the longest."""
    roles: Mapping[tuple[RoleName, str], RevisionFigures] = field(default_factory=dict)
    """By role and revision."""
    arrivals: int = 0
    """Requests of clients. Not told of a canary's step."""
    running: int = 0
    waiting: int = 0
    oldest_wait: float = 0.0
    """Seconds."""
    demand: Demand | None = None
    """None: a gateway does not tell. Not told of a canary's step."""

    @property
    def arrival_rate(self) -> float | None:
        """Requests per second."""
        return _ratio(self.arrivals, self.seconds)

    def of_revision(self, revision: str) -> RevisionFigures:
        """All its roles."""
        return _sum(found for (_, of), found in self.roles.items() if of == revision)

    def of_role(self, role: RoleName) -> RevisionFigures:
        """All its revisions."""
        return _sum(found for (of, _), found in self.roles.items() if of == role)


def between(before: GatewayFigures | None, after: GatewayFigures | None) -> Window | None:
    """From one reading of a gateway to a later one."""
    if before is None or after is None or before.start != after.start or after.seconds <= before.seconds:
        return None
    roles = _since(before.roles, after.roles)
    if roles is None or after.arrivals < before.arrivals:
        return None
    demand = _asked(before.demand, after.demand)
    if demand is None and before.demand is not None:
        return None
    return Window(
        seconds=after.seconds - before.seconds,
        roles=roles,
        arrivals=after.arrivals - before.arrivals,
        running=after.running,
        waiting=after.waiting,
        oldest_wait=after.oldest_wait,
        demand=demand,
    )


def since_start(reading: GatewayFigures | None) -> Window | None:
    """All that a gateway has counted."""
    if reading is None:
        return None
    nothing = GatewayFigures(start=reading.start, seconds=0.0, demand=DemandFigures() if reading.demand else None)
    return between(nothing, reading)


def in_step(reading: GatewayFigures | None, share: CanaryShare) -> Window | None:
    """Since this step of a canary holds at the gateway, whenever that began. None: it does not hold there."""
    canary = reading.canary if reading is not None else None
    if reading is None or canary is None or canary.share != share:
        return None
    roles = _since(canary.before, reading.roles)
    return None if roles is None else Window(canary.seconds, roles)


def merged(windows: Iterable[Window]) -> Window | None:
    """Those of several gateways as one. None of none."""
    found = list(windows)
    return reduce(_both, found) if found else None


def _both(one: Window, other: Window) -> Window:
    keys = [*one.roles, *(key for key in other.roles if key not in one.roles)]
    return Window(
        seconds=max(one.seconds, other.seconds),
        roles={key: one.roles.get(key, NOTHING).plus(other.roles.get(key, NOTHING)) for key in keys},
        arrivals=one.arrivals + other.arrivals,
        running=one.running + other.running,
        waiting=one.waiting + other.waiting,
        oldest_wait=max(one.oldest_wait, other.oldest_wait),
        demand=one.demand.plus(other.demand) if one.demand is not None and other.demand is not None else None,
    )


def _asked(before: DemandFigures | None, after: DemandFigures | None) -> Demand | None:
    """None: it is not told, or something fell."""
    prompts = after.prompts.minus(before.prompts) if before is not None and after is not None else None
    if before is None or after is None or prompts is None:
        return None
    requests, tokens = after.requests - before.requests, after.prompt_tokens - before.prompt_tokens
    writing = after.writing - before.writing
    if min(requests, tokens, writing) < 0:
        return None
    return Demand(requests, tokens, prompts, writing, after.unanswered)


def _since(before: Roles, after: Roles) -> dict[tuple[RoleName, str], RevisionFigures] | None:
    was = {(one.role, one.revision): _read(one) for one in before}
    found: dict[tuple[RoleName, str], RevisionFigures] = {}
    for one in after:
        since = _read(one).minus(was.get((one.role, one.revision), NOTHING))
        if since is None:
            return None
        found[one.role, one.revision] = since
    return found


def _read(said: RoleFigures) -> RevisionFigures:
    return RevisionFigures(**{name: getattr(said, name) for name in _COUNTS}, ttft=said.ttft, itl=said.itl)


def _sum(found: Iterable[RevisionFigures]) -> RevisionFigures:
    return reduce(RevisionFigures.plus, found, NOTHING)


def _ratio(of: float, by: float) -> float | None:
    return of / by if by > 0 else None

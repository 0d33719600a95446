"""The product's policy in a *simulated* fleet, and what it is compared with: fixed sizes, policies in the manner of
Dynamo's planner, of Kubernetes' HorizontalPodAutoscaler and of Knative's autoscaler, and one that knows the future.

The others are our own short implementations of published behaviour, with the same windows to go by. Each decision is
one call; a scaler remembers only what its model in the world remembers, ours what the operator keeps in the status.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from headrace_operator.plan.scaling import Aim, Answer, Ask, Changed, Model, Window, decide
from headrace_operator.plan.scaling.model import Load, need
from simulator.profile import Profile
from simulator.request import Request

Policy = Callable[[Ask], Answer]


@dataclass
class Product:
    """`plan/scaling`, or a policy of the same signature, with what the operator keeps for it between two passes."""

    policy: Policy = decide
    name: str = "builtin"
    interval: float = 15.0
    startup: float = 120.0
    """As the operator has seen it."""
    answers: list[Answer] = field(default_factory=list)
    _model: Model = field(default_factory=Model)
    _now: float = 0.0
    _changes: list[Changed] = field(default_factory=list)
    """`age` is the moment here."""

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        self._now += self.interval
        model = replace(self._model, startup=max([self.startup, *(age for r in ask.roles for age in r.starting)]))
        changes = tuple(replace(change, age=self._now - change.age) for change in reversed(self._changes[-20:]))
        answer = self.policy(replace(ask, changes=changes, model=model))
        self._model = answer.model
        self._changes += [Changed(self._now, d.role, d.before, d.after, d.swap) for d in answer.decisions]
        self.answers.append(answer)
        return answer.sizes


@dataclass
class Static:
    """Always the same."""

    fixed: Mapping[str, int]
    name: str = "static"
    interval: float = 3600.0

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        return self.fixed


@dataclass
class PlusMinusOne:
    """In the manner of Dynamo's planner in its load mode: one engine more of a role whose time is above its target, one
    fewer where it is far below, one change under way at a time."""

    name: str = "±1 per 10 s"
    interval: float = 10.0
    comfortable: float = 0.5

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        return {role.name: self._size(ask, role.name) for role in ask.roles}

    def _size(self, ask: Ask, name: str) -> int:
        role = ask.role(name)
        assert role is not None
        target = ask.aim.ttft if name == "prefill" else ask.aim.itl
        window = ask.windows[0] if ask.windows else None
        if target is None or window is None or role.starting:
            return role.size
        measured = window.ttft if name == "prefill" else window.itl
        if name == "prefill" and (window.waiting or 0.0) > target.seconds:
            measured = max(measured or 0.0, window.waiting or 0.0)
        if measured is None:
            return role.size
        step = (measured > target.seconds) - (measured < self.comfortable * target.seconds)
        return min(role.most, max(role.least, role.size + step))


@dataclass
class Concurrency:
    """In the manner of HPA and KPA: enough engines that each has its share of the load at most, by a capacity given
    beforehand (`each`, requests a second of an engine). KPA adds a short panic window."""

    each: Mapping[str, float]
    name: str
    interval: float
    stable: float
    hold: float
    """The highest of the sizes wished for in so many seconds counts."""
    panic: float | None = None
    _now: float = 0.0
    _wished: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        self._now += self.interval
        stable, panic = _rate(ask.windows, self.stable), _rate(ask.windows, self.panic or self.stable)
        if stable is None or panic is None:
            return {role.name: role.size for role in ask.roles}
        # Knative panics at twice what the engines are meant for.
        rate = max(stable, panic) if self.panic and panic > 2 * stable else stable
        wish = {role.name: math.ceil(rate / self.each[role.name]) for role in ask.roles}
        self._wished = [(at, w) for at, w in self._wished if at > self._now - self.hold] + [(self._now, wish)]
        return {
            role.name: min(role.most, max(role.least, *(w[role.name] for _, w in self._wished))) for role in ask.roles
        }


def _rate(windows: Sequence[Window], seconds: float) -> float | None:
    lately = [w for w in windows if w.age < max(seconds, w.seconds) and w.rate is not None]
    return sum(w.rate or 0.0 for w in lately) / len(lately) if lately else None


def hpa(each: Mapping[str, float]) -> Concurrency:
    return Concurrency(each, "HPA-like 15/300 s", 15.0, 30.0, 300.0)


def kpa(each: Mapping[str, float]) -> Concurrency:
    return Concurrency(each, "KPA-like 6/60 s", 2.0, 60.0, 30.0, panic=6.0)


@dataclass
class Oracle:
    """Knows every request beforehand, and an engine's true times: the sizes that the load of the next `every` seconds
    and of a start-up needs, asked for a start-up ahead."""

    requests: Sequence[Request]
    profile: Profile
    aim: Aim
    cold_start: float
    cached: float = 0.0
    every: float = 30.0
    name: str = "oracle"
    _now: float = 0.0
    _loads: list[Load] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.interval = self.every
        spans: list[list[Request]] = []
        for request in self.requests:
            while len(spans) <= request.at // self.every:
                spans.append([])
            spans[-1].append(request)
        self._loads = [load_of(span, self.every, self.cached) for span in spans]

    def sizes(self, ask: Ask) -> Mapping[str, int]:
        self._now += self.every
        return self.at(ask, self._now)

    def at(self, ask: Ask, now: float) -> dict[str, int]:
        """Engines that the worst span from now until what is started now can serve needs."""
        first = int(now // self.every)
        loads = self._loads[first : int((now + self.cold_start + self.every) // self.every) + 1]
        model = truth(self.profile, loads)
        return {
            role.name: max([need(model, load, role, self.aim) or role.most for load in loads] or [role.least])
            for role in ask.roles
        }


def load_of(requests: Sequence[Request], seconds: float, cached: float = 0.0, share: float = 0.95) -> Load:
    """What comes in so many seconds."""
    if not requests:
        return Load(0.0, 1.0, 1.0, 0.0, 1.0)
    prompts = sorted(request.prompt for request in requests)
    long = float(prompts[min(len(prompts) - 1, int(len(prompts) * share))])
    mean = sum(prompts) / len(prompts)
    output = sum(request.output for request in requests) / len(requests)
    return Load(len(requests) / seconds, mean, max(mean, long), cached, output)


def truth(profile: Profile, loads: Sequence[Load]) -> Model:
    """An engine's own times, as the policy's model has them."""
    computed = [load.computed for load in loads if load.rate > 0]
    mean = max(1.0, sum(computed) / len(computed)) if computed else 1.0
    pace = profile.prompt_seconds(round(mean)) / round(mean) + profile.overhead / mean
    return Model(pace, profile.step, profile.per_request, profile.per_token, fitted=True)

"""What a scaling policy is asked, and what it answers: frozen values, the same in the operator, in the simulator and
for policies of your own.

Times are seconds, lengths are tokens, moments are ages (seconds before now), so that an ask can be recorded and put
again. A figure that is missing is None. Figures come from outside: `sane` is the one place that says which of them are
nonsense, and nonsense is missing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pydantic import ConfigDict

ENOUGH_REQUESTS: Final = 20
"""A window with fewer says how much came, but not how long things take."""
LATE_SECONDS: Final = 90.0
"""A newest window that ended longer ago says nothing about now."""
_ABSURD: Final = 1e9
LEAST_SECONDS: Final = 1.0
"""A shorter window has no rate worth the name."""


class Plain:
    """A value that `wire.py` writes as JSON and reads again: no field it does not know, no number that is not finite,
    no text where a number belongs."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(frozen=True)
class Window(Plain):
    """What the gateways together measured in a stretch of time. Windows of one ask have the same length."""

    age: float
    """Since its end."""
    seconds: float
    requests: float | None = None
    """That arrived."""
    prompt: float | None = None
    """Mean tokens of their prompts."""
    long_prompt: float | None = None
    """Tokens of a long one, at the percentile of the target for the first token."""
    cached: float | None = None
    """Share of prompt tokens that no engine had to compute, 0 to 1."""
    output: float | None = None
    """Mean tokens of their answers."""
    ttft: float | None = None
    """Time to first token, at the target's percentile."""
    itl: float | None = None
    """Time between tokens, at the target's percentile."""
    waiting: float | None = None
    """At its end, the longest that a request had waited for its first token."""
    writing: float | None = None
    """Mean number of answers that were being written."""
    usual_ttft: float | None = None
    """Time to first token that half of the requests had."""
    engines: Mapping[str, float] = field(default_factory=dict)
    """Mean number of ready engines, by role."""

    @property
    def rate(self) -> float | None:
        """Requests a second."""
        return None if self.requests is None else self.requests / self.seconds


@dataclass(frozen=True)
class Role(Plain):
    """One role: how many engines it shall have, has, and may have."""

    name: str
    size: int
    """Wanted before this ask."""
    least: int
    most: int
    accelerators: int = 1
    """Of one engine; 0 on CPU."""
    ready: int = 0
    starting: tuple[float, ...] = ()
    """Ages of the engines that are not ready yet."""


@dataclass(frozen=True)
class Target(Plain):
    """A latency, and the share of requests that must keep it, 0 to 1."""

    seconds: float
    share: float = 0.95


@dataclass(frozen=True)
class Aim(Plain):
    """What the deployment's spec asks for. Without a target the role it moves stays at its least."""

    ttft: Target | None = None
    itl: Target | None = None
    cap: int | None = None
    """Accelerators of all roles together."""
    spare: int = 0
    """Of these, what a rollout needs for engines above a role's size."""
    role_change: bool = False
    """A prefill engine may become a decode engine at once, and the other way round."""
    role_change_pause: float = 60.0
    """Shortest time between two changes of role."""


@dataclass(frozen=True)
class Model(Plain):
    """What one engine can do, as far as it was measured. `model.py` computes with it.

    Kept in the status, so that an operator that was restarted need not learn it again.
    """

    pace: float = 5e-5
    """Seconds of a computed prompt token."""
    step: float = 0.0044
    """Seconds of a decode step for one request with no context. The three together are those of an 8B model on one
    H200, as NVIDIA Dynamo publishes them; what is fitted scales them alike."""
    per_request: float = 4.8e-5
    """Seconds that each request in the batch adds to a step."""
    per_token: float = 2.27e-8
    """Seconds that each token of context in the batch adds to a step."""
    queueing: float = 1.0
    """What prompts wait for engines, against what the queue's formula says."""
    startup: float = 120.0
    """Seconds from a new engine's creation until it is ready."""
    fitted: bool = False
    """Something of it was measured on this deployment."""


@dataclass(frozen=True)
class Changed(Plain):
    """One earlier decision."""

    age: float
    role: str
    before: int
    after: int
    swap: bool = False
    """Another role gave or took the engine."""


@dataclass(frozen=True)
class Ask(Plain):
    """All that a policy is told. `windows`: newest first."""

    aim: Aim
    roles: tuple[Role, ...]
    windows: tuple[Window, ...] = ()
    changes: tuple[Changed, ...] = ()
    """Newest first."""
    model: Model = Model()

    def role(self, name: str) -> Role | None:
        return next((role for role in self.roles if role.name == name), None)


@dataclass(frozen=True)
class Decision(Plain):
    """A role's new size."""

    role: str
    before: int
    after: int
    reason: str
    """A sentence."""
    swap: bool = False


@dataclass(frozen=True)
class Answer(Plain):
    """`sizes` has every role. `verdict` is a reason of the condition ScalingActive, `message` its sentence."""

    sizes: Mapping[str, int]
    verdict: str
    message: str
    decisions: tuple[Decision, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The figures that decided, in words."""
    model: Model = Model()
    policy: str = "builtin"
    """Whose answer it is, by the name in `spec.scaling.policy`."""


def number(value: float | None, most: float = _ABSURD) -> float | None:
    """The value, where it is one that can be true: finite, not negative, not absurd."""
    return value if value is not None and math.isfinite(value) and 0 <= value <= most else None


def sane(ask: Ask) -> Ask:
    """The ask without figures that cannot be true, its windows newest first. One of no length to speak of is none."""
    windows = [_sane(one) for one in ask.windows if number(one.age) is not None and _long(one.seconds)]
    model = ask.model if all(number(value) is not None for value in vars(ask.model).values()) else Model()
    return replace(ask, windows=tuple(sorted(windows, key=lambda window: window.age)), model=model)


def _long(seconds: float) -> bool:
    return (number(seconds) or 0.0) >= LEAST_SECONDS


def _sane(window: Window) -> Window:
    engines = {name: count for name, count in window.engines.items() if number(count) is not None}
    return Window(
        age=window.age,
        seconds=window.seconds,
        requests=number(window.requests),
        prompt=number(window.prompt),
        long_prompt=number(window.long_prompt),
        cached=number(window.cached, 1.0),
        output=number(window.output),
        ttft=number(window.ttft),
        itl=number(window.itl),
        waiting=number(window.waiting),
        writing=number(window.writing),
        usual_ttft=number(window.usual_ttft),
        engines=engines,
    )

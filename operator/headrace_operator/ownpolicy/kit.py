"""Worlds to try a scaling policy in, for the tests of whoever writes one: `assert check(my_policy) == []`.

A world is a load as gateways would tell of it, half a minute after half a minute, with engines that are ready at once.
`check` lets the policy decide in all of them and lists every promise that it breaks. The operator would keep it from
most of that, or answer in its place; a policy that needs this is not the one that its author meant. It says nothing of
whether sizes are good ones: the simulator does.

Needs no test framework. The policy runs in this process: one that loops, loops here.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from headrace_operator.ownpolicy.loading import Function
from headrace_operator.plan.scaling import Aim, Answer, Ask, Changed, Model, Role, Target, Window
from headrace_operator.plan.scaling.bounds import allowed, room, seen
from headrace_operator.plan.scaling.inputs import sane
from headrace_operator.plan.scaling.own import NonsenseError, taken
from headrace_operator.plan.scaling.wire import WireError, answer_from_json, answer_to_json

SECONDS: Final = 30.0
"""Of a step, and of a window."""
KEPT: Final = 40
"""Windows that a policy is shown at most."""
SETTLED: Final = 20
"""Steps after which a load that stays as it is is no news."""
TURNS: Final = 2
"""Changes of direction that a role may make then."""
SPLIT: Final = (Role("prefill", 2, 1, 12), Role("decode", 2, 1, 12))
SERVE: Final = (Role("serve", 2, 1, 12),)
AIM: Final = Aim(Target(0.5), Target(0.05))


@dataclass(frozen=True)
class World:
    """A load, step by step. None: no gateway told anything in that step."""

    name: str
    steps: Sequence[Window | None]
    aim: Aim = AIM
    roles: tuple[Role, ...] = SPLIT
    late: float = 0.0
    """How old the newest window is, in seconds."""
    steady: bool = False
    """The load stays as it is, but for noise."""


@dataclass(frozen=True)
class Violation:
    """A promise that a policy broke."""

    rule: str
    """`Raised`, `Nonsense`, `Bounds`, `Cap`, `MissingFigures`, `Flapping`, `TooSlow` or `Moody`."""
    world: str
    step: int
    """Counted from 0. Of a rule about a whole world, its last."""
    message: str

    def __str__(self) -> str:
        return f"{self.rule} in the world {self.world}, step {self.step}: {self.message}"


def measured(rate: float, *, prompt: float = 1000.0, output: float = 150.0, engines: float = 2.0) -> Window:
    """Half a minute of so many requests a second, answered well by so many engines of each role."""
    names = ("prefill", "decode", "serve")
    return Window(
        0.0,
        SECONDS,
        requests=rate * SECONDS,
        prompt=prompt,
        long_prompt=2 * prompt,
        cached=0.3,
        output=output,
        ttft=0.2,
        itl=0.012,
        usual_ttft=0.08,
        waiting=0.1,
        writing=rate * output * 0.008,
        engines=dict.fromkeys(names, engines),
    )


def noise(step: int, most: float = 0.1) -> float:
    """A factor about 1, the same each time, spread evenly."""
    return 1 + most * (2 * math.fmod(step * 0.6180339887498949, 1.0) - 1)


def worlds() -> Iterator[World]:
    """All of them. Each load comes to a split deployment; two come to engines that do both phases."""
    busy = [measured(12.0 * noise(step)) for step in range(KEPT)]
    rising = [measured(1.0 + step) for step in range(KEPT)]
    broken = replace(measured(12.0), requests=math.nan, prompt=-1.0, ttft=math.inf)
    giant = replace(measured(1 / SECONDS, prompt=1e6, output=1e5), ttft=200.0, itl=2.0, waiting=200.0)
    yield World("idle", [replace(Window(0.0, SECONDS), requests=0.0) for _ in range(KEPT)])
    for rate in (4.0, 12.0, 19.0, 33.0):
        yield World(f"steady, {rate:g}/s", [measured(rate * noise(step)) for step in range(120)], steady=True)
    yield World(
        "steady, engines that do both", [measured(9.0 * noise(s)) for s in range(120)], roles=SERVE, steady=True
    )
    yield World("rising", rising)
    yield World("rising, engines that do both", rising, roles=SERVE)
    yield World("burst", [*busy[:15], *(measured(120.0) for _ in range(4)), *busy[:15]])
    yield World("up and down", [measured(30.0 if step // 10 % 2 else 3.0) for step in range(KEPT)])
    yield World("nobody tells anything", [None] * 10)
    yield World("figures that end", [*busy[:20], *[None] * 20])
    yield World("figures with holes", [one if step % 3 else None for step, one in enumerate(busy)])
    yield World("figures that are late", busy, late=120.0)
    yield World("figures that cannot be true", [*busy[:20], *[broken] * 20])
    yield World("one giant request", [*busy[:3], *[Window(0.0, SECONDS, requests=0.0)] * 10, giant, *busy[:3]])
    yield World("under a cap", rising, aim=replace(AIM, cap=6, spare=1))
    yield World("a cap below the least", rising, aim=replace(AIM, cap=1))
    yield World("a target out of reach", busy, aim=Aim(Target(0.001), Target(0.0001)))
    yield World("no target", busy, aim=Aim())
    yield World("roles may change", rising, aim=replace(AIM, role_change=True))


def check(
    policy: Function,
    *,
    seconds: float = 1.0,
    within: Iterable[World] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Violation]:
    """Every promise that the policy breaks, each once per world. `seconds`: what one answer may take. `within`: in
    these worlds alone, your own among them."""
    tried = worlds() if within is None else within
    return [found for world in tried for found in _Trial(world, policy, seconds, clock).run()]


class _Trial:
    """One policy in one world."""

    def __init__(self, world: World, policy: Function, seconds: float, clock: Callable[[], float]) -> None:
        self._world = world
        self._policy = policy
        self._seconds = seconds
        self._clock = clock
        self._roles = world.roles
        self._windows: list[Window] = []
        self._changes: list[Changed] = []
        self._model = Model()
        self._broken: dict[str, Violation] = {}

    def run(self) -> list[Violation]:
        history: list[Mapping[str, int]] = []
        for step, window in enumerate(self._world.steps):
            ask = self._ask(window)
            answer = self._answer(step, ask)
            if answer is None:
                break
            self._judge(step, ask, answer)
            sizes = allowed(answer.sizes, ask)
            history.append(sizes)
            self._carry_out(ask, sizes, answer)
        self._judge_all(history)
        return list(self._broken.values())

    def _ask(self, window: Window | None) -> Ask:
        late = self._world.late
        self._windows = [replace(one, age=one.age + SECONDS) for one in self._windows[: KEPT - 1]]
        self._windows.insert(0, replace(window or Window(0.0, SECONDS), age=late))
        self._changes = [replace(one, age=one.age + SECONDS) for one in self._changes[:20]]
        roles = tuple(replace(role, ready=role.size) for role in self._roles)
        return sane(Ask(self._world.aim, roles, tuple(self._windows), tuple(self._changes), self._model))

    def _answer(self, step: int, ask: Ask) -> Answer | None:
        """What the operator would make of it. None: nothing, and the world ends here."""
        before = self._clock()
        try:
            answer = self._policy(ask)
        except Exception as error:
            self._break("Raised", step, f"{type(error).__name__}: {error}")
            return None
        took = self._clock() - before
        if took > self._seconds:
            self._break("TooSlow", step, f"{took:.2g} s, of {self._seconds:g} s")
        if not isinstance(answer, Answer):
            self._break("Nonsense", step, f"{type(answer).__name__} in place of an Answer")
            return None
        try:
            answer = answer_from_json(answer_to_json(answer))
            taken("it", ask, answer)
        except (WireError, NonsenseError) as error:
            self._break("Nonsense", step, str(error))
            return None
        if step % 7 == 0 and (other := self._policy(ask)) != answer:
            self._break(
                "Moody", step, f"asked the same again, it wants {_said(other.sizes)}, not {_said(answer.sizes)}"
            )
        return answer

    def _judge(self, step: int, ask: Ask, answer: Answer) -> None:
        wants = {role.name: answer.sizes.get(role.name, role.size) for role in ask.roles}
        for role in ask.roles:
            if not role.least <= wants[role.name] <= role.most:
                self._break("Bounds", step, f"{role.name} {wants[role.name]}, allowed are {role.least} to {role.most}")
            if not seen(ask) and wants[role.name] < role.size:
                self._break(
                    "MissingFigures", step, f"{role.name} from {role.size} to {wants[role.name]} without figures"
                )
        before = sum(role.size * role.accelerators for role in ask.roles)
        used = sum(wants[role.name] * role.accelerators for role in ask.roles)
        if ask.aim.cap is not None and used > max(before, room(ask.roles, ask.aim)):
            self._break("Cap", step, f"{used} accelerators, the cap leaves {room(ask.roles, ask.aim)}")

    def _judge_all(self, history: Sequence[Mapping[str, int]]) -> None:
        for role in self._world.roles if self._world.steady else ():
            sizes = [one[role.name] for one in history[SETTLED:]]
            ways = [after > before for before, after in pairwise(sizes) if after != before]
            turns = sum(way != other for way, other in pairwise(ways))
            if turns > TURNS:
                said = f"{role.name} turns round {turns} times under a load that stays as it is"
                self._break("Flapping", len(history) - 1, said)

    def _carry_out(self, ask: Ask, sizes: Mapping[str, int], answer: Answer) -> None:
        swaps = {one.role for one in answer.decisions if one.swap}
        moved = [
            Changed(0.0, role.name, role.size, sizes[role.name], role.name in swaps)
            for role in ask.roles
            if sizes[role.name] != role.size
        ]
        self._changes = [*moved, *self._changes]
        self._roles = tuple(replace(role, size=sizes[role.name]) for role in self._roles)
        self._model = answer.model if answer.model.fitted else self._model

    def _break(self, rule: str, step: int, message: str) -> None:
        self._broken.setdefault(rule, Violation(rule, self._world.name, step, message))


def _said(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())

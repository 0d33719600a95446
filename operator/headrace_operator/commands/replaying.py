"""Decides once more on what was recorded, with the code of the operator's own passes and nothing of its own between.

`sizing.size` is called for each moment of a recording, in a world whose gateways answer what they answered then and
whose clocks stand where they stood. What one pass decides is what the next one finds in the status, as in a cluster.
**Open loop**: latencies and ready engines are the recorded ones, whatever sizes a policy would have had. Called by
`replay.py`, and by tests that compare a replay with the operator that was recorded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from headrace_operator.api.conditions import Reason
from headrace_operator.api.status import ScalingDecision, ScalingStatus
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.cluster.fake import FakeCluster, FakeRuntime
from headrace_operator.commands.recording import Moment, Session
from headrace_operator.ownpolicy.process import Limits
from headrace_operator.plan.scaling import Ask, Model
from headrace_operator.plan.scaling.forecast import level
from headrace_operator.plan.scaling.inputs import sane
from headrace_operator.plan.scaling.model import load_of, need
from headrace_operator.plan.sizes import aim_of, ask_of
from headrace_operator.policies import Policy
from headrace_operator.sizing import size
from headrace_operator.state import Defaults, Observed, Ref
from headrace_operator.status import remembered
from headrace_operator.world import World

BREAK_SECONDS = 3600.0
"""Between two sessions, where the recorder's clock does not say more."""
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Step:
    """One moment."""

    at: datetime
    seconds: float
    """Until the next one; 0 where none follows in the session."""
    sizes: Sizes
    """Engines of each role that were wanted when it began."""
    decisions: tuple[ScalingDecision, ...] = ()
    verdict: str = ""
    """A reason of ScalingActive. Empty: nothing was decided about."""
    message: str = ""
    ask: Ask | None = None
    """What was known, with the model as it was learnt by then. None: of what was recorded."""


@dataclass(frozen=True)
class Run:
    """One policy, or what was recorded, over all moments."""

    name: str
    steps: tuple[Step, ...]

    @property
    def engine_seconds(self) -> float:
        return sum(sum(step.sizes.values()) * step.seconds for step in self.steps)

    @property
    def changes(self) -> int:
        """Moments at which a role had another size than at the one before."""
        return sum(new.sizes != old.sizes for old, new in pairwise(self.steps))

    @property
    def failed(self) -> tuple[Step, ...]:
        """Where the policy gave no answer and the built-in one stood in."""
        return tuple(step for step in self.steps if step.verdict == Reason.POLICY_FAILED)

    def short_seconds(self, needs: Sequence[Sizes | None]) -> float:
        """For how long at least one role had fewer engines than were needed."""
        return sum(
            step.seconds
            for step, needed in zip(self.steps, needs, strict=True)
            if needed is not None and any(step.sizes.get(role, 0) < count for role, count in needed.items())
        )


def recorded(recording: Sequence[Session]) -> Run:
    """What was so when it was recorded."""
    steps, known = list[Step](), list[ScalingDecision]()
    for session in recording:
        for moment, seconds in _timed(session):
            spec, status = moment.deployment()
            said = status.scaling.last_decisions if status.scaling is not None else ()
            new = tuple(sorted((one for one in said if one not in known), key=lambda one: one.time))
            known += new
            sizes: Sizes = {role.name: role.desired for role in status.roles} or _counted(spec, moment.observed())
            steps.append(Step(moment.at, seconds, sizes, new if steps else ()))
    return Run("recorded", tuple(steps))


async def replayed(recording: Sequence[Session], policy: str, folder: Path) -> Run:
    """What a policy decides of it. `folder`: where Python looks for the policy, last."""
    run = _Replay(policy)
    limits = Limits(folder=str(folder))
    async with Policy((policy,), limits, now=lambda: run.clock) as policies:
        steps = await run.all(recording, policies)
    return Run(policy, tuple(steps))


class _Replay:
    """The world of one replay: its clock, and the status from pass to pass."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.clock = 0.0
        """Monotonic, over all sessions."""
        self._now: datetime | None = None
        self._scaling: ScalingStatus | None = None

    async def all(self, recording: Sequence[Session], policies: Policy) -> list[Step]:
        runtime, steps = FakeRuntime(), list[Step]()
        world = World(
            FakeCluster(), runtime, Defaults("", ""), self._moment, str, policy=policies, clock=lambda: self.clock
        )
        for number, session in enumerate(recording):
            head, began = session.header, self.clock + (BREAK_SECONDS if number else 0.0)
            # Another uid: what was read before the break says nothing after it.
            ref = Ref(head.namespace, head.name, f"{head.uid}/{number}")
            for moment, seconds in _timed(session):
                self.clock, self._now = began + moment.elapsed, moment.at
                answers = {pod: told for pod, told in moment.gateways.items() if told is not None}
                runtime.readings.clear()
                runtime.readings.update(answers)
                steps.append(replace(await self._step(world, ref, moment), seconds=seconds))
        return steps

    def _moment(self) -> datetime:
        assert self._now is not None
        return self._now

    async def _step(self, world: World, ref: Ref, moment: Moment) -> Step:
        spec, said = moment.deployment()
        scaling = spec.scaling.model_copy(update={"policy": self.policy})
        spec, observed = spec.model_copy(update={"scaling": scaling}), moment.observed()
        before = self._scaling or said.scaling or ScalingStatus()
        # Who sleeps is asked nothing: what a policy would have is what replays are for.
        previous = said.model_copy(update={"scaling": before.model_copy(update={"asleep_since": None})})
        sized = await size(world, ref, spec, observed, previous, moment.at)
        self._scaling = remembered(sized, previous.scaling)
        windows = world.readings.windows(ref.uid, self.clock, aim_of(spec))
        ask = ask_of(spec, observed, previous, windows, moment.at, world.learnt.get(ref.uid))
        return Step(moment.at, 0.0, sized.sizes, sized.decisions, sized.verdict, sized.message, ask)


def needed(run: Run) -> list[Sizes | None]:
    """Engines that each moment's load needed, in hindsight: by the model as it was learnt in the end. None: the load is
    not known."""
    last = run.steps[-1].ask
    assert last is not None
    return [_need(step.ask, last.model) if step.ask is not None else None for step in run.steps]


def _need(ask: Ask, model: Model) -> dict[str, int] | None:
    """Fewest engines of each role that keep the targets under the load of the last two windows; the role's most where
    no number does."""
    ask = sane(ask)
    rate, lengths = level(ask.windows), load_of(ask.windows[:6], 1.0)
    if rate is None or (lengths is None and rate > 0):
        return None
    if lengths is None:
        return {role.name: role.least for role in ask.roles}
    load = replace(lengths, rate=rate)
    return {role.name: need(model, load, role, ask.aim) or role.most for role in ask.roles}


def _timed(session: Session) -> list[tuple[Moment, float]]:
    """Each moment and the seconds until the next."""
    moments = session.moments
    gaps = [new.elapsed - old.elapsed for old, new in pairwise(moments)]
    return list(zip(moments, [*(max(0.0, gap) for gap in gaps), 0.0], strict=False))


def _counted(spec: InferenceDeploymentSpec, observed: Observed) -> dict[str, int]:
    """Of a deployment whose status says no sizes yet."""
    return {role.name: sum(pod.live for pod in observed.engines(role.name)) for role in spec.roles}

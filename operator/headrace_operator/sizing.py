"""Step 4 of a pass: how many engines each role is to have. The rim around `plan/sizes.py`; called by reconcile.

Where sizes are decided by figures, gateways are asked and a policy answers once in `EVERY_SECONDS`, however many passes
there are: between readings the sizes of the status hold. While the spec is paused or suspended, or the deployment
sleeps, nothing is decided. In Fixed mode nobody is asked anything, and in External mode the InferenceRoles say it.
"""

import logging
from datetime import datetime
from zlib import crc32

from headrace_operator import metrics
from headrace_operator.api.conditions import Reason
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.gangs import whole
from headrace_operator.known import Known
from headrace_operator.observe import read_figures
from headrace_operator.plan.external import external_sizes
from headrace_operator.plan.scaling import Answer, Ask
from headrace_operator.plan.sizes import aim_of, ask_of, sized
from headrace_operator.readings import EVERY_SECONDS
from headrace_operator.state import Observed, Ref, Sized
from headrace_operator.world import World

logger = logging.getLogger(__name__)

SPREAD_SECONDS = 3.0
"""A reading may be so much later than due."""


async def size(
    world: World,
    ref: Ref,
    spec: InferenceDeploymentSpec,
    observed: Observed,
    previous: InferenceDeploymentStatus,
    now: datetime,
) -> Sized:
    """The sizes of this pass, and what was decided in it."""
    if not _by_figures(spec):
        forget(world, ref)
    if spec.scaling.mode == "External":
        return external_sizes(spec, previous, observed.children.values())
    clock = world.clock()
    asleep = previous.scaling is not None and previous.scaling.asleep_since is not None
    if not _by_figures(spec) or spec.paused or asleep or not world.readings.due(ref.uid, clock):
        return sized(spec, previous, now)
    told = await read_figures(world.runtime, observed)
    world.readings.note(ref.uid, clock, told, _ready(spec, observed))
    windows = world.readings.windows(ref.uid, clock, aim_of(spec))
    if not windows:
        # One reading is no window: what was said before this process began holds on until the next.
        return sized(spec, previous, now)
    ask = ask_of(spec, observed, previous, windows, now, world.learnt.get(ref.uid))
    answer = await _answer(world, ref, spec, ask)
    # A policy of the user's own may keep no model.
    world.learnt[ref.uid] = answer.model if answer.model.fitted else ask.model
    return sized(spec, previous, now, ask, answer)


async def _answer(world: World, ref: Ref, spec: InferenceDeploymentSpec, ask: Ask) -> Answer:
    """The policy's. A surprise in it must not end the pass: engines that died are replaced whatever sizes they have."""
    try:
        return await world.policy.decide(spec.scaling.policy, ask)
    except Exception as error:
        logger.exception("%s: the scaling policy failed", ref)
        metrics.ERRORS.labels(reason=type(error).__name__).inc()
        message = f"The built-in policy failed ({type(error).__name__}): sizes stay as they are."
        return Answer({role.name: role.size for role in ask.roles}, Reason.POLICY_FAILED, message, model=ask.model)


def next_reading(world: World, known: Known) -> float | None:
    """Seconds until gateways are to be asked again. None: they are not."""
    if known.subject is None or known.paused or known.asleep or not _by_figures(known.subject.spec):
        return None
    newest = world.readings.newest(known.ref.uid)
    if newest is None:
        return 0.0
    # Of some length of its own each, so that those that were seen first in one moment drift apart.
    spread = SPREAD_SECONDS * (crc32(known.ref.uid.encode()) % 1000) / 1000
    return max(0.0, newest + EVERY_SECONDS - world.clock()) + spread


def soonest(one: float | None, other: float | None) -> float | None:
    """The shorter of two waits; None is one without end."""
    return min((wait for wait in (one, other) if wait is not None), default=None)


def forget(world: World, ref: Ref) -> None:
    """Nothing is decided by figures here, or no longer."""
    world.readings.forget(ref.uid)
    world.learnt.pop(ref.uid, None)


def _by_figures(spec: InferenceDeploymentSpec) -> bool:
    return spec.scaling.mode == "SLO" and not spec.suspend


def _ready(spec: InferenceDeploymentSpec, observed: Observed) -> dict[str, int]:
    """Ready engines of each role."""
    engines = [pod for pod in whole(observed.engines()) if pod.ready and pod.live]
    return {role.name: sum(pod.role == role.name for pod in engines) for role in effective_roles(spec)}

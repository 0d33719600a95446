"""Whether a deployment sleeps in this pass. The rim around `plan/sleep.py`; called by reconcile.

Gateways are asked in every pass where `scaling.toZero` is set, and nobody is asked anything where it is not.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus
from headrace_operator.observe import read_figures
from headrace_operator.plan.sleep import Scene, may_sleep, rest
from headrace_operator.state import Observed, Rest, Sized, Target
from headrace_operator.world import World


def with_rest(sized: Sized, rest: Rest) -> Sized:
    """The sizes of a pass, with what it decided of sleep."""
    return replace(sized, decisions=(*rest.decisions, *sized.decisions), asleep_since=rest.since)


async def resting(
    world: World,
    target: Target,
    observed: Observed,
    previous: InferenceDeploymentStatus,
    sizes: Mapping[str, int],
    now: datetime,
) -> Rest:
    """Whether it sleeps. `sizes`: that roles have when it does not."""
    told = {}
    if may_sleep(target.spec) is not None and not target.spec.paused:
        by_name = await read_figures(world.runtime, observed)
        told = {pod.ip: by_name[pod.name] for pod in observed.gateways if pod.name in by_name}
    return rest(Scene(target, previous, observed.engines(), sizes, told, now))

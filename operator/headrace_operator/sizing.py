"""Step 4 of a pass: how many engines each role is to have. The rim around `plan/sizes.py`; called by reconcile.

In Fixed mode nobody is asked anything.
"""

from datetime import datetime

from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.plan.sizes import sized
from headrace_operator.state import Observed, Ref, Sized
from headrace_operator.world import World


async def size(
    world: World,
    ref: Ref,
    spec: InferenceDeploymentSpec,
    observed: Observed,
    previous: InferenceDeploymentStatus,
    now: datetime,
) -> Sized:
    """The sizes of this pass."""
    return sized(spec, previous, now)

"""Everything outside that a pass touches, in one value: both doors, the clocks, and what is remembered between passes.

What is remembered is memory only and never needed to be right: after a restart it comes again by looking.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from headrace_operator.cluster import Cluster, Runtime
from headrace_operator.plan.scaling import Model
from headrace_operator.policies import Policy
from headrace_operator.readings import Readings
from headrace_operator.state import Defaults


@dataclass(frozen=True)
class World:
    """Both doors, clocks and memory. Made once per process."""

    cluster: Cluster
    runtime: Runtime
    defaults: Defaults
    now: Callable[[], datetime]
    token: Callable[[], str]
    """Makes a new secret."""
    readings: Readings = field(default_factory=Readings)
    """Of gateways, where sizes are decided by them."""
    policy: Policy = field(default_factory=Policy)
    clock: Callable[[], float] = time.monotonic
    """Seconds that nobody sets."""
    learnt: dict[str, Model] = field(default_factory=dict)
    """What engines of each deployment can do, by its uid. The status has it too, but not every small step."""

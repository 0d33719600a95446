"""All that a pass found out, when it comes to telling, and what can be counted of it. Pure.

`ladders.py` judges by it, `status.py` tells it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from headrace_operator import names
from headrace_operator.adapters import adapter_statuses
from headrace_operator.api.conditions import PROGRESSING, Reason
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.problems import Problem
from headrace_operator.api.status import AdapterStatus
from headrace_operator.api.v1alpha1 import InferenceDeploymentStatus
from headrace_operator.gangs import whole
from headrace_operator.state import (
    AWAKE,
    Blocker,
    CanaryAnswer,
    Object,
    Observed,
    Outcome,
    Plan,
    Pod,
    Ref,
    Rest,
    Sized,
    Subject,
    Target,
)

SHOWN = 3
"""Blockers that a message names; the rest is counted."""
SILENT = timedelta(seconds=120)
"""Since a pod was made: an agent answers within seconds, but its image may have to come first."""
OVERDUE = timedelta(seconds=60)
"""After the time that Kubernetes itself gave a pod to end."""


@dataclass(frozen=True)
class Wanted:
    """What the deployment shall come to. From the plan, or, while the spec is invalid, as it was last reported."""

    revision: str
    sizes: dict[str, int]
    ranks: dict[str, int] = field(default_factory=dict)
    """Pods of each engine of a role, where it has several."""

    @property
    def engines(self) -> int:
        return sum(self.sizes.values())

    @property
    def pods(self) -> int:
        """Pods of all engines."""
        return sum(size * self.ranks.get(role, 1) for role, size in self.sizes.items())

    @property
    def counted(self) -> str:
        """What `pods` counts, in words."""
        return "engines" if self.pods == self.engines else "engine pods"


@dataclass(frozen=True)
class Known:
    """All that a pass found out, when it comes to telling."""

    ref: Ref
    generation: int
    now: datetime
    previous: InferenceDeploymentStatus
    observed: Observed
    problems: tuple[Problem, ...] = ()
    subject: Subject | None = None
    target: Target | None = None
    scaling: Sized | None = None
    rest: Rest = AWAKE
    plan: Plan | None = None
    outcome: Outcome = field(default_factory=Outcome)
    canary: CanaryAnswer | None = None
    """The answer of this pass; None where it was not asked."""
    manifest_missing: bool = False

    @property
    def wanted(self) -> Wanted | None:
        if self.plan is not None:
            return Wanted(self.plan.revision, dict(self.plan.sizes), self._ranks)
        before = self.previous
        if before.revision is None or before.revision.current is None or not before.roles:
            return None
        return Wanted(before.revision.current, {role.name: role.desired for role in before.roles}, self._ranks)

    @property
    def _ranks(self) -> dict[str, int]:
        """By the spec; while that is invalid, as the pods say that are there."""
        if self.subject is not None:
            return {role.name: role.parallelism.pods for role in effective_roles(self.subject.spec)}
        return {pod.role: pod.ranks for pod in self.observed.engines()}

    @property
    def adapters(self) -> tuple[AdapterStatus, ...]:
        """The LoRA adapters of the spec, as the engines say; as they were last reported while the spec is not valid."""
        if self.subject is None or self.wanted is None:
            return self.previous.model.adapters if self.previous.model else ()
        listed = [adapter.name for adapter in self.subject.spec.model.adapters]
        return adapter_statuses(listed, self.observed.engines(), self.wanted.engines, self.subject.pinned_adapters)

    @property
    def suspended(self) -> bool:
        return self.subject is not None and self.subject.spec.suspend

    @property
    def asleep(self) -> bool:
        """No engine shall run, since nobody asks."""
        return self.rest.carried_out

    @property
    def paused(self) -> bool:
        return self.subject is not None and self.subject.spec.paused

    def was(self, condition: str) -> str:
        """Status of a condition as it was last reported."""
        return next((x.status for x in self.previous.conditions if x.type == condition), "Unknown")


def ready_of(known: Known, role: str, revision: str | None = None) -> int:
    """Ready engines of one role, of one revision or of any."""
    return sum(p.ready and p.live and revision in (None, p.revision) for p in whole(known.observed.engines(role)))


def required(known: Known, wanted: Wanted) -> dict[str, int]:
    """Engines of each role without which the deployment is not ready: all of them; where sizes come and go by
    themselves, the least of the spec."""
    least = known.scaling.least if known.scaling is not None else {}
    return {role: min(size, max(1, least.get(role, size))) for role, size in wanted.sizes.items()}


def grown(known: Known) -> bool:
    """A role that has engines was given a larger size in this pass, or earlier and they have not all come yet."""
    wanted = known.wanted
    if wanted is None or rolled_out(known):
        return False
    before: dict[str, int] = {role.name: role.desired for role in known.previous.roles}
    now = any(0 < before.get(role, 0) < size for role, size in wanted.sizes.items())
    judged = next((x for x in known.previous.conditions if x.type == PROGRESSING), None)
    return now or (judged is not None and judged.reason == Reason.SCALING)


def counts(known: Known, wanted: Wanted) -> str:
    """`prefill 1/1, decode 0/2`."""
    return ", ".join(f"{role} {ready_of(known, role)}/{size}" for role, size in wanted.sizes.items())


def rolled_out(known: Known) -> bool:
    """Every role has all its engines, ready and of the wanted revision, and no canary goes on beside them."""
    wanted = known.wanted
    if wanted is None or (known.plan is not None and known.plan.trying):
        return False
    return all(ready_of(known, r, wanted.revision) >= n for r, n in wanted.sizes.items())


def joined_nodes(known: Known) -> int:
    """Engine pods whose raylet has joined, as their agents say."""
    return sum(bool(p.agent and p.agent.ray and p.agent.ray.joined) for p in known.observed.engines() if not p.going)


def gateway_deployment(known: Known) -> Object | None:
    """The gateway's Deployment as observed."""
    return known.observed.children.get(("Deployment", names.gateway(known.ref.name)))


def gateway_counts(known: Known) -> tuple[int, int]:
    """Gateway pods: ready and wanted."""
    deployment = gateway_deployment(known) or {}
    ready: int = deployment.get("status", {}).get("readyReplicas", 0)
    size: int = deployment.get("spec", {}).get("replicas", 0)
    return ready, size


def shortages(known: Known, sizes: Mapping[str, int] | None = None) -> list[str]:
    """Whatever is there in a smaller number than wanted, or, of engines, than `sizes` say."""
    wanted = known.wanted
    wants = sizes if sizes is not None else wanted.sizes if wanted is not None else {}
    found = {role: (ready_of(known, role), size) for role, size in wants.items()}
    head = known.observed.head
    found["head"] = (int(head is not None and head.ready), 1)
    found["gateway"] = gateway_counts(known)
    return [f"{name} {ready}/{size}" for name, (ready, size) in found.items() if ready < size]


def blockers(pods: Iterable[Pod]) -> list[Blocker]:
    """What stands in the way of pods that shall stay, in the order of their names."""
    return [pod.blocker for pod in pods if pod.blocker is not None and not pod.going]


def silent(known: Known) -> list[str]:
    """Engines that have had an address for a while, are not ready, and whose agents do not say why."""
    latest = known.now - SILENT
    return [
        pod.name
        for pod in known.observed.engines()
        if pod.live and pod.ip and not pod.ready and pod.agent is None and pod.created and pod.created < latest
    ]


def overdue(known: Known) -> list[Pod]:
    """Pods that were to be gone a while ago. Something holds them: a node that is away, or somebody's finalizer."""
    latest = known.now - OVERDUE
    return [pod for pod in known.observed.pods if pod.ends is not None and pod.ends < latest]


def listed(found: list[Blocker]) -> str:
    """The first blockers in words."""
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(map(str, found[:SHOWN])) + more

"""What shall exist next: spec and observation in, one step out. Pure; called by reconcile and by the `plan` command.

The step is derived from what is seen and never remembered. `roles.py` lets engines change their role where that saves
ending some and starting others, `rollout.py` does the arithmetic, this module puts pods' names to its counts.
"""

from collections.abc import Mapping

from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.plan.revision import engine_revision, head_revision
from headrace_operator.plan.roles import change_roles, labelled
from headrace_operator.plan.rollout import Bounds, Count, Step, next_step
from headrace_operator.state import Observed, Plan, Pod, Slot


def make_plan(spec: InferenceDeploymentSpec, observed: Observed) -> Plan:
    """One step from what is observed towards the spec.

    Nothing observed gives the first step, which is the whole deployment. Must not be called when the reads failed.
    """
    revision, of_head = engine_revision(spec, observed.manifest), head_revision(spec)
    sizes: dict[str, int] = {role.name: 0 if spec.suspend else role.replicas for role in effective_roles(spec)}
    engines = labelled(observed.engines(), sizes)
    if spec.disaggregation.role_change.enabled:
        engines = change_roles(engines, revision, sizes, _floors(spec, sizes))
    by_role = {role: [p for p in engines if p.role == role] for role in [*sizes, *(p.role for p in engines)]}
    counts = {
        role: _count(pods, revision, sizes.get(role, 0), leaving=role not in sizes) for role, pods in by_role.items()
    }
    steps = next_step(counts, Bounds(spec.rollout.max_surge, spec.rollout.max_unavailable))
    slots: list[Slot] = []
    keep: set[str] = set()
    for role, step in steps.items():
        taken = {pod.index for pod in engines if pod.revision == revision and pod.home == role}
        slots += _slots(role, [p for p in by_role[role] if p.revision == revision], taken, step)
        keep |= _kept([p for p in by_role[role] if p.revision != revision and p.live], step)
    head = observed.head
    return Plan(
        revision=revision,
        head_revision=of_head,
        sizes=sizes,
        slots=tuple(slots),
        keep=frozenset(keep),
        # The head's name is fixed, so its successor has to wait until it is gone.
        head=head is None or (head.live and head.revision == of_head),
    )


def _floors(spec: InferenceDeploymentSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Ready engines that a change of role leaves to each role at least."""
    change, unavailable = spec.disaggregation.role_change, spec.rollout.max_unavailable
    fewest = {"prefill": change.min_prefill, "decode": change.min_decode}
    return {role: max(fewest.get(role, 0), size - unavailable) for role, size in sizes.items()}


def _count(pods: list[Pod], revision: str, size: int, *, leaving: bool) -> Count:
    live = [pod for pod in pods if pod.live]
    new = [pod for pod in live if pod.revision == revision]
    old = [pod for pod in live if pod.revision != revision]
    return Count(
        size=size,
        new_ready=sum(pod.ready for pod in new),
        new_waiting=sum(not pod.ready for pod in new),
        old_ready=sum(pod.ready for pod in old),
        old_waiting=sum(not pod.ready for pod in old),
        leaving=leaving,
    )


def _slots(role: str, pods: list[Pod], taken: set[int], step: Step) -> list[Slot]:
    """The slots of one role in the wanted revision after this step. Pods with the highest index go first.

    A new pod takes the lowest index that no pod made for the role has, dead and ending ones included (`taken`): a pod
    on a node that is lost keeps its name for as long as the node is away, and must not keep its successor waiting.
    """
    live = sorted((pod for pod in pods if pod.live), key=lambda pod: (pod.home != role, pod.index))
    waiting = [pod for pod in live if not pod.ready]
    ready = [pod for pod in live if pod.ready]
    stay = waiting[: len(waiting) - step.end_new_waiting] + ready[: len(ready) - step.end_new_ready]
    free = (index for index in range(len(taken) + step.create) if index not in taken)
    slots = [Slot(role, pod.index, pod.home if pod.home != role else "") for pod in stay]
    return sorted([*slots, *(Slot(role, next(free)) for _ in range(step.create))], key=lambda s: (s.born, s.index))


def _kept(old: list[Pod], step: Step) -> set[str]:
    """Pods of other revisions that stay."""
    names = sorted(pod.name for pod in old if pod.ready)
    waiting = sorted(pod.name for pod in old if not pod.ready)
    return {*names[: len(names) - step.end_old_ready], *waiting[: len(waiting) - step.end_old_waiting]}

"""What shall exist next: spec and observation in, one step out. Pure; called by reconcile and by the `plan` command.

The step is derived from what is seen and never remembered. `rollout.py` does the arithmetic, this module puts pods'
names to its counts.
"""

from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.plan.revision import engine_revision, head_revision
from headrace_operator.plan.rollout import Bounds, Count, Step, next_step
from headrace_operator.state import Observed, Plan, Pod, Slot


def make_plan(spec: InferenceDeploymentSpec, observed: Observed) -> Plan:
    """One step from what is observed towards the spec.

    Nothing observed gives the first step, which is the whole deployment. Must not be called when the reads failed.
    """
    revision, of_head = engine_revision(spec, observed.manifest), head_revision(spec)
    sizes: dict[str, int] = {role.name: 0 if spec.suspend else role.replicas for role in effective_roles(spec)}
    roles = {**sizes, **{pod.role: 0 for pod in observed.engines() if pod.role not in sizes}}
    counts = {
        role: _count(observed.engines(role), revision, size, leaving=role not in sizes) for role, size in roles.items()
    }
    steps = next_step(counts, Bounds(spec.rollout.max_surge, spec.rollout.max_unavailable))
    slots: list[Slot] = []
    keep: set[str] = set()
    for role, step in steps.items():
        pods = observed.engines(role)
        slots += _slots(role, [p for p in pods if p.revision == revision], step)
        keep |= _kept([p for p in pods if p.revision != revision and p.live], step)
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


def _count(pods: tuple[Pod, ...], revision: str, size: int, *, leaving: bool) -> Count:
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


def _slots(role: str, pods: list[Pod], step: Step) -> list[Slot]:
    """The slots of the wanted revision after this step. Pods with the highest index go first.

    A new pod takes the lowest index that no pod has, dead and ending ones included: a pod on a node that is lost keeps
    its name for as long as the node is away, and must not keep its successor waiting.
    """
    live = sorted((pod for pod in pods if pod.live), key=lambda pod: pod.index)
    waiting = [pod.index for pod in live if not pod.ready]
    ready = [pod.index for pod in live if pod.ready]
    stay = waiting[: len(waiting) - step.end_new_waiting] + ready[: len(ready) - step.end_new_ready]
    taken = {pod.index for pod in pods}
    free = (index for index in range(len(taken) + step.create) if index not in taken)
    created = [next(free) for _ in range(step.create)]
    return [Slot(role, index) for index in sorted(stay + created)]


def _kept(old: list[Pod], step: Step) -> set[str]:
    """Pods of other revisions that stay."""
    names = sorted(pod.name for pod in old if pod.ready)
    waiting = sorted(pod.name for pod in old if not pod.ready)
    return {*names[: len(names) - step.end_old_ready], *waiting[: len(waiting) - step.end_old_waiting]}

"""What shall exist next: spec and observation in, one step out. Pure; called by reconcile and by the `plan` command.

The step is derived from what is seen, and from where KV blocks were put (the status remembers that). `target.py` says
which spec it is to lead to, `canary.py` how far, `roles.py` lets engines change their role where that saves ending some
and starting others, `rollout.py` does the arithmetic, `room.py` keeps it within the cap of accelerators, `placement.py`
sends engines back to their KV blocks, this module puts pods' names to its counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, islice, repeat

from headrace_operator import history
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.gangs import whole
from headrace_operator.plan.canary import Rolling, Trial, stand
from headrace_operator.plan.placement import let_go, places, vacant
from headrace_operator.plan.revision import engine_revision, head_revision
from headrace_operator.plan.roles import change_roles, labelled
from headrace_operator.plan.rollout import Bounds, Count, Step, next_step
from headrace_operator.plan.room import accelerators, cap_of, fitted, narrowed, sentence, surges
from headrace_operator.state import Observed, Plan, Pod, Slot

NOWHERE: Mapping[str, str] = {}
BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Terms:
    """What a plan keeps to beside the spec."""

    held: bool = False
    """No engine is made (`target.py`)."""
    trial: Trial | None = None
    """Only a part of the rollout may end (`canary.py`)."""
    sizes: Mapping[str, int] | None = None
    """Engines of each role where the spec does not fix them. None: it does, or they are at their least."""
    asleep: bool = False
    """No engine shall run for now; where KV blocks are stays known (`sleep.py`)."""


AS_WRITTEN = Terms()


def make_plan(
    spec: InferenceDeploymentSpec,
    observed: Observed,
    placement: Mapping[str, str] = NOWHERE,
    now: datetime = BEFORE_ALL,
    terms: Terms = AS_WRITTEN,
) -> Plan:
    """One step from what is observed towards the spec. `placement` is that of the plan before, as the status keeps it.

    Nothing observed gives the first step, which is the whole deployment. Must not be called when the reads failed.
    """
    revision, of_head = engine_revision(spec, observed.manifest), head_revision(spec)
    of_roles: dict[str, int] = {role.name: role.replicas for role in effective_roles(spec)} | dict(terms.sizes or {})
    sizes = {role: 0 if spec.suspend or terms.asleep else size for role, size in of_roles.items()}
    engines = labelled(whole(observed.engines()), sizes)
    disk = spec.kv_cache.disk if spec.kv_cache.disk and spec.kv_cache.disk.outlives_pods else None
    blocks: dict[str, str] = {}
    if disk is not None:
        engines = let_go(engines, placement, disk.return_to_node)
        room = {role: size + spec.rollout.max_surge for role, size in of_roles.items()}
        blocks = places(engines, placement, room, disk.return_to_node, now)
    if spec.disaggregation.role_change.enabled:
        engines = change_roles(engines, revision, sizes, _floors(spec, sizes))
    by_role = {role: [p for p in engines if p.role == role] for role in [*sizes, *(p.role for p in engines)]}
    head, known = observed.head, history.records(observed.children.values())
    counted = _counted(spec, known.values())
    each: dict[str, int] = {role.name: role.accelerators for role in effective_roles(spec)}
    counts = {
        role: _count(pods, revision, sizes.get(role), each.get(role, 0), counted) for role, pods in by_role.items()
    }
    bounds = Bounds(spec.rollout.max_surge, spec.rollout.max_unavailable)
    most = spec.scaling.max_accelerators
    cap = None if most is None else cap_of(most, observed.engines(), counted)
    above = surges(counts, bounds, cap)
    trial = terms.trial
    rolling = Rolling(revision, sizes, narrowed(bounds, above), engines)
    canary = stand(trial, rolling, now) if trial is not None else None
    holds = canary.holds if canary is not None else None
    steps = next_step(counts, bounds, held=terms.held, holds=holds, surges=above)
    if cap is not None:
        steps = fitted(counts, steps, bounds, above, cap)
    slots: list[Slot] = []
    keep: set[str] = set()
    for role, step in steps.items():
        berths = vacant(role, engines, blocks, disk.return_to_node) if disk is not None else repeat(("", ""))
        taken = {pod.index for pod in engines if pod.revision == revision and pod.home == role}
        mine = [p for p in by_role[role] if p.revision == revision]
        slots += sorted([*_staying(role, mine, step), *_new(role, taken, berths, step)], key=_name)
        others = [pod for pod in by_role[role] if pod.revision != revision and pod.live]
        keep |= _kept(others, step, trial.current if trial is not None else None)
    return Plan(
        revision=revision,
        head_revision=of_head,
        sizes=sizes,
        slots=tuple(slots),
        keep=frozenset(pod.name for pod in observed.engines() if pod.engine in keep),
        placement=blocks,
        canary=canary.step if canary is not None else None,
        share=canary.share if canary is not None else None,
        trying=canary is not None and bool(canary.holds),
        # The head's name is fixed, so its successor has to wait until it is gone.
        head=head is None or (head.live and head.revision == of_head),
        record=None if revision in known else 1 + max((one.number for one in known.values()), default=0),
        lacking=sentence(counts, steps, cap) if cap is not None else "",
    )


def _counted(spec: InferenceDeploymentSpec, known: Iterable[history.Record]) -> Set[str]:
    """Names of the accelerators that a cap counts: those of the spec, and of revisions whose engines may be there."""
    resources: set[str] = {role.engine.device.resource for role in effective_roles(spec)} - {"cpu"}
    return resources.union(*(history.devices(record.words) for record in known))


def _floors(spec: InferenceDeploymentSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Ready engines that a change of role leaves to each role at least."""
    change, unavailable = spec.disaggregation.role_change, spec.rollout.max_unavailable
    fewest = {"prefill": change.min_prefill, "decode": change.min_decode}
    return {role: max(fewest.get(role, 0), size - unavailable) for role, size in sizes.items()}


def _count(pods: list[Pod], revision: str, size: int | None, each: int, counted: Set[str]) -> Count:
    """`size` is None: the role is in the spec no more."""
    live = [pod for pod in pods if pod.live]
    new = [pod for pod in live if pod.revision == revision]
    old = [pod for pod in live if pod.revision != revision]
    return Count(
        size=size or 0,
        new_ready=sum(pod.ready for pod in new),
        new_waiting=sum(not pod.ready for pod in new),
        old_ready=sum(pod.ready for pod in old),
        old_waiting=sum(not pod.ready for pod in old),
        leaving=size is None,
        accelerators=each,
        old_accelerators=max((accelerators(pod, counted) for pod in old), default=0),
    )


def _name(slot: Slot) -> tuple[str, int]:
    return slot.born, slot.index


def _staying(role: str, pods: list[Pod], step: Step) -> Iterator[Slot]:
    """The pods of one role in the wanted revision that stay in this step. Those with the highest index go first."""
    live = sorted((pod for pod in pods if pod.live), key=lambda pod: (pod.home != role, pod.index))
    waiting = [pod for pod in live if not pod.ready]
    ready = [pod for pod in live if pod.ready]
    stay = waiting[: len(waiting) - step.end_new_waiting] + ready[: len(ready) - step.end_new_ready]
    for pod in stay:
        yield Slot(role, pod.index, pod.home if pod.home != role else "", pod.kv_slot, pod.returns_to)


def _new(role: str, taken: set[int], berths: Iterator[tuple[str, str]], step: Step) -> Iterator[Slot]:
    """The pods of one role that this step makes.

    Each takes the lowest index that no pod made for the role has, dead and ending ones included (`taken`): a pod on a
    node that is lost keeps its name for as long as the node is away, and must not keep its successor waiting.
    """
    free = (index for index in count() if index not in taken)
    for index, (kv_slot, node) in islice(zip(free, berths, strict=False), step.create):
        yield Slot(role, index, "", kv_slot, node)


def _kept(old: list[Pod], step: Step, current: str | None) -> set[str]:
    """Pods of other revisions that stay: those of the current one, which a canary is compared with, before others."""
    pods = sorted(old, key=lambda pod: (pod.revision != current, pod.name))
    names = [pod.name for pod in pods if pod.ready]
    waiting = [pod.name for pod in pods if not pod.ready]
    return {*names[: len(names) - step.end_old_ready], *waiting[: len(waiting) - step.end_old_waiting]}

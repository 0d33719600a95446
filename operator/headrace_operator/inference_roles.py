"""What InferenceRoles are told: everything known in, the new status of each out. Pure; called by reconcile.

The scale subresource shows `replicas` and `selector` to whoever scales. `replicas` are the engines that there are,
ready or not, as with a Deployment: an autoscaler that saw the ready ones alone would ask for more while they start.
"""

from collections.abc import Iterator

from pydantic import ValidationError

from headrace_operator import names
from headrace_operator.api import conditions as c
from headrace_operator.api.conditions import Reason, Truth
from headrace_operator.api.inferencerole import SCALING_LIMITED, InferenceRoleStatus
from headrace_operator.api.v1alpha1 import Condition, Role
from headrace_operator.gangs import whole
from headrace_operator.known import Known
from headrace_operator.state import Object


def new_role_statuses(known: Known) -> Iterator[tuple[Object, Object]]:
    """Each InferenceRole as it was read whose status has to be written, and that status."""
    if known.plan is None or known.subject is None:
        return
    bounded = {role.name: role for role in known.subject.spec.roles if role.scaling is not None}
    for (kind, _), obj in known.observed.children.items():
        role = bounded.get(obj["spec"]["role"]) if kind == names.ROLE_KIND else None
        if role is None or "deletionTimestamp" in obj["metadata"]:
            continue
        before = _previous(obj)
        status = _status(known, obj, role, before)
        if status != before:
            yield obj, status.model_dump(mode="json", by_alias=True, exclude_none=True)


def selector(known: Known, role: str) -> str:
    """With which each engine of a role is one pod: of several pods that make one, the first."""
    labels = names.selector(known.ref.name, "engine") | {names.ROLE: role}
    if known.wanted is not None and known.wanted.ranks.get(role, 1) > 1:
        labels[names.RANK] = "0"
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _previous(obj: Object) -> InferenceRoleStatus | None:
    """None: it has none, or one that cannot be read, and is written anew."""
    try:
        return InferenceRoleStatus.model_validate(obj["status"]) if "status" in obj else None
    except ValidationError:
        return None


def _status(known: Known, obj: Object, role: Role, before: InferenceRoleStatus | None) -> InferenceRoleStatus:
    live = [pod for pod in whole(known.observed.engines(role.name)) if pod.live]
    generation = obj["metadata"]["generation"]
    truth, reason, message = _limited(known, role, obj["spec"]["replicas"])
    judged = Condition(
        type=SCALING_LIMITED,
        status=truth,
        reason=reason,
        message=message,
        observed_generation=generation,
        last_transition_time=known.now,
    )
    return InferenceRoleStatus(
        observed_generation=generation,
        replicas=len(live),
        ready_replicas=sum(pod.ready for pod in live),
        selector=selector(known, role.name),
        conditions=c.set_condition(before.conditions if before is not None else (), judged),
    )


def _limited(known: Known, role: Role, asked: int) -> tuple[Truth, str, str]:
    """Whether another number than the one asked for is carried out."""
    assert known.plan is not None
    assert known.subject is not None
    assert role.scaling is not None
    size, whose = known.plan.sizes[role.name], f"InferenceDeployment {known.ref.name}"
    if known.suspended:
        return "True", Reason.SUSPENDED, f"spec.suspend of {whose} is true."
    if known.paused:
        return "True", Reason.PAUSED, f"spec.paused of {whose} is true."
    if size == asked:
        return "False", Reason.DESIRED_WITHIN_RANGE, "As many engines as are asked for are carried out."
    told = f"{asked} engines are asked for, {size} carried out"
    if size > asked:
        why = f"spec.roles[{role.name}].scaling.min of {whose} is {role.scaling.min}"
        return "True", Reason.TOO_FEW_REPLICAS, f"{told}: {why}."
    why = f"spec.roles[{role.name}].scaling.max of {whose} is {role.scaling.max}"
    if size < role.scaling.max:
        why = f"spec.scaling.maxAccelerators of {whose} is {known.subject.spec.scaling.max_accelerators}"
    return "True", Reason.TOO_MANY_REPLICAS, f"{told}: {why}."

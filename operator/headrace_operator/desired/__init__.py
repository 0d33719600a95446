"""The complete set of objects that a plan asks for, as plain dictionaries, in the order in which they are applied.
Pure.

Always whole objects, built from the spec and never from what a server returned: a field left out is a field given up.
Called by reconcile and by the `plan` command. The Ray token is not in the set, since its value must not be derivable.
"""

from headrace_operator import names
from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.desired import budgets, engine, gateway, head, history, inference_role, ranks, tiers
from headrace_operator.history import KIND
from headrace_operator.state import Object, Observed, Plan, Subject


def desired_objects(subject: Subject, plan: Plan) -> list[Object]:
    """Everything that shall exist after this step and that the current spec describes."""
    roles: dict[str, EffectiveRole] = {role.name: role for role in effective_roles(subject.spec)}
    recorded = [] if plan.record is None else [history.record(subject, plan.revision, plan.record)]
    return [
        *recorded,
        head.contract_map(subject),
        head.service(subject),
        *(engine.contract_map(subject, role, plan.revision) for role in roles.values()),
        *gateway.objects(subject, plan.share),
        *tiers.claims(subject, plan),
        *([head.pod(subject, plan)] if plan.head else []),
        *([ranks.service(subject)] if any(role.parallelism.pods > 1 for role in roles.values()) else []),
        *(pod for slot in plan.slots for pod in engine.pods_of(subject, roles[slot.home], plan.revision, slot)),
        *budgets.objects(subject, plan),
        *inference_role.objects(subject, plan),
    ]


def kept(plan: Plan, observed: Observed, records: frozenset[str]) -> frozenset[tuple[str, str]]:
    """Objects of earlier revisions that must not go yet, by kind and name: pods, the contracts of pods still there,
    the budgets of roles that left the spec while their engines still serve, and the `records` of the history."""
    engines = observed.engines()
    contracts = {
        name
        for (kind, name), obj in observed.children.items()
        if kind == "ConfigMap" and any(_labelled(obj, pod.home, pod.revision) for pod in engines)
    }
    # Ranks of an engine that is to serve on look each other up by it.
    meeting = {
        name
        for (kind, name), obj in observed.children.items()
        if kind == "Service"
        and obj["metadata"].get("labels", {}).get(names.COMPONENT) == "engine"
        and any(pod.gang for pod in engines)
    }
    leaving = {pod.role for pod in engines if pod.name in plan.keep} - plan.sizes.keys()
    protecting = {
        name
        for (kind, name), obj in observed.children.items()
        if kind == "PodDisruptionBudget" and obj["metadata"].get("labels", {}).get(names.ROLE) in leaving
    }
    return frozenset(
        {
            *(("Pod", name) for name in plan.keep),
            *(("ConfigMap", name) for name in contracts),
            *(("Service", name) for name in meeting),
            *(("PodDisruptionBudget", name) for name in protecting),
            *((KIND, name) for name in records),
        }
    )


def _labelled(obj: Object, role: str, revision: str) -> bool:
    labels = obj["metadata"].get("labels", {})
    return bool(role) and labels.get(names.ROLE) == role and labels.get(names.REVISION) == revision

"""PodDisruptionBudgets: how many engines of a role, and gateways, may be evicted at a time. Pure.

For everything that asks before it takes a pod: `kubectl drain`, autoscalers of nodes, deschedulers. What the operator
itself ends is bounded by `plan/rollout.py`, which asks nobody.
"""

from headrace_operator import names
from headrace_operator.api.effective import effective_roles
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Plan, Subject


def objects(subject: Subject, plan: Plan) -> list[Object]:
    """One for each role of two engines or more, one for two gateways or more. Of one pod there is nothing to bound: a
    budget that never lets it go would hold up the node for good."""
    ranks: dict[str, int] = {role.name: role.parallelism.pods for role in effective_roles(subject.spec)}
    return [
        *(
            _of_role(subject, role, size * ranks[role])
            for role, size in plan.sizes.items()
            if _fewest(subject, size) > 0
        ),
        *([_of_gateway(subject)] if subject.spec.gateway.replicas > 1 else []),
    ]


def _fewest(subject: Subject, size: int) -> int:
    """Ready engines, or pods, that an eviction leaves to a role of so many. One at a time may always go, since it
    answers until its replacement does (`plan/leaving.py`): a rollout which allows none to be unavailable blocks no
    drain of a node.
    """
    return size - max(1, subject.spec.rollout.max_unavailable)


def _of_role(subject: Subject, role: str, pods: int) -> Object:
    """Each pod that goes may take an engine with it, whose other ranks are not ready then and may go too.

    By the role that a pod's label says, so that an engine which changes its role changes its budget with it.

    `minAvailable` as a number: all else is a share of a size that Kubernetes cannot ask a deployment of ours for.
    """
    chosen = {names.ROLE: role}
    limit = {"minAvailable": _fewest(subject, pods)}
    return _budget(subject, names.budget(subject.name, role), "engine", chosen, limit)


def _of_gateway(subject: Subject) -> Object:
    return _budget(subject, names.gateway(subject.name), "gateway", {}, {"maxUnavailable": 1})


def _budget(subject: Subject, name: str, component: str, chosen: dict[str, str], limit: dict[str, int]) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(subject.ref, name, component, chosen),
        "spec": {
            **limit,
            "selector": {"matchLabels": {**names.selector(subject.name, component), **chosen}},
            # A pod that answers nobody keeps no node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }

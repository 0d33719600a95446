"""Sizes that somebody else decides: what the InferenceRoles of a deployment ask for, within the spec's bounds. Pure.

Called by `sizing.py` for `scaling.mode: External`. A role whose InferenceRole is not there, because the mode is new or
somebody deleted it, keeps the size that it has, and with that one is made (`desired/inference_role.py`).
"""

from collections.abc import Iterable

from headrace_operator import names
from headrace_operator.api.conditions import Reason
from headrace_operator.api.effective import effective_roles
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, InferenceDeploymentStatus
from headrace_operator.plan.sizes import bounds_of, carried_out, within
from headrace_operator.state import Object, Sized


def external_sizes(
    spec: InferenceDeploymentSpec, previous: InferenceDeploymentStatus, children: Iterable[Object]
) -> Sized:
    """What is carried out, at once. `children` are the deployment's own objects, of any kind."""
    sizes = within(spec, _there(previous) | asked_for(children))
    least: dict[str, int] = {role.name: min(sizes[role.name], bounds_of(role)[0]) for role in effective_roles(spec)}
    return Sized(sizes, sizes, verdict=Reason.EXTERNAL, least=least)


def asked_for(children: Iterable[Object]) -> dict[str, int]:
    """Engines that are asked for, by role."""
    return {
        obj["spec"]["role"]: obj["spec"]["replicas"]
        for obj in children
        if obj["kind"] == names.ROLE_KIND and "deletionTimestamp" not in obj["metadata"]
    }


def _there(previous: InferenceDeploymentStatus) -> dict[str, int]:
    """The sizes that there are; of a deployment that is suspended, those that it had."""
    said = previous.scaling.sizes if previous.scaling is not None else ()
    return {one.name: one.size for one in said} | {role: size for role, size in carried_out(previous).items() if size}

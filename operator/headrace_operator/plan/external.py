"""Sizes that somebody else decides: what the InferenceRoles of a deployment ask for. Pure.

Called for `scaling.mode: External`; `sizes.py` holds it within the spec's bounds. A role whose InferenceRole is not
there, because the mode is new or somebody deleted it, is not named, and keeps the size that it has; with that one is
made (`desired/inference_role.py`).
"""

from collections.abc import Iterable

from headrace_operator import names
from headrace_operator.state import Object


def asked_for(children: Iterable[Object]) -> dict[str, int]:
    """Engines that are asked for, by role. `children` are the deployment's own objects, of any kind."""
    return {
        obj["spec"]["role"]: obj["spec"]["replicas"]
        for obj in children
        if obj["kind"] == names.ROLE_KIND and "deletionTimestamp" not in obj["metadata"]
    }

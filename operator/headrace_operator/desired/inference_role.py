"""The InferenceRoles of a deployment: one for each role whose size somebody else decides. Pure.

Its `replicas` are what it is made with, once: the size that the role has at that moment, so that no engine ends because
its size changes hands. Whoever scales has that field from then on, and `apply.py` writes nothing but the metadata.
"""

from headrace_operator import names
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Plan, Subject


def objects(subject: Subject, plan: Plan) -> list[Object]:
    """None where `scaling.mode` is not External. A suspended deployment's are made with their least, since all of its
    sizes are 0."""
    spec = subject.spec
    if spec.scaling.mode != "External":
        return []
    return [
        _role(subject, role.name, max(role.scaling.min, plan.sizes[role.name]))
        for role in spec.roles
        if role.scaling is not None
    ]


def _role(subject: Subject, role: str, replicas: int) -> Object:
    name = names.inference_role(subject.name, role)
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ROLE_KIND,
        "metadata": metadata(subject.ref, name, "role", {names.ROLE: role}),
        "spec": {"deploymentName": subject.name, "role": role, "replicas": replicas},
    }

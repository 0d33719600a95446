"""The metadata that every child carries: its name, whose it is, and labels that selectors rest on. Pure."""

from collections.abc import Mapping

from headrace_operator import names
from headrace_operator.state import Object, Ref


def owner(ref: Ref) -> Object:
    """The reference by which the child goes when its InferenceDeployment does."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": ref.name,
        "uid": ref.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(ref: Ref, name: str, component: str, labels: Mapping[str, str] | None = None) -> Object:
    """Metadata of a child of `ref`."""
    return {
        "name": name,
        "namespace": ref.namespace,
        "labels": {**names.selector(ref.name, component), names.MANAGED_BY: names.OPERATOR, **(labels or {})},
        "ownerReferences": [owner(ref)],
    }

"""What must hold of an engine over several pods: checks as those of `checks.py`, listed in `rules.py`. Pure.

Refused by name is what nobody has seen work there: KV tiers, adapters and data-parallel copies.
"""

from collections.abc import Iterator

from headrace_operator.api.checks import Problems
from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


def _spread(spec: InferenceDeploymentSpec) -> Iterator[tuple[str, EffectiveRole]]:
    """Roles whose engines have several pods, with the field that says so."""
    for index, role in enumerate(effective_roles(spec)):
        own = role.role.parallelism is not None and "pods" in role.role.parallelism.model_fields_set
        if role.parallelism.pods > 1:
            yield f"spec.roles[{index}].parallelism.pods" if own else "spec.parallelism.pods", role


def equal_parts(spec: InferenceDeploymentSpec) -> Problems:
    for path, role in _spread(spec):
        sizes = role.parallelism
        if sizes.devices % sizes.pods:
            yield Problem(
                path,
                f"is {sizes.pods}, and the {sizes.devices} parts of an engine of the role {role.name} (tensor "
                f"{sizes.tensor} x pipeline {sizes.pipeline} x data {sizes.data} x context {sizes.context}) cannot be "
                "dealt out equally: change one of the two",
            )


def whole_engines_only(spec: InferenceDeploymentSpec) -> Problems:
    for path, role in _spread(spec):
        uses = {
            "parallelism.data: set it to 1, and have more engines": role.parallelism.data > 1,
            "spec.kvCache.host and disk: remove them": spec.kv_cache.host is not None,
            "spec.engine.lora: remove it": spec.engine.lora is not None,
        }
        for what, used in uses.items():
            if used:
                yield Problem(path, f"several pods of one engine do not go with {what}")

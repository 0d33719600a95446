"""The cross-field rules: each Python check of `checks.py` beside its CEL twin and the place in the schema it stands at.

The API server refuses an object that breaks a CEL rule, with no webhook in the way. The Python checks say it again,
with numbers, for what got past it: clusters without the rules, `plan FILE`, and what CEL cannot express. One table of
cases tests both. Pure; `parse.py` runs the checks, `crd.py` places the CEL.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace_operator.api import checks
from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec


@dataclass(frozen=True)
class Rule:
    """One rule, said twice."""

    check: Callable[[InferenceDeploymentSpec], Iterable[Problem]]
    at: tuple[str, ...]
    """Places of the schema, as `spec.roles[].engine`, where `self` of the CEL is."""
    message: str
    """What the API server answers after the path of the place."""
    cel: str
    field: str = ""
    """The field that the answer names, from the place down, where it is not the place itself: `.roles`."""


def check(spec: InferenceDeploymentSpec) -> list[Problem]:
    """Every broken rule of the spec, each problem once, in the order of their fields."""
    functions = [rule.check for rule in RULES] + list(PYTHON_ONLY)
    return sorted({problem for function in functions for problem in function(spec)})


def _over(role: str, where: str, field: str) -> str:
    """CEL: a field of a role, under its override."""
    return f"(has({role}.{where}) && has({role}.{where}.{field}) ? {role}.{where}.{field} : self.{where}.{field})"


def _each_role(holds: str) -> str:
    return f"!has(self.roles) || self.roles.all(r, {holds})"


def _both_roles(holds: str) -> str:
    """CEL over the two roles of a split deployment, `self.roles[0]` and `self.roles[1]`."""
    return f"!has(self.roles) || self.roles.size() != 2 || ({holds})"


def _exactly_one(*fields: str) -> str:
    return f"[{', '.join(f'has(self.{field})' for field in fields)}].exists_one(given, given)"


def _count(device: str, product: str) -> str:
    return f"(!has({device}.count) || {device}.count == {product})"


def _shared(limits: str) -> str:
    fields = ("maxConcurrent", "requestsPerMinute", "tokensPerMinute")
    return f"({' && '.join(f'(!has({limits}.{x}) || {limits}.{x} >= self.replicas)' for x in fields)})"


_SOURCE = (
    "(self.startsWith('node://') ? self.matches('^node://(/[^/]+)+$') : "
    "self.startsWith('pvc://') ? self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*$') : true) && "
    "(self.startsWith('node://') || self.startsWith('pvc://') ? !self.matches('/[.]{1,2}(/|$)') : true)"
)
_SIZES = ("tensor", "pipeline", "data", "context")
_PRODUCT = " * ".join(_over("r", "parallelism", size) for size in _SIZES)
_DEVICE_COUNT = (
    f"has(self.roles) ? self.roles.all(r, has(r.engine) && has(r.engine.device) ? "
    f"{_count('r.engine.device', _PRODUCT)} : {_count('self.engine.device', _PRODUCT)}) : "
    + _count("self.engine.device", " * ".join(f"self.parallelism.{size}" for size in _SIZES))
)
_RESOURCE = (
    "(has(r.engine) && has(r.engine.device) && has(r.engine.device.resource) ? "
    "r.engine.device.resource : self.engine.device.resource)"
)
_TENSORS = tuple(_over(f"self.roles[{index}]", "parallelism", "tensor") for index in (0, 1))
_DTYPES = tuple(_over(f"self.roles[{index}]", "engine", "dtype") for index in (0, 1))
_ENGINES = ("spec.engine", "spec.roles[].engine")

RULES: tuple[Rule, ...] = (
    Rule(
        checks.source,
        ("spec.model.source",),
        "must be node:///absolute/path or pvc://claim/path, without . or .. as a folder",
        _SOURCE,
    ),
    Rule(checks.manifest, ("spec.model.integrity.manifest",), "set configMapRef", _exactly_one("configMapRef")),
    Rule(
        checks.role_names,
        ("spec",),
        "give one role named serve, or one named prefill and one named decode",
        "!has(self.roles) || (self.roles.size() == 1 ? self.roles[0].name == 'serve' : "
        "self.roles.all(r, r.name in ['prefill', 'decode']))",
        ".roles",
    ),
    Rule(
        checks.replicas_or_scaling,
        ("spec.roles[]",),
        "give replicas or scaling, not both",
        "!(has(self.replicas) && has(self.scaling))",
    ),
    Rule(checks.scaling_bounds, ("spec.roles[].scaling",), "min may not be above max", "self.min <= self.max"),
    Rule(
        checks.scaling_mode,
        ("spec",),
        "SLO needs spec.slo; roles[].scaling needs SLO or External",
        "(self.scaling.mode != 'SLO' || has(self.slo)) && "
        "(self.scaling.mode != 'Fixed' || !has(self.roles) || self.roles.all(r, !has(r.scaling)))",
        ".scaling.mode",
    ),
    Rule(checks.slo_target, ("spec.slo",), "set ttft, itl or both", "has(self.ttft) || has(self.itl)"),
    Rule(
        checks.cpu_has_no_count,
        tuple(f"{engine}.device" for engine in _ENGINES),
        "count is for accelerators: on cpu remove it",
        "!(has(self.resource) && self.resource == 'cpu' && has(self.count))",
    ),
    Rule(
        checks.device_override,
        ("spec.roles[].engine.device",),
        "replaces spec.engine.device whole: name the resource as well",
        "has(self.resource)",
    ),
    Rule(
        checks.count_is_product,
        ("spec",),
        "must be tensor x pipeline x data x context of the role's parallelism: change or remove it",
        _DEVICE_COUNT,
        ".engine.device.count",
    ),
    Rule(
        checks.accelerator_in_resources,
        ("spec",),
        "resources may not name the accelerator: set engine.device.count",
        _each_role(
            f"{_RESOURCE} == 'cpu' || !has(r.resources) || "
            f"!(has(r.resources.requests) && {_RESOURCE} in r.resources.requests) && "
            f"!(has(r.resources.limits) && {_RESOURCE} in r.resources.limits)"
        ),
        ".roles",
    ),
    Rule(
        checks.split_dtype,
        ("spec",),
        "engine.dtype must be the same for prefill and decode",
        _both_roles(f"{_DTYPES[0]} == {_DTYPES[1]}"),
        ".roles",
    ),
    Rule(
        checks.split_tensor,
        ("spec",),
        "parallelism.tensor of prefill and decode: one must be a multiple of the other",
        _both_roles(f"{_TENSORS[0]} % {_TENSORS[1]} == 0 || {_TENSORS[1]} % {_TENSORS[0]} == 0"),
        ".roles",
    ),
    Rule(
        checks.split_pipeline,
        ("spec",),
        "parallelism.pipeline must be 1 for prefill and decode",
        _each_role(f"r.name == 'serve' || {_over('r', 'parallelism', 'pipeline')} == 1"),
        ".roles",
    ),
    Rule(
        checks.split_context,
        ("spec",),
        "parallelism.context must be 1 for decode",
        _each_role(f"r.name != 'decode' || {_over('r', 'parallelism', 'context')} == 1"),
        ".roles",
    ),
    Rule(
        checks.draft_model,
        tuple(f"{engine}.speculative" for engine in _ENGINES),
        "model is for the methods Eagle3 and DraftModel, which need it",
        "(self.method in ['Eagle3', 'DraftModel']) == has(self.model)",
    ),
    Rule(
        checks.env,
        tuple(f"{engine}.env[]" for engine in _ENGINES),
        "give value or valueFrom, not both",
        "!(has(self.value) && has(self.valueFrom))",
    ),
    Rule(
        checks.tolerations,
        ("spec.roles[].tolerations[]",),
        "without a key the operator must be Exists; with Exists there is no value",
        "self.operator == 'Exists' ? !has(self.value) : has(self.key)",
    ),
    Rule(
        checks.volumes,
        ("spec.ray.gcs.volume", "spec.kvCache.disk.volume"),
        "give exactly one of hostPath, claimTemplate, emptyDir",
        _exactly_one("hostPath", "claimTemplate", "emptyDir"),
    ),
    Rule(
        checks.keys,
        ("spec.gateway",),
        "keys and limits.perKey need apiKeysSecretRef",
        "has(self.apiKeysSecretRef) || (!has(self.keys) || self.keys.size() == 0) && !has(self.limits.perKey)",
    ),
    Rule(
        checks.shares,
        ("spec.gateway",),
        "the gateway's pods share each limit: none may be less than replicas",
        f"{_shared('self.limits')} && (!has(self.limits.perKey) || {_shared('self.limits.perKey')}) && "
        f"(!has(self.keys) || self.keys.all(k, !has(k.limits) || {_shared('k.limits')}))",
    ),
    Rule(
        checks.expose,
        ("spec.gateway.expose",),
        "give exactly one of httpRoute, ingress, loadBalancer",
        _exactly_one("httpRoute", "ingress", "loadBalancer"),
    ),
    Rule(
        checks.gcs,
        ("spec.ray.gcs",),
        "redis goes with backend Redis, and volume with backend RocksDB",
        "(self.backend == 'Redis') == has(self.redis) && (!has(self.volume) || self.backend == 'RocksDB')",
    ),
    Rule(
        checks.rollout,
        ("spec.rollout",),
        "maxSurge and maxUnavailable are both 0, so nothing could ever change: raise one",
        "self.maxSurge > 0 || self.maxUnavailable > 0",
    ),
    Rule(
        checks.canary_steps,
        ("spec.rollout.canary",),
        "steps must rise and end with 100",
        "!has(self.steps) || (self.steps[self.steps.size() - 1] == 100 && "
        "self.steps.isSorted() && self.steps.all(one, self.steps.exists_one(other, other == one)))",
    ),
    Rule(
        checks.backoff,
        ("spec.recovery.backoff",),
        "base may not be longer than max",
        "duration(self.base) <= duration(self.max)",
    ),
)

PYTHON_ONLY = (
    checks.split_options,
    checks.role_change,
    checks.extra_args,
    checks.quantization,
    checks.templates,
    checks.env_names,
)
"""What CEL cannot see: free-form objects, and tables of the engine that change with its version. That a name is given
once is the schema's own rule for a list with keys."""

"""The cross-field rules: each Python check of `checks.py` beside its CEL twin and the place in the schema it stands at.

The API server refuses an object that breaks a CEL rule, with no webhook in the way. The Python checks say it again,
with numbers, for what got past it: clusters without the rules, `plan FILE`, and what CEL cannot express. One table of
cases tests both. Pure; `parse.py` runs the checks, `crd.py` places the CEL.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace_operator.api import checks, gangs, scaling, sources, tiers
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


def _at_least(field: str, least: str) -> str:
    """CEL: a quantity is no less than another, an expression. What is no quantity is refused where it stands."""
    value = f"string({field})"
    return f"(!isQuantity({value}) || quantity({value}).compareTo({least}) >= 0)"


def _quantity(amount: str) -> str:
    return f"quantity('{amount}')"


def _count(device: str, product: str) -> str:
    return f"(!has({device}.count) || {device}.count == {product})"


def _shared(limits: str) -> str:
    fields = ("maxConcurrent", "requestsPerMinute", "tokensPerMinute")
    return f"({' && '.join(f'(!has({limits}.{x}) || {limits}.{x} >= self.replicas)' for x in fields)})"


_SIZES = ("tensor", "pipeline", "data", "context")
_PRODUCT = " * ".join(_over("r", "parallelism", size) for size in _SIZES)
_OWN_PRODUCT = " * ".join(f"self.parallelism.{size}" for size in _SIZES)
_DEVICE_COUNT = (
    f"has(self.roles) ? self.roles.all(r, has(r.engine) && has(r.engine.device) ? "
    f"{_count('r.engine.device', _PRODUCT)} : {_count('self.engine.device', _PRODUCT)}) : "
    + _count("self.engine.device", _OWN_PRODUCT)
)
_PODS = _over("r", "parallelism", "pods")
_EQUAL_PARTS = (
    f"has(self.roles) ? self.roles.all(r, ({_PRODUCT}) % {_PODS} == 0) : ({_OWN_PRODUCT}) % self.parallelism.pods == 0"
)
_ALONE = "!has(self.kvCache.host) && !has(self.engine.lora)"
_WHOLE_ENGINES = (
    f"has(self.roles) ? self.roles.all(r, {_PODS} == 1 || {_over('r', 'parallelism', 'data')} == 1 && {_ALONE}) : "
    f"self.parallelism.pods == 1 || self.parallelism.data == 1 && {_ALONE}"
)
_RESOURCE = (
    "(has(r.engine) && has(r.engine.device) && has(r.engine.device.resource) ? "
    "r.engine.device.resource : self.engine.device.resource)"
)
_LEAST = "(has(r.scaling) ? r.scaling.min : (has(r.replicas) ? r.replicas : 1))"
_SPARE = "(self.rollout.maxUnavailable == 0 ? 1 : 0)"
_ROLE_TAKES = f"({_RESOURCE} == 'cpu' || has(r.replicas) && r.replicas == 0 ? 0 : ({_LEAST} + {_SPARE}) * {_PRODUCT})"
_CAP_HOLDS = (
    "!has(self.scaling.maxAccelerators) || (has(self.roles) ? "
    f"self.roles.exists(r, {_RESOURCE} != 'cpu') && "
    f"self.roles.map(r, {_ROLE_TAKES}).sum() <= self.scaling.maxAccelerators : "
    "self.engine.device.resource != 'cpu' && "
    f"(1 + {_SPARE}) * {_OWN_PRODUCT} <= self.scaling.maxAccelerators)"
)
_TENSORS = tuple(_over(f"self.roles[{index}]", "parallelism", "tensor") for index in (0, 1))
_DTYPES = tuple(_over(f"self.roles[{index}]", "engine", "dtype") for index in (0, 1))
_ENGINES = ("spec.engine", "spec.roles[].engine")
_DISK_SIZE = "quantity(string(self.size))"
_DISK_FITS = (
    "!isQuantity(string(self.size)) || ("
    f"(!has(self.volume.claimTemplate) || {_at_least('self.volume.claimTemplate.size', _DISK_SIZE)}) && "
    "(!has(self.volume.emptyDir) || !has(self.volume.emptyDir.sizeLimit) || "
    + _at_least("self.volume.emptyDir.sizeLimit", f"{_DISK_SIZE}.add(quantity('{tiers.HEADROOM}'))")
    + "))"
)

RULES: tuple[Rule, ...] = (
    Rule(
        sources.source,
        ("spec.model.source", "spec.model.adapters[].source", "spec.engine.lora.folder"),
        "must be node:///absolute/path or pvc://claim/path, without . or .. as a folder, or hf://owner/name@commit, "
        "oci://registry/repository:tag, s3://bucket/prefix or https://host/path",
        sources.CEL_FORMS,
    ),
    Rule(
        sources.credentials,
        ("spec.model",),
        "nothing is fetched from a source that is mounted",
        sources.CEL_CREDENTIALS,
        ".credentialsSecretRef",
    ),
    Rule(
        sources.trust,
        ("spec.model",),
        "no record is kept of a model that is mounted: set Never",
        sources.CEL_TRUST,
        ".integrity.trustUnchanged",
    ),
    Rule(
        sources.off,
        ("spec.model.integrity",),
        "signature and rescan need the policy Enforce or Warn",
        sources.CEL_OFF,
        ".policy",
    ),
    Rule(checks.manifest, ("spec.model.integrity.manifest",), "set configMapRef", _exactly_one("configMapRef")),
    Rule(
        checks.loader,
        ("spec",),
        "FastSafetensors reads into a GPU's memory: on cpu use Streamer or Auto",
        f"self.model.loader != 'FastSafetensors' || (has(self.roles) ? self.roles.all(r, {_RESOURCE} != 'cpu') : "
        "self.engine.device.resource != 'cpu')",
        ".model.loader",
    ),
    Rule(
        checks.lora_of_role,
        ("spec.roles[].engine",),
        "every engine serves every adapter: set spec.engine.lora alone",
        "!has(self.lora)",
        ".lora",
    ),
    Rule(
        checks.adapters_have_room,
        ("spec",),
        "adapters need spec.engine.lora, and there may not be more than its maxAdapters",
        "!has(self.model.adapters) || self.model.adapters.size() == 0 || "
        "has(self.engine.lora) && self.model.adapters.size() <= self.engine.lora.maxAdapters",
        ".model.adapters",
    ),
    Rule(
        checks.adapter_names,
        ("spec.model",),
        "an adapter may not have the model's own name",
        "!has(self.servedName) || !has(self.adapters) || self.adapters.all(a, a.name != self.servedName)",
        ".adapters",
    ),
    Rule(
        checks.adapters_in_reach,
        ("spec",),
        "adapters from node:// and pvc:// must be below spec.engine.lora.folder; where that is set, and the model is "
        "mounted, others have no cache to be fetched into",
        "!has(self.model.adapters) || self.model.adapters.all(a, "
        f"{sources.cel_fetched('a.source')} ? "
        f"({sources.cel_fetched('self.model.source')} || !has(self.engine.lora) || !has(self.engine.lora.folder)) : "
        "(has(self.engine.lora) && has(self.engine.lora.folder) && "
        "a.source.startsWith(self.engine.lora.folder + '/')))",
        ".model.adapters",
    ),
    Rule(
        checks.role_names,
        ("spec",),
        "give one role named serve, or one named prefill and one named decode",
        "!has(self.roles) || (self.roles.size() == 1 ? self.roles[0].name == 'serve' : "
        "self.roles.all(r, r.name in ['prefill', 'decode']))",
        ".roles",
    ),
    Rule(
        scaling.replicas_or_scaling,
        ("spec.roles[]",),
        "give replicas or scaling, not both",
        "!(has(self.replicas) && has(self.scaling))",
    ),
    Rule(scaling.bounds, ("spec.roles[].scaling",), "min may not be above max", "self.min <= self.max"),
    Rule(
        scaling.mode,
        ("spec",),
        "SLO needs spec.slo; roles[].scaling needs SLO or External",
        "(self.scaling.mode != 'SLO' || has(self.slo)) && "
        "(self.scaling.mode != 'Fixed' || !has(self.roles) || self.roles.all(r, !has(r.scaling)))",
        ".scaling.mode",
    ),
    Rule(
        scaling.inert,
        ("spec",),
        "slo, dryRun and policy need the mode SLO; toZero does not go with External",
        "(self.scaling.mode == 'SLO' || !has(self.slo) && (!has(self.scaling.dryRun) || !self.scaling.dryRun) && "
        "(!has(self.scaling.policy) || self.scaling.policy == 'builtin')) && "
        "(self.scaling.mode != 'External' || !has(self.scaling.toZero))",
        ".scaling.mode",
    ),
    Rule(
        scaling.to_zero,
        ("spec.scaling.toZero",),
        f"after is {scaling.LEAST_QUIET_SECONDS}s at least",
        f"duration(self.after) >= duration('{scaling.LEAST_QUIET_SECONDS}s')",
        ".after",
    ),
    Rule(
        scaling.moves_something,
        ("spec",),
        "SLO and External move roles that have bounds: give one scaling",
        "self.scaling.mode == 'Fixed' || has(self.roles) && self.roles.exists(r, has(r.scaling))",
        ".scaling.mode",
    ),
    Rule(
        scaling.moved_by_a_target,
        ("spec",),
        "slo.ttft moves prefill, and slo.itl decode: set it, or give replicas in place of scaling",
        "self.scaling.mode != 'SLO' || !has(self.slo) || "
        + _each_role(
            "!has(r.scaling) || r.name == 'serve' || (r.name == 'prefill' ? has(self.slo.ttft) : has(self.slo.itl))"
        ),
        ".roles",
    ),
    Rule(
        scaling.somebody_answers,
        ("spec",),
        "with SLO scaling.min of serve and decode is 1 or more",
        "self.scaling.mode != 'SLO' || " + _each_role("!has(r.scaling) || r.name == 'prefill' || r.scaling.min > 0"),
        ".roles",
    ),
    Rule(
        scaling.cap,
        ("spec",),
        "maxAccelerators must hold the least of all roles and, with rollout.maxUnavailable 0, one more engine of each; "
        "on cpu it counts nothing",
        _CAP_HOLDS,
        ".scaling.maxAccelerators",
    ),
    Rule(
        checks.rollback_has_a_cause,
        ("spec.rollout",),
        "nothing makes a rollout fail: set progressDeadline or canary as well",
        "!has(self.autoRollback) || !self.autoRollback || has(self.progressDeadline) || has(self.canary)",
        ".autoRollback",
    ),
    Rule(scaling.slo_target, ("spec.slo",), "set ttft, itl or both", "has(self.ttft) || has(self.itl)"),
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
        gangs.equal_parts,
        ("spec",),
        "must divide tensor x pipeline x data x context of the role's parallelism",
        _EQUAL_PARTS,
        ".parallelism.pods",
    ),
    Rule(
        gangs.whole_engines_only,
        ("spec",),
        "several pods of one engine do not go with data-parallel copies, KV tiers or adapters",
        _WHOLE_ENGINES,
        ".parallelism.pods",
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
        tiers.disk_needs_host,
        ("spec.kvCache",),
        "every block passes through host memory: set host.size",
        "!has(self.disk) || has(self.host)",
        ".disk",
    ),
    Rule(
        tiers.tier_sizes,
        ("spec.kvCache",),
        f"host.size is {tiers.LEAST_HOST} at least, disk.size {tiers.LEAST_DISK}",
        f"(!has(self.host) || {_at_least('self.host.size', _quantity(tiers.LEAST_HOST))}) && "
        f"(!has(self.disk) || {_at_least('self.disk.size', _quantity(tiers.LEAST_DISK))})",
    ),
    Rule(
        tiers.disk_fits_volume,
        ("spec.kvCache.disk",),
        f"the volume must hold size; a sizeLimit needs {tiers.HEADROOM} more",
        _DISK_FITS,
        ".volume",
    ),
    Rule(
        tiers.disk_needs_digest,
        ("spec",),
        "blocks are found by the digest of the weights: set model.integrity.policy to Enforce or Warn",
        "!has(self.kvCache.disk) || self.model.integrity.policy != 'Off'",
        ".kvCache.disk",
    ),
    Rule(
        tiers.sharing_needs_keys,
        ("spec",),
        "Key needs gateway.apiKeysSecretRef",
        "self.kvCache.sharing != 'Key' || has(self.gateway.apiKeysSecretRef)",
        ".kvCache.sharing",
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
    scaling.countable,
)
"""What CEL cannot see: free-form objects, and tables of the engine that change with its version. That a name is given
once is the schema's own rule for a list with keys."""

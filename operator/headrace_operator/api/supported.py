"""Which fields this version acts on. The rest is refused by name: nothing that a user wrote is silently ignored.

A field that gains its meaning moves from `NOT_YET` to `ACTED_ON` in the commit that gives it one; a test walks every
field of the spec and finds each in exactly one of the two. Pure; called by `parse.py`. These refusals are not CEL: an
older CRD may serve a newer operator.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from pydantic import BaseModel

from headrace_operator.api.problems import Problem
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

ANY: Final = None

_ENGINE_ACTED_ON: Final[dict[str, tuple[str, ...] | None]] = {
    "engine.image": ANY,
    "engine.device.resource": ANY,
    "engine.device.count": ANY,
    "engine.dtype": ANY,
    "engine.maxModelLen": ANY,
    "engine.quantization": ANY,
    "engine.extraArgs": ANY,
    "engine.lora.maxAdapters": ANY,
    "engine.lora.maxRank": ANY,
    "engine.lora.folder": ANY,
    "engine.env[].name": ANY,
    "engine.env[].value": ANY,
    "engine.env[].valueFrom": ANY,
    "parallelism.tensor": ANY,
    "parallelism.pipeline": ANY,
    "parallelism.data": ANY,
    "parallelism.expert": ANY,
    "parallelism.context": ANY,
    "parallelism.pods": ANY,
}
_ENGINE_NOT_YET: Final = ("engine.speculative", "engine.weightsOffload")
_LIMITS: Final = ("maxConcurrent", "requestsPerMinute", "tokensPerMinute")

ACTED_ON: Final[dict[str, tuple[str, ...] | None]] = {
    "model.source": ANY,
    "model.credentialsSecretRef.name": ANY,
    "model.servedName": ANY,
    "model.loader": ANY,
    "model.adapters[].name": ANY,
    "model.adapters[].source": ANY,
    "model.integrity.policy": ANY,
    "model.integrity.manifest.configMapRef.name": ANY,
    "model.integrity.signature.publicKeySecretRef.name": ANY,
    "model.integrity.allowPickle": ANY,
    "model.integrity.trustUnchanged": ANY,
    "model.integrity.rescan": ANY,
    **_ENGINE_ACTED_ON,
    "executor": ("Auto", "Multiprocessing"),
    "roles[].name": ANY,
    "roles[].replicas": ANY,
    "roles[].scaling.min": ANY,
    "roles[].scaling.max": ANY,
    **{f"roles[].{path}": values for path, values in _ENGINE_ACTED_ON.items()},
    "roles[].resources.requests": ANY,
    "roles[].resources.limits": ANY,
    "roles[].nodeSelector": ANY,
    "roles[].tolerations[].key": ANY,
    "roles[].tolerations[].operator": ANY,
    "roles[].tolerations[].value": ANY,
    "roles[].tolerations[].effect": ANY,
    "roles[].tolerations[].tolerationSeconds": ANY,
    "roles[].podTemplate": ANY,
    "disaggregation.connector": ANY,
    "disaggregation.minPromptTokens": ANY,
    "disaggregation.onTransferFailure": ANY,
    "disaggregation.roleChange.enabled": ANY,
    "disaggregation.roleChange.minPrefill": ANY,
    "disaggregation.roleChange.minDecode": ANY,
    "disaggregation.roleChange.cooldown": ANY,
    "kvCache.dtype": ANY,
    "kvCache.device.size": ANY,
    "kvCache.host.size": ANY,
    "kvCache.disk.size": ANY,
    "kvCache.disk.volume.hostPath": ANY,
    "kvCache.disk.volume.claimTemplate.size": ANY,
    "kvCache.disk.volume.claimTemplate.storageClassName": ANY,
    "kvCache.disk.volume.emptyDir.sizeLimit": ANY,
    "kvCache.disk.verify": ANY,
    "kvCache.disk.eviction": ANY,
    "kvCache.disk.onModelChange": ANY,
    "kvCache.disk.encryption.keySecretRef.name": ANY,
    "kvCache.disk.returnToNode.enabled": ANY,
    "kvCache.disk.returnToNode.timeout": ANY,
    "kvCache.sharing": ANY,
    **{f"slo.{latency}.{field}": ANY for latency in ("ttft", "itl") for field in ("target", "percentile")},
    "scaling.mode": ANY,
    "scaling.maxAccelerators": ANY,
    "scaling.toZero.after": ANY,
    "scaling.toZero.holdRequests": ANY,
    "scaling.toZero.holdTimeout": ANY,
    "scaling.dryRun": ANY,
    "scaling.policy": ANY,
    "gateway.replicas": ANY,
    "gateway.resources.requests": ANY,
    "gateway.resources.limits": ANY,
    "gateway.podTemplate": ANY,
    "gateway.apiKeysSecretRef.name": ANY,
    **{f"gateway.limits.{path}": ANY for path in _LIMITS},
    **{f"gateway.limits.perKey.{path}": ANY for path in _LIMITS},
    "gateway.limits.queue.maxLength": ANY,
    "gateway.limits.queue.maxWait": ANY,
    "gateway.keys[].name": ANY,
    "gateway.keys[].priority": ANY,
    **{f"gateway.keys[].limits.{path}": ANY for path in _LIMITS},
    "gateway.drainTimeout": ANY,
    "gateway.resume.enabled": ANY,
    "gateway.resume.maxAttempts": ANY,
    "gateway.routing.policy": ANY,
    "ray.headResources.requests": ANY,
    "ray.headResources.limits": ANY,
    "ray.headPodTemplate": ANY,
    "ray.gcs.backend": ("RocksDB", "Memory"),
    "ray.gcs.volume.hostPath": ANY,
    "ray.gcs.volume.emptyDir.sizeLimit": ANY,
    "rollout.strategy": ANY,
    "rollout.maxSurge": ANY,
    "rollout.maxUnavailable": ANY,
    "rollout.canary.steps": ANY,
    "rollout.canary.interval": ANY,
    "rollout.autoRollback": ANY,
    "rollout.progressDeadline": ANY,
    "rollout.historyLimit": ANY,
    "rollout.restartedAt": ANY,
    "drain.timeout": ANY,
    "recovery.backoff.base": ANY,
    "recovery.backoff.max": ANY,
    "recovery.maxRestarts": ANY,
    "networkPolicy.mode": ("Off",),
    "paused": ANY,
    "suspend": ANY,
}
"""Fields that this version acts on, and the values it knows where they are not all: schemes end with `://`."""

NOT_YET: Final[tuple[str, ...]] = (
    *_ENGINE_NOT_YET,
    *(f"roles[].{path}" for path in _ENGINE_NOT_YET),
    "gateway.tls",
    "gateway.expose",
    "ray.gcs.redis",
    "ray.gcs.volume.claimTemplate",
    "observability",
)
"""Fields, with all below them, that this version refuses. Defaults are no offence: the API server fills them in."""


def unsupported(spec: InferenceDeploymentSpec, version: str) -> list[Problem]:
    """A problem for everything in the spec that this version would ignore. `version` is named in the messages."""
    return sorted([*_fields(spec, version), *_values_of(spec, version)])


def _fields(spec: InferenceDeploymentSpec, version: str) -> Iterator[Problem]:
    for field in NOT_YET:
        for path, value, default in _find(spec, field):
            if value not in (None, default):
                yield Problem(path, f"not acted on by this version ({version}); remove the field")


def _values_of(spec: InferenceDeploymentSpec, version: str) -> Iterator[Problem]:
    for field, known in ACTED_ON.items():
        for path, value, _ in _find(spec, field) if known else ():
            if known and value is not None and not any(_matches(value, one) for one in known):
                said = f"{value.partition('://')[0]}://" if known[0].endswith("://") else value
                yield Problem(path, f"{said} is not acted on by this version ({version}); use {' or '.join(known)}")


def _matches(value: str, known: str) -> bool:
    return value.startswith(known) if known.endswith("://") else value == known


def _find(spec: BaseModel, field: str) -> Iterator[tuple[str, Any, Any]]:
    """Every place of a field like `roles[].scaling`: its path in this spec, its value and its default."""
    found: list[tuple[str, Any, Any]] = [("spec", spec, None)]
    for step in field.split("."):
        name, each = step.removesuffix("[]"), step.endswith("[]")
        found = [
            entry
            for path, value, _ in found
            if isinstance(value, BaseModel)
            for entry in _step(path, value, name, each)
        ]
    yield from found


def _step(path: str, model: BaseModel, alias: str, each: bool) -> Iterator[tuple[str, Any, Any]]:
    name, default = _field(type(model), alias)
    value = getattr(model, name)
    if each:
        yield from ((f"{path}.{alias}[{index}]", entry, None) for index, entry in enumerate(value))
    else:
        yield f"{path}.{alias}", value, default


@cache  # asked for every field in every pass, and a default is built anew each time
def _field(model: type[BaseModel], alias: str) -> tuple[str, Any]:
    """A field's name in Python, and its default."""
    name, field = next((name, field) for name, field in model.model_fields.items() if field.alias == alias)
    return name, field.get_default(call_default_factory=True, validated_data={})

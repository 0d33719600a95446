"""What the schema cannot know, in one place: the specs that edits begin from, what a leaf needs beside it, values that
mean something, and what a change may do to the children. Pure data.

A leaf that needs no hint has none. A hint whose leaf is gone from the schema fails a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from headrace_operator.testing import Sample
from sweep.fuzz.values import WORD

Effect = Literal["engines", "objects", "none"]
"""What a change does: engines are made anew; engines live on and some other object changes; no child changes."""

SUMS = "sums"
"""A ConfigMap with checksums, in every namespace."""
SUMS_DATA = {"SHA256SUMS": f"{'0' * 64}  model.safetensors\n"}
DISK = {"size": "1Gi", "volume": {"hostPath": "/var/lib/headrace"}}
MOUNTED = "node:///models/tiny"
FETCHED = "hf://org/tiny@" + "b" * 40


def _disk() -> Sample:
    """Two tiers, and sizes that a change of either leaves valid."""
    return Sample().split().set("kvCache.host.size", "1Gi").set("kvCache.disk", DISK)


BASES: dict[str, Sample] = {
    "split": Sample().split(),
    "wide": Sample().split(2, 2),
    "serve": Sample().serve(1),
    "lora": Sample().split().set("engine.lora.folder", "node:///adapters"),
    "disk": _disk(),
}
"""Specs that edits begin from. The first is taken where a hint says nothing."""


@dataclass(frozen=True)
class Hint:
    """Of one leaf. What is None is left to the schema."""

    base: str = "split"
    also: Mapping[str, Any] = field(default_factory=dict)
    """What is set beside it."""
    valid: tuple[Any, ...] | None = None
    boundary: tuple[Any, ...] | None = None
    invalid: tuple[Any, ...] | None = None
    """Bad values, all of which the API server refuses too."""
    unseen: tuple[Any, ...] = ()
    """Bad values that the schema cannot know: the operator alone refuses them."""


def _template(spec: Any) -> dict[str, Any]:
    return {"metadata": {"labels": {"team": "blue"}}} if spec is None else {"spec": spec}


TEMPLATE = Hint(
    valid=(_template(None), _template({"schedulerName": "blue", "nodeSelector": {"zone": "b"}})),
    boundary=({},),
    invalid=(3,),
    unseen=(
        {"metadata": 3},
        {"spec": []},
        {"spec": 7},
        {"status": {}},
        {"metadata": {"labels": {"headrace.dev/role": "x"}}},
    ),
)
KEYS = {"gateway.apiKeysSecretRef.name": "keys"}
NEEDS_COUNT = {"engine.device.resource": "nvidia.com/gpu", "parallelism.tensor": 2}
OWNED = ({"tensor-parallel-size": 2},)
SECRET_VALUE = {"secretKeyRef": {"name": "blue", "key": "word"}}
SLO = {
    "scaling.mode": "SLO",
    "roles": [{"name": "prefill", "scaling": {"max": 2}}, {"name": "decode", "scaling": {"max": 2}}],
    "slo": {"ttft": {"target": "1s"}, "itl": {"target": "100ms"}},
}
ON_GPU = {"engine.device.resource": "nvidia.com/gpu"}
REDIS = {"ray.gcs.backend": "Redis", "ray.gcs.redis.address": "redis:6379"}
LIMITS = ("maxConcurrent", "requestsPerMinute", "tokensPerMinute")
METHODS = ("fp8", "awq")

ENGINE: dict[str, Hint] = {
    "engine.dtype": Hint(base="serve"),
    "engine.quantization": Hint(valid=METHODS, boundary=(), unseen=("no_such_method",)),
    "engine.extraArgs": Hint(unseen=OWNED),
    "engine.env[].name": Hint(boundary=("B", "B" * 253), unseen=("VLLM_HOST_IP",)),
    "engine.env[].value": Hint(valid=("blue", "green"), invalid=("b" * 4097, {"word": WORD}, 7)),
    "engine.env[].valueFrom": Hint(valid=(SECRET_VALUE,), boundary=(), invalid=(WORD, [1])),
    "engine.speculative.model": Hint(also={"engine.speculative.method": "Eagle3"}),
    "engine.speculative.method": Hint(valid=("NGram", "Suffix", "MTP"), boundary=()),
}
HINTS: dict[str, Hint] = {
    **ENGINE,
    **{f"roles[].{path}": hint for path, hint in ENGINE.items()},
    "roles[].engine.speculative.model": Hint(also={"roles[].engine.speculative.method": "Eagle3"}),
    "model.source": Hint(valid=("node:///models/other", "pvc://models/other", FETCHED), boundary=("node:///m",)),
    "model.credentialsSecretRef.name": Hint(also={"model.source": FETCHED}),
    "model.loader": Hint(
        valid=("Safetensors", "Streamer"), boundary=("Auto",), invalid=("Nonsense", {}, "FastSafetensors"),
    ),
    "model.integrity.trustUnchanged": Hint(also={"model.source": FETCHED}),
    "model.integrity.policy": Hint(valid=("Warn", "Off")),
    "model.integrity.manifest.configMapRef.name": Hint(valid=(SUMS,), boundary=()),
    "model.adapters[].name": Hint(base="lora", also={"model.adapters[].source": "node:///adapters/blue"}),
    "model.adapters[].source": Hint(
        base="lora", valid=("node:///adapters/blue", "node:///adapters/green"), boundary=("node:///adapters/b",),
        invalid=("node:///elsewhere/blue", "adapters/blue", "ftp://blue/b", 7),
    ),
    "engine.maxModelLen": Hint(base="wide"),
    "engine.device.resource": Hint(boundary=()),
    "engine.device.count": Hint(also=NEEDS_COUNT, valid=(2,), boundary=(), invalid=(0, 1025, 3, "many")),
    "roles[].engine.device.resource": Hint(valid=("cpu", "amd.com/gpu"), boundary=()),
    "roles[].engine.device.count": Hint(
        also={"roles[].engine.device.resource": "nvidia.com/gpu", "roles[].parallelism.tensor": 2},
        valid=(2,), boundary=(), invalid=(0, 1025, 3, "many"),
    ),
    "parallelism.tensor": Hint(base="serve"),
    "parallelism.pipeline": Hint(base="serve"),
    "parallelism.data": Hint(base="serve"),
    "parallelism.context": Hint(base="serve"),
    "parallelism.pods": Hint(base="serve", also={"parallelism.tensor": 2}, valid=(2,), boundary=(1,)),
    "roles[].parallelism.pods": Hint(base="serve", also={"roles[].parallelism.tensor": 2}, valid=(2,), boundary=(1,)),
    "roles[].engine.dtype": Hint(base="serve"),
    "roles[].engine.lora.maxAdapters": Hint(base="serve", valid=(), boundary=(), invalid=(1, 64, 0, 65, "many")),
    "roles[].engine.lora.maxRank": Hint(base="serve", valid=(), boundary=(), invalid=(8, 16, 7, "many")),
    "roles[].engine.lora.folder": Hint(base="serve", valid=(), boundary=(), invalid=("node:///adapters", "adapters")),
    "roles[].parallelism.pipeline": Hint(base="serve"),
    "roles[].parallelism.tensor": Hint(base="serve"),
    "roles[].name": Hint(base="serve", valid=(), boundary=("serve",), invalid=("prefill", "decode", "Nonsense", 7)),
    "roles[].replicas": Hint(valid=(2, 3), boundary=(0, 1)),
    # Not 0: the engine that is there stays until figures say more than nothing.
    "roles[].scaling.min": Hint(also=SLO, valid=(2,), boundary=(1,), invalid=(3, -1, "many")),
    "roles[].scaling.max": Hint(also=SLO, valid=(3, 4), boundary=(1, 1000), invalid=(0, 1001, "many")),
    "scaling.toZero.after": Hint(
        valid=("1m", "10m"), boundary=("10s", "10000h"), invalid=("9s", "0s", "ten", 7),
    ),
    "scaling.toZero.holdRequests": Hint(also={"scaling.toZero.after": "10m"}),
    "scaling.toZero.holdTimeout": Hint(also={"scaling.toZero.after": "10m"}),
    "roles[].tolerations[].key": Hint(valid=("blue", "green"), boundary=("b",)),
    "roles[].tolerations[].operator": Hint(valid=("Exists",), boundary=()),
    "roles[].tolerations[].value": Hint(
        also={"roles[].tolerations[].key": "blue"}, valid=("b", "g"), boundary=("b" * 63,),
    ),
    "roles[].tolerations[].effect": Hint(also={"roles[].tolerations[].key": "blue"}),
    "roles[].tolerations[].tolerationSeconds": Hint(
        also={"roles[].tolerations[].key": "blue", "roles[].tolerations[].effect": "NoExecute"}
    ),
    "roles[].nodeSelector": Hint(valid=({"zone": "blue"}, {"zone": "green"})),
    "roles[].podTemplate": TEMPLATE,
    "gateway.podTemplate": TEMPLATE,
    "ray.headPodTemplate": TEMPLATE,
    "kvCache.dtype": Hint(valid=("fp8", "fp8_e4m3"), boundary=("auto",)),
    "kvCache.host.size": Hint(boundary=("16Mi",), invalid=("15Mi", "lots", 0)),
    "kvCache.disk.size": Hint(base="disk", boundary=("64Mi",), invalid=("63Mi", "lots", 0)),
    "kvCache.disk.volume.hostPath": Hint(base="disk"),
    "kvCache.disk.volume.claimTemplate.size": Hint(
        base="disk", also={"kvCache.disk.volume": {}}, boundary=("1Gi",), invalid=("1023Mi", "lots", 0),
    ),
    "kvCache.disk.volume.claimTemplate.storageClassName": Hint(
        base="disk", also={"kvCache.disk.volume": {"claimTemplate": {"size": "2Gi"}}}, valid=("blue", "green"),
        boundary=("b",), invalid=("", 7),
    ),
    "kvCache.disk.volume.emptyDir.sizeLimit": Hint(
        base="disk", also={"kvCache.disk.volume": {}}, boundary=("1088Mi",), invalid=("1087Mi", "lots"),
    ),
    "kvCache.disk.verify": Hint(base="disk"),
    "kvCache.disk.eviction": Hint(base="disk"),
    "kvCache.disk.onModelChange": Hint(base="disk"),
    "kvCache.disk.encryption.keySecretRef.name": Hint(base="disk"),
    "kvCache.disk.returnToNode.enabled": Hint(base="disk"),
    "kvCache.disk.returnToNode.timeout": Hint(base="disk"),
    "kvCache.sharing": Hint(also=KEYS),
    "gateway.replicas": Hint(valid=(3, 1), boundary=(1, 100)),
    **{f"gateway.limits.{limit}": Hint(valid=(3, 4), boundary=(2,)) for limit in LIMITS},
    **{f"gateway.limits.perKey.{limit}": Hint(also=KEYS, valid=(3, 4), boundary=(2,)) for limit in LIMITS},
    **{f"gateway.keys[].limits.{limit}": Hint(also=KEYS, valid=(3, 4), boundary=(2,)) for limit in LIMITS},
    "gateway.keys[].name": Hint(also=KEYS),
    "gateway.keys[].priority": Hint(also=KEYS),
    "ray.gcs.backend": Hint(valid=("Memory",), boundary=("RocksDB",)),
    "ray.gcs.redis.address": Hint(also={"ray.gcs.backend": "Redis"}),
    "ray.gcs.redis.passwordSecretRef.name": Hint(also=REDIS),
    "disaggregation.roleChange.minPrefill": Hint(boundary=(0, 1)),
    "disaggregation.roleChange.minDecode": Hint(boundary=(0, 1)),
    "disaggregation.roleChange.cooldown": Hint(also={**SLO, "disaggregation.roleChange.enabled": True}),
    "slo.ttft.target": Hint(also=SLO),
    "slo.ttft.percentile": Hint(also=SLO),
    "slo.itl.target": Hint(also=SLO),
    "slo.itl.percentile": Hint(also=SLO),
    "scaling.mode": Hint(
        also={"roles": SLO["roles"]}, valid=("External",), boundary=(), invalid=("Fixed", "SLO", "Nonsense", 7),
    ),
    "scaling.maxAccelerators": Hint(also=ON_GPU, valid=(5, 6), boundary=(4, 100_000), invalid=(3, 0, 100_001, "all")),
    "scaling.dryRun": Hint(also=SLO),
    "scaling.policy": Hint(also=SLO, valid=("my.policy:Best",), boundary=("builtin",)),
    "rollout.maxSurge": Hint(valid=(2, 3), boundary=(1, 1000)),
    "rollout.autoRollback": Hint(also={"rollout.progressDeadline": "10m"}),
    "rollout.canary.steps": Hint(
        valid=([10, 100], [100]), boundary=([1, 100],), invalid=([], [50], [50, 10, 100], "all"),
    ),
    "recovery.backoff.base": Hint(valid=("6s", "1m30s"), boundary=("300s",), invalid=("301s", "soon", "0s")),
    "recovery.backoff.max": Hint(valid=("6m", "7m"), boundary=("5s",), invalid=("4s", "soon", "0s")),
    "paused": Hint(also={"engine.maxModelLen": 64}, boundary=()),
}  # fmt: skip

EFFECTS: dict[str, Effect] = {
    "model": "engines",
    "model.adapters": "objects",
    "engine": "engines",
    "parallelism": "engines",
    "roles": "engines",
    "kvCache": "engines",
    "drain": "engines",
    "recovery": "engines",
    "gateway": "objects",
    "rollout": "none",
    "ray": "objects",
    "paused": "none",
}
"""What a change below a path does, where it is no other word for the same. The longest path counts; what is below none
is left to the other invariants."""

ELSEWISE: dict[str, Effect | None] = {
    "model.servedName": "engines",
    "roles[].replicas": None,
    "roles[].scaling": None,
    "kvCache.sharing": "objects",
    "kvCache.disk.returnToNode": None,
    "gateway.routing.policy": None,
    "engine.lora": "engines",
    "rollout.restartedAt": "engines",
}
"""Leaves below a path of `EFFECTS` that do something else; None: it depends on the value."""

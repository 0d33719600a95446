"""The contracts that runtime processes start from, and the ConfigMaps that carry them. Pure.

Written without fields that have their default: an engine image that is older than the operator must be able to read
what it is given, and refuses fields that it does not know.
"""

import hashlib
import json
import math
from collections.abc import Mapping

from headrace_operator import names
from headrace_operator.api.effective import EffectiveRole, effective_roles
from headrace_operator.api.sources import caches
from headrace_operator.api.v1alpha1 import Gateway, InferenceDeploymentSpec, Limits
from headrace_operator.desired.adapters import adapters
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Subject
from headrace_runtime import contract


def node(subject: Subject, role: EffectiveRole, revision: str) -> contract.NodeContract:
    """For the agents of one role."""
    spec = subject.spec
    return contract.NodeContract(
        namespace=subject.ref.namespace,
        deployment=names.label(subject.name),
        revision=revision,
        role=role.name,
        model=_model(subject),
        engine=_engine(subject, role),
        ray=contract.RayNode(address=names.ray_address(subject.ref.namespace, subject.name)),
        backoff=contract.Backoff(
            base_seconds=spec.recovery.backoff.base.seconds,
            max_seconds=spec.recovery.backoff.max.seconds,
            max_restarts=spec.recovery.max_restarts,
        ),
        drain_seconds=spec.drain.timeout.seconds,
    )


def head(subject: Subject) -> contract.HeadContract:
    """For the Ray head."""
    backend = subject.spec.ray.gcs.backend
    return contract.HeadContract(
        namespace=subject.ref.namespace,
        deployment=names.label(subject.name),
        gcs="Memory" if backend == "Memory" else "RocksDB",
    )


def gateway(subject: Subject, share: contract.CanaryShare | None = None) -> contract.GatewayContract:
    """For the gateway's pods. `share`: of a revision that is tried."""
    spec = subject.spec
    resume = spec.gateway.resume
    return contract.GatewayContract(
        namespace=subject.ref.namespace,
        deployment=names.label(subject.name),
        served_name=subject.served_name,
        adapters=tuple(adapter.name for adapter in spec.model.adapters),
        routing=spec.gateway.routing.policy,
        kv_sharing=spec.kv_cache.sharing,
        keys_folder=contract.KEYS_MOUNT if spec.gateway.api_keys_secret_ref else None,
        admission=_admission(spec.gateway, spec.gateway.replicas),
        min_prompt_tokens=spec.disaggregation.min_prompt_tokens,
        on_transfer_failure=spec.disaggregation.on_transfer_failure,
        resume=contract.Resume(max_attempts=resume.max_attempts) if resume.enabled else None,
        drain_seconds=spec.gateway.drain_timeout.seconds,
        hold=_hold(spec),
        canary=share,
    )


def local(subject: Subject, revision: str) -> contract.LocalContract:
    """The whole deployment as processes of one machine: every engine of every role, one gateway, plain folders, and
    neither a Ray token nor API keys, which only a cluster has. Nobody decides sizes there: a role with bounds has its
    least.

    ValueError: the spec needs a volume claim or a Secret, which only a cluster has.
    """
    folder = node_folder(subject.spec.model.source)
    if folder is None:
        raise ValueError("spec.model.source: processes of one machine need a folder of it, node:///absolute/path")
    nodes = []
    for role in effective_roles(subject.spec):
        written = node(subject, role, revision)
        there = [one.model_copy(update={"path": node_folder(one.source) or ""}) for one in written.model.adapters]
        cache = written.model.cache and written.model.cache.model_copy(
            update={"path": subject.defaults.model_cache_path}
        )
        model = written.model.model_copy(update={"path": folder, "adapters": tuple(there), "cache": cache})
        engine = written.engine.model_copy(update={"kv_tiers": _local_tiers(subject)})
        ray = contract.RayNode(address=f"127.0.0.1:{contract.RAY_PORT}", token_file=None)
        nodes += [written.model_copy(update={"model": model, "engine": engine, "ray": ray})] * role.replicas
    return contract.LocalContract(
        head=head(subject).model_copy(update={"token_file": None}),
        nodes=tuple(nodes),
        gateway=gateway(subject).model_copy(
            update={"keys_folder": None, "admission": _admission(subject.spec.gateway, pods=1)}
        ),
    )


def pinned_digest(children: Mapping[tuple[str, str], Object], reported: str | None, source: str) -> str | None:
    """The digest that engines of a model have been told, or else the one that was reported, if it is this model's.

    A status does not say which source its digest is of; the contracts of the engines do. While a rollout changes the
    model there are contracts of both, and either keeps its own. None: pin what is found next.
    """
    models = [
        json.loads(text).get("model", {})
        for (kind, _), obj in children.items()
        if kind == "ConfigMap" and (text := obj.get("data", {}).get(contract.CONTRACT_FILE)) is not None
    ]
    told = [(model["source"], model.get("integrity", {}).get("digest")) for model in models if "source" in model]
    written = next((digest for of, digest in told if of == source and digest is not None), None)
    return written or (reported if {of for of, _ in told} == {source} else None)


def publishes_kv_events(subject: Subject, role: EffectiveRole) -> bool:
    """Where routing goes by them. Data-parallel copies hold blocks each, and the gateway cannot choose a copy."""
    return subject.spec.gateway.routing.policy == "PrefixAware" and role.parallelism.data == 1


def kv_folder(host_path: str) -> str:
    """The folder of a node that holds the KV blocks of all deployments. It alone is made the engines' own."""
    return f"{host_path.rstrip('/')}/headrace-kv"


def node_folder(source: str) -> str | None:
    """The folder of a `node://` source."""
    return source.removeprefix("node://") if source.startswith("node://") else None


def config_map(subject: Subject, name: str, component: str, value: contract.Frozen, labels: dict[str, str]) -> Object:
    """The ConfigMap that carries a contract."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(subject.ref, name, component, labels),
        "data": {contract.CONTRACT_FILE: serialise(value)},
    }


def serialise(value: contract.Frozen) -> str:
    """A contract as it is written: kind and version first, what was set after them, always in the same order."""
    said = value.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"kind", "version"})
    marks = value.model_dump(mode="json", include={"kind", "version"})
    return json.dumps({**marks, **said}, indent=1, ensure_ascii=False) + "\n"


def fingerprint(value: contract.GatewayContract) -> str:
    """Changes when the contract does in a field that needs a new process."""
    value = contract.without_live(value)
    return hashlib.sha256(serialise(value).encode()).hexdigest()[:16]


def kv_layout(subject: Subject, role: EffectiveRole) -> str:
    """A hash of what decides the shape of KV blocks. Engines exchange blocks only where it is the same.

    Tensor parallelism is not in it: NIXL moves blocks between engines of different sizes.
    """
    shape = (
        subject.spec.model.source,
        role.engine.dtype,
        role.engine.quantization,
        subject.spec.kv_cache.dtype,
        role.engine.extra_args.get("block-size"),
    )
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:10]


def _admission(gateway: Gateway, pods: int) -> contract.Admission:
    """The rules of one of so many gateway pods: its share of every limit."""
    limits = gateway.limits
    each_key = limits.per_key or Limits()
    return contract.Admission(
        total=_share(limits, pods),
        each_key=contract.KeyRule(limits=_share(each_key, pods)),
        keys={
            key.name: contract.KeyRule(priority=key.priority, limits=_share(key.limits, pods, each_key))
            for key in gateway.keys
        },
        queue_length=limits.queue.max_length,
        queue_seconds=limits.queue.max_wait.seconds,
    )


def _hold(spec: InferenceDeploymentSpec) -> contract.Hold | None:
    """What one of the gateway's pods holds while there is no engine, of what all of them may."""
    zero = spec.scaling.to_zero
    if zero is None:
        return None
    return contract.Hold(
        requests=max(1, zero.hold_requests // max(1, spec.gateway.replicas)), seconds=zero.hold_timeout.seconds
    )


def _share(limits: Limits, pods: int, otherwise: Limits | None = None) -> contract.Limit:
    """An Nth of each limit, and at least one, for there is no less."""
    found = {name: getattr(limits, name) or getattr(otherwise, name, None) for name in contract.Limit.model_fields}
    return contract.Limit(**{name: max(1, value // pods) for name, value in found.items() if value is not None})


def _model(subject: Subject) -> contract.Model:
    model = subject.spec.model
    cached = caches(subject.spec)
    return contract.Model(
        source=model.source,
        served_name=subject.served_name,
        loader=model.loader,
        integrity=_integrity(subject),
        cache=contract.ModelCache(size_bytes=subject.defaults.model_cache_bytes) if cached else None,
        credentials_folder=contract.CREDENTIALS_MOUNT if model.credentials_secret_ref else None,
        adapters=adapters(subject),
    )


def _integrity(subject: Subject) -> contract.Integrity:
    integrity = subject.spec.model.integrity
    if integrity.policy == "Off":
        return contract.Integrity(policy="Off")
    return contract.Integrity(
        policy=integrity.policy,
        files=dict(subject.manifest) if subject.manifest is not None else None,
        digest=subject.pinned_digest,
        signer_key_file=contract.SIGNER_KEY_FILE if integrity.signature else None,
        allow_pickle=integrity.allow_pickle,
        trust_unchanged=integrity.trust_unchanged,
        rescan_seconds=integrity.rescan.seconds if integrity.rescan else None,
    )


def _kv_tiers(subject: Subject) -> contract.KvTiers | None:
    host, disk = subject.spec.kv_cache.host, subject.spec.kv_cache.disk
    if host is None:
        return None
    tier = disk and contract.KvDisk(
        size_bytes=math.floor(disk.size.value),
        # In a volume of its own no other deployment keeps any.
        node_size_bytes=subject.defaults.kv_node_bytes if disk.volume.host_path is not None else None,
        verify=disk.verify,
        eviction=disk.eviction,
        on_model_change=disk.on_model_change,
        key_file=contract.KV_KEY_FILE if disk.encryption is not None else None,
    )
    return contract.KvTiers(host_bytes=math.floor(host.size.value), disk=tier)


def _local_tiers(subject: Subject) -> contract.KvTiers | None:
    """Those of a process of this machine: the folder of the node is the machine's."""
    tiers, disk = _kv_tiers(subject), subject.spec.kv_cache.disk
    if tiers is None or tiers.disk is None or disk is None:
        return tiers
    if disk.volume.host_path is None:
        raise ValueError("spec.kvCache.disk.volume: processes of one machine need a folder of it, hostPath")
    if disk.encryption is not None:
        raise ValueError("spec.kvCache.disk.encryption: the key is in a Secret, which only a cluster has: remove it")
    return tiers.model_copy(update={"disk": tiers.disk.model_copy(update={"path": kv_folder(disk.volume.host_path)})})


def _engine(subject: Subject, role: EffectiveRole) -> contract.Engine:
    spec, engine = subject.spec, role.engine
    device = spec.kv_cache.device
    split = role.name != "serve"
    return contract.Engine(
        device=engine.device.resource,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        quantization=engine.quantization,
        kv_cache_dtype=spec.kv_cache.dtype,
        kv_cache_bytes=math.floor(device.size.value) if device else None,
        parallelism=contract.Parallelism(**role.parallelism.model_dump()),
        transfer=contract.Transfer(
            connector=spec.disaggregation.connector, on_failure=spec.disaggregation.on_transfer_failure
        )
        if split
        else None,
        kv_tiers=_kv_tiers(subject),
        kv_events=publishes_kv_events(subject, role),
        lora=contract.Lora(max_adapters=engine.lora.max_adapters, max_rank=engine.lora.max_rank)
        if engine.lora
        else None,
        extra_args=dict(engine.extra_args),
        env={variable.name: variable.value for variable in engine.env if variable.value is not None},
    )

"""What KV tiers add to an engine's pod (memory, a volume, a key, the node its blocks are on), and volume claims. Pure.

The pod's parts for the rest of an engine are made in `engine.py`, which calls this.
"""

from typing import Any

from headrace_operator import names
from headrace_operator.api.tiers import HEADROOM
from headrace_operator.api.types import Quantity
from headrace_operator.api.v1alpha1 import ClaimTemplate, DiskCache
from headrace_operator.desired import contracts, pods
from headrace_operator.desired.metadata import metadata
from headrace_operator.state import Object, Plan, Slot, Subject
from headrace_runtime import contract

MIB = 2**20


def claims(subject: Subject, plan: Plan) -> list[Object]:
    """A claim for each slot that has an engine, or blocks that an engine may come back to. They go with the rest."""
    disk = subject.spec.kv_cache.disk
    template = disk.volume.claim_template if disk is not None else None
    if template is None:
        return []
    slots = {*plan.placement, *(_kv_slot(slot) for slot in plan.slots)}
    return [_claim(subject, template, slot) for slot in sorted(slots)]


def with_tiers(pod: Object, subject: Subject, slot: Slot) -> Object:
    """The engine's pod with room for the tiers of the spec; as it is where there are none."""
    host, disk = subject.spec.kv_cache.host, subject.spec.kv_cache.disk
    spec = pod["spec"]
    container, *others = spec["containers"]
    if host is not None:
        container = container | {"resources": with_memory(container["resources"], host.size)}
    if disk is not None:
        spec = _with_disk(spec, container["image"], disk, names.kv_claim(subject.name, _kv_slot(slot)))
        mounts = [{"name": "kv", "mountPath": contract.KV_MOUNT}, *_key_mounts(disk)]
        container = container | {"volumeMounts": [*container["volumeMounts"], *mounts]}
    labels = {**pod["metadata"]["labels"], **({names.KV_SLOT: slot.kv_slot} if slot.kv_slot else {})}
    return pod | {
        "metadata": {**pod["metadata"], "labels": labels},
        "spec": {**spec, "containers": [container, *others]},
    }


def returning(pod: Object, node: str) -> Object:
    """The pod, which may start on this node only, whatever else it asks of nodes."""
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    spec, meta = pod["spec"], pod["metadata"]
    affinity = spec.get("affinity") or {}
    of_node = affinity.get("nodeAffinity") or {}
    required = of_node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    # Terms are alternatives: each must name the node.
    terms = [
        {**term, "matchFields": [*(term.get("matchFields") or []), here]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    required = {**required, "nodeSelectorTerms": terms}
    of_node = {**of_node, "requiredDuringSchedulingIgnoredDuringExecution": required}
    annotations = {**(meta.get("annotations") or {}), names.RETURNS_TO: node}
    return pod | {
        "metadata": {**meta, "annotations": annotations},
        "spec": {**spec, "affinity": {**affinity, "nodeAffinity": of_node}},
    }


def with_memory(resources: Object, more: Quantity) -> Object:
    """The container's resources with so much more memory: what it requests, and its limit where it has one.

    Where only a limit is given, Kubernetes takes it for the request too.
    """
    parts: dict[str, Any] = {part: dict(amounts) for part, amounts in resources.items()}
    limited = "memory" in parts.get("limits", {})
    for part in ("requests", "limits"):
        given = parts.get(part, {}).get("memory")
        if given is not None or (part == "requests" and not limited):
            total = Quantity(given or "0").bytes + more.bytes
            parts[part] = {**parts.get(part, {}), "memory": f"{-(-total // MIB)}Mi"}
    return parts


def _kv_slot(slot: Slot) -> str:
    return slot.kv_slot or names.kv_slot(slot.home, slot.index)


def _with_disk(spec: Object, image: str, disk: DiskCache, claim: str) -> Object:
    volumes = list(spec["volumes"])
    if disk.volume.host_path is not None:
        ours = pods.node_folder("kv", contracts.kv_folder(disk.volume.host_path), contract.KV_MOUNT, image)
        volumes.append(ours.volume)
        spec = {**spec, "initContainers": [*spec.get("initContainers", []), ours.init]}
    elif disk.volume.claim_template is not None:
        volumes.append({"name": "kv", "persistentVolumeClaim": {"claimName": claim}})
        # Or the kubelet looks at every file of the store before the pod starts.
        spec = {**spec, "securityContext": {**spec["securityContext"], "fsGroupChangePolicy": "OnRootMismatch"}}
    else:
        volumes.append({"name": "kv", "emptyDir": {"sizeLimit": _size_limit(disk)}})
    if disk.encryption is not None:
        secret = {"secretName": disk.encryption.key_secret_ref.name, "defaultMode": 0o440}
        volumes.append({"name": "kv-key", "secret": secret})
    return {**spec, "volumes": volumes}


def _size_limit(disk: DiskCache) -> str:
    given = disk.volume.empty_dir.size_limit if disk.volume.empty_dir is not None else None
    return str(given) if given is not None else f"{-(-(disk.size.bytes + HEADROOM.bytes) // MIB)}Mi"


def _key_mounts(disk: DiskCache) -> list[Object]:
    folder = contract.KV_KEY_FILE.rpartition("/")[0]
    return [{"name": "kv-key", "mountPath": folder, "readOnly": True}] if disk.encryption is not None else []


def _claim(subject: Subject, template: ClaimTemplate, slot: str) -> Object:
    spec: Object = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(template.size)}},
    }
    if template.storage_class_name is not None:
        spec["storageClassName"] = template.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(subject.ref, names.kv_claim(subject.name, slot), "engine", {names.KV_SLOT: slot}),
        "spec": spec,
    }

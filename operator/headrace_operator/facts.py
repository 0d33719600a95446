"""What one pod's object and its events say, as facts: is it ready, is it going, and if it hangs, on what. Pure.

Kubernetes has no single field for "why": scheduling is in a condition, images and crashes are in container statuses,
and a volume that cannot be mounted is in events only. Messages that reach a status are written here and not copied
where the original may hold a path of the node. Called by observe.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, get_args

from headrace_operator import names
from headrace_operator.api.conditions import Reason
from headrace_operator.state import Blocker, Object, Pod, Termination
from headrace_runtime.contract import RoleName

ROLES = get_args(RoleName)
IMAGE_WAITS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
    }
)
STARTING_WAITS = frozenset({"ContainerCreating", "PodInitializing"})
NO_RUNTIME = re.compile(r"No module named '?headrace_runtime|executable file not found|no such file or directory")
MODEL_VOLUME = re.compile(
    r'volume(Mount)? "model"|persistentvolumeclaim "(?![a-z0-9.-]*-kv-(serve|prefill|decode)-[0-9]+")'
)
RANK_PART = re.compile(r"-r[0-9]+$")
VOLUME = re.compile(r'(?:volume|volumeMount) "([a-z0-9-]+)"')
SECRET = re.compile(r'secret "([a-z0-9.-]+)" not found')


def read_pod(obj: Object) -> Pod:
    """The facts in a pod's own object."""
    meta, status = obj["metadata"], obj.get("status", {})
    labels = meta.get("labels", {})
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    phase = status.get("phase", "Pending")
    born, index = _born_as(meta["name"])
    ready = conditions.get("Ready", {}).get("status") == "True"
    created = meta.get("creationTimestamp")
    turned = conditions.get("Ready", {}).get("lastTransitionTime")
    waiting_since, ready_since = (None, turned) if ready else (turned or created, None)
    returns_to = (meta.get("annotations") or {}).get(names.RETURNS_TO, "")
    blocker = None if ready else _blocker(meta["name"], phase, status, conditions)
    if returns_to and blocker is not None and blocker.reason == Reason.UNSCHEDULABLE:
        # The scheduler's words do not name the node.
        message = f"waits for the node {returns_to}, where its KV blocks are: {blocker.message}"
        blocker = replace(blocker, message=message)
    return Pod(
        name=meta["name"],
        component=labels.get(names.COMPONENT, ""),
        role=labels.get(names.ROLE, ""),
        revision=labels.get(names.REVISION, ""),
        index=index,
        born=born,
        ready=ready and phase == "Running",
        going="deletionTimestamp" in meta,
        ends=datetime.fromisoformat(meta["deletionTimestamp"]) if "deletionTimestamp" in meta else None,
        failed=phase in {"Failed", "Succeeded"},
        ip=status.get("podIP", ""),
        node=obj.get("spec", {}).get("nodeName", ""),
        created=datetime.fromisoformat(created) if created else None,
        waiting_since=datetime.fromisoformat(waiting_since) if waiting_since else None,
        ready_since=datetime.fromisoformat(ready_since) if ready_since else None,
        gang=labels.get(names.GANG, ""),
        rank=_number(labels.get(names.RANK, ""), 0),
        ranks=_number(labels.get(names.GANG_SIZE, ""), 1),
        devices=tuple(sorted(_devices(obj.get("spec", {})).items())),
        kv_slot=labels.get(names.KV_SLOT, ""),
        returns_to=returns_to,
        terminations=tuple(_terminations(status)),
        blocker=blocker,
    )


def waits_for_volumes(obj: Object) -> bool:
    """Whether the pod is on a node and its containers do not start yet: what it waits for is in its events."""
    status = obj.get("status", {})
    if not obj.get("spec", {}).get("nodeName") or status.get("phase", "Pending") != "Pending":
        return False
    containers = _containers(status)
    return all(_waiting(c).get("reason") in STARTING_WAITS for c in containers)


def mount_blocker(pod: str, events: Iterable[Object]) -> Blocker | None:
    """Why the pod's volumes cannot be mounted, by the newest of its events (oldest first)."""
    for event in reversed(list(events)):
        if event.get("reason") in {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}:
            message = str(event.get("message", ""))
            # This one only sums up the others and may be newer than they are.
            if not message.startswith("Unable to attach or mount volumes"):
                return _volume_blocker(pod, message)
    return None


def secrets_missed(events: Iterable[Object]) -> frozenset[str]:
    """Names of the Secrets that the pod's volumes lack."""
    return frozenset(name for event in events for name in SECRET.findall(str(event.get("message", ""))))


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() else otherwise


def _devices(spec: Object) -> Counter[str]:
    """Of all containers; only extended resources have a domain in their names, and they are whole numbers."""
    found: Counter[str] = Counter()
    for container in spec.get("containers") or ():
        for resource, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if "/" in resource and str(amount).isdecimal():
                found[resource] += int(amount)
    return found


def _born_as(name: str) -> tuple[str, int]:
    """Role and index in the name of an engine's pod (`names.engine_pod`); empty and -1 in any other name."""
    parts = RANK_PART.sub("", name).rsplit("-", 3)
    made = len(parts) == 4 and parts[1] in ROLES and parts[3].isdecimal()
    return (parts[1], int(parts[3])) if made else ("", -1)


def _containers(status: Object) -> list[Object]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _terminations(status: Object) -> Iterator[Termination]:
    """The newest end of each container that was a failure."""
    for container in _containers(status):
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
        if ended.get("exitCode") and ended.get("finishedAt"):
            at = datetime.fromisoformat(ended["finishedAt"])
            yield Termination(container.get("name", ""), ended.get("reason", "Error"), ended["exitCode"], at)


def _waiting(container: Object) -> Object:
    waiting: Object = container.get("state", {}).get("waiting") or {}
    return waiting


def _blocker(pod: str, phase: str, status: Object, conditions: dict[str, Any]) -> Blocker | None:
    if phase == "Failed":
        # Of an eviction, or of a kubelet that will not have it, the message says for want of what.
        said = [status[key] for key in ("reason", "message") if status.get(key)]
        return Blocker(pod, Reason.CONTAINER_FAILED, ": ".join(said) or "its containers ended")
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        message = scheduled.get("message", "")
        reason = Reason.MODEL_NOT_FOUND if MODEL_VOLUME.search(message) else Reason.UNSCHEDULABLE
        return Blocker(pod, reason, message)
    return next((b for c in _containers(status) if (b := _container_blocker(pod, c))), None)


def _container_blocker(pod: str, container: Object) -> Blocker | None:
    waiting = _waiting(container)
    why, message = waiting.get("reason", ""), waiting.get("message", "")
    if why in IMAGE_WAITS:
        return Blocker(pod, Reason.IMAGE_PULL_FAILED, f"image {container.get('image', '')} cannot be had ({why})")
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    said = f"{message} {ended.get('message', '')}"
    if why == "CreateContainerConfigError":
        return _volume_blocker(pod, message)
    if NO_RUNTIME.search(said) and (why or ended):
        return Blocker(
            pod, Reason.RUNTIME_MISSING, f"image {container.get('image', '')} does not hold headrace_runtime"
        )
    if ended and not container.get("ready"):
        restarts = container.get("restartCount", 0)
        how = f"ended with exit code {ended.get('exitCode')} ({ended.get('reason', 'Error')}), {restarts} restarts"
        return Blocker(pod, Reason.CONTAINER_FAILED, f"container {container.get('name')} {how}")
    if why and why not in STARTING_WAITS:
        return Blocker(pod, Reason.CONTAINER_FAILED, f"container {container.get('name')}: {why}")
    return None


def _volume_blocker(pod: str, message: str) -> Blocker:
    if MODEL_VOLUME.search(message):
        return Blocker(pod, Reason.MODEL_NOT_FOUND, "the folder of spec.model.source cannot be mounted on its node")
    secret = SECRET.search(message)
    if secret is not None:
        return Blocker(pod, Reason.SECRET_NOT_FOUND, f"the Secret {secret[1]} does not exist")
    volume = VOLUME.search(message)
    return Blocker(
        pod,
        Reason.VOLUME_NOT_MOUNTED,
        f"volume {volume[1]} cannot be mounted" if volume else "a volume cannot be mounted",
    )

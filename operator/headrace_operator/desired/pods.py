"""What the pods of all three components have in common: contract, place, probes, rights. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from headrace_operator import names
from headrace_operator.api.v1alpha1 import Resources
from headrace_operator.state import Object
from headrace_runtime import contract

PLACE_ENV = (("POD_NAME", "metadata.name"), ("POD_IP", "status.podIP"), ("NODE_NAME", "spec.nodeName"))
CONTRACT_PATH = f"{contract.CONTRACT_MOUNT}/{contract.CONTRACT_FILE}"
TOKEN_KEY = "token"  # noqa: S105 - the name of a key, not a secret
USER = GROUP = 65532
"""The user and group of our images."""
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def process(name: str, command: str, image: str, resources: Object) -> Object:
    """A container that runs one process of the runtime."""
    return {
        "name": name,
        "image": image,
        "command": ["python3", "-m", "headrace_runtime", command, "--contract", CONTRACT_PATH],
        "env": [{"name": env, "valueFrom": {"fieldRef": {"fieldPath": path}}} for env, path in PLACE_ENV],
        "resources": resources,
        "securityContext": dict(RESTRICTED),
        # Why a container ended that could not even start the runtime is in its last lines only.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "contract", "mountPath": contract.CONTRACT_MOUNT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod
        ],
    }


def base_volumes(config_map: str) -> list[Object]:
    """The volumes that `process` mounts."""
    return [
        {"name": "contract", "configMap": {"name": config_map}},
        {"name": "tmp", "emptyDir": {}},
    ]


def ray_token(deployment: str) -> tuple[Object, Object]:
    """Volume and mount of the Ray cluster's token: a file, never a variable, which every child process would
    inherit."""
    folder = contract.RAY_TOKEN_FILE.rpartition("/")[0]
    volume = {"name": "ray-token", "secret": {"secretName": names.ray_token(deployment), "defaultMode": 0o440}}
    return volume, {"name": "ray-token", "mountPath": folder, "readOnly": True}


def shared_memory() -> tuple[Object, Object]:
    """Volume and mount of /dev/shm: a container's own 64 MiB are too few for Ray and for an engine's workers."""
    return {"name": "shm", "emptyDir": {"medium": "Memory"}}, {"name": "shm", "mountPath": "/dev/shm"}  # noqa: S108


@dataclass(frozen=True)
class NodeFolder:
    """A folder of the node that engines of many pods share and write: what a pod's spec needs of it."""

    volume: Object
    mount: Object
    init: Object
    """A container that makes it ours before the engine starts."""


def node_folder(name: str, path: str, mount_path: str, image: str) -> NodeFolder:
    """The folder `path` of the node at `mount_path`, for the user and the group of our images.

    The kubelet makes such a folder root's own, and Kubernetes has no other way to say whose it shall be: a container
    with the right to give files away does it, and nothing else. Images with another user come in by the pod's group.
    """
    mount = {"name": name, "mountPath": mount_path}
    own = ["install", "-d", "-o", str(USER), "-g", str(GROUP), "-m", "2770", mount_path]
    rights = {"drop": ["ALL"], "add": ["CHOWN", "FOWNER"]}
    return NodeFolder(
        volume={"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}},
        mount=mount,
        init={
            "name": f"own-{name}",
            "image": image,
            "command": own,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": rights, "runAsUser": 0},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [mount],
        },
    )


STARTUP_SECONDS = 180
"""Until a process listens. Importing takes seconds; on a machine with no time to spare, minutes."""


def probe(path: str, port: int, *, period: int, failures: int) -> Object:
    """An HTTP probe. Its deadline is longer than Kubernetes' second: a busy machine is not a dead one."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "timeoutSeconds": 3,
        "failureThreshold": failures,
    }


def probes(port: int) -> Object:
    """Readiness by what the process serves; start and liveness by the process alone.

    Never by its engine: one may take half an hour to load, and one that cannot start must stay up to say why.
    """
    return {
        "startupProbe": probe("/healthz", port, period=2, failures=STARTUP_SECONDS // 2),
        "readinessProbe": probe("/readyz", port, period=2, failures=2),
        "livenessProbe": probe("/healthz", port, period=10, failures=6),
    }


def resources(given: Resources, extra: Mapping[str, str] | None = None) -> Object:
    """The container's resources, with `extra` (devices) as both request and limit."""
    parts = {
        "requests": {**{k: str(v) for k, v in given.requests.items()}, **(extra or {})},
        "limits": {**{k: str(v) for k, v in given.limits.items()}, **(extra or {})},
    }
    return {part: amounts for part, amounts in parts.items() if amounts}


def pod_spec(**fields: object) -> Object:
    """A pod's spec with what holds for all of them."""
    return {
        "automountServiceAccountToken": False,
        # Variables such as VLLM_PORT, made from the name of some Service, would be read as settings.
        "enableServiceLinks": False,
        # The group makes the token readable whatever user an image has; it changes nothing on a node's own folders.
        "securityContext": {"fsGroup": GROUP, "seccompProfile": {"type": "RuntimeDefault"}},
        **fields,
    }

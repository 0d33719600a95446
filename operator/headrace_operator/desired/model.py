"""What a model's files add to an engine's pod: a folder that is mounted, or the node's cache that they are fetched
into, the source's credentials, and the key of their signer. Pure; called by `engine.py`.
"""

from dataclasses import dataclass

from headrace_operator.api.sources import caches, fetched
from headrace_operator.desired import contracts, pods
from headrace_operator.state import Object, Subject
from headrace_runtime import contract


@dataclass(frozen=True)
class Parts:
    """Of a pod's spec and of its engine's container."""

    volumes: tuple[Object, ...]
    mounts: tuple[Object, ...]
    init: tuple[Object, ...]


def parts(subject: Subject, image: str) -> Parts:
    """For engines of this image."""
    model = subject.spec.model
    pairs: list[tuple[Object, Object]] = []
    init: list[Object] = []
    if not fetched(model.source):
        pairs.append(folder_volume("model", model.source, contract.MODEL_MOUNT))
    if caches(subject.spec):
        cache = pods.node_folder("model-cache", subject.defaults.model_cache_path, contract.MODEL_CACHE_MOUNT, image)
        pairs.append((cache.volume, cache.mount))
        init.append(cache.init)
    if model.credentials_secret_ref is not None:
        pairs.append(_secret("credentials", model.credentials_secret_ref.name, contract.CREDENTIALS_MOUNT))
    if model.integrity.signature is not None:
        folder = contract.SIGNER_KEY_FILE.rpartition("/")[0]
        pairs.append(_secret("signer", model.integrity.signature.public_key_secret_ref.name, folder))
    return Parts(tuple(volume for volume, _ in pairs), tuple(mount for _, mount in pairs), tuple(init))


def folder_volume(name: str, source: str, path: str) -> tuple[Object, Object]:
    """Volume and mount of a folder of a node or a claim, read-only. ValueError: a source that no volume can hold."""
    mount: Object = {"name": name, "mountPath": path, "readOnly": True}
    folder = contracts.node_folder(source)
    if folder is not None:
        return {"name": name, "hostPath": {"path": folder, "type": "Directory"}}, mount
    scheme, _, rest = source.partition("://")
    if scheme != "pvc":
        raise ValueError(f"{name}: {scheme}:// is not a volume")
    claim, _, path = rest.partition("/")
    if path.strip("/"):
        mount["subPath"] = path.strip("/")
    return {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}, mount


def _secret(name: str, secret: str, path: str) -> tuple[Object, Object]:
    volume = {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}
    return volume, {"name": name, "mountPath": path, "readOnly": True}

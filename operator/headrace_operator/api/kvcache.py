"""Where KV blocks live: `spec.kvCache`, and the volumes that hold state."""

from typing import Annotated, Literal

from pydantic import Field

from headrace_operator.api.types import Bytes, Duration, Frozen, LocalRef

AbsolutePath = Annotated[str, Field(min_length=2, max_length=1024, pattern=r"^/[^\s:]+$")]


class ClaimTemplate(Frozen):
    """A volume claim made for each pod."""

    size: Bytes
    """How much is claimed."""
    storage_class_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """The storage class. Default: the cluster's."""


class EmptyDir(Frozen):
    """A folder that lives as long as its pod."""

    size_limit: Bytes | None = None
    """The pod is evicted when the folder passes this size."""


class Volume(Frozen):
    """Where state is kept. Exactly one field."""

    host_path: AbsolutePath | None = None
    """A folder of the node: survives the pod, not the node."""
    claim_template: ClaimTemplate | None = None
    """A volume claim: survives the pod, and the node where the storage does."""
    empty_dir: EmptyDir | None = None
    """A folder of the pod: survives a restart of the container only."""


class DeviceCache(Frozen):
    """KV blocks in the memory of the device (on `cpu`: of the host)."""

    size: Bytes
    """Memory for KV blocks, per device."""


class HostCache(Frozen):
    """KV blocks in pinned host memory."""

    size: Bytes
    """Memory of one engine's tier, at least 16Mi. It is added to the memory that `roles[].resources` requests, and to
    its limit where it has one: the scheduler so keeps the tiers of all engines within a node's memory."""


class ReturnToNode(Frozen):
    """A replaced engine waits for the node that holds its blocks."""

    enabled: bool = True
    """Start a replaced engine on the node that holds the blocks. (A claim of a node's own disk binds its engine to that
    node in any case.)"""
    timeout: Duration = Duration("60s")
    """How long to wait before any other node will do. Where the node is cordoned or gone, nothing is waited for."""


class Encryption(Frozen):
    """Blocks are encrypted at rest (AES-GCM)."""

    key_secret_ref: LocalRef
    """Secret whose entry `key` is 32 random bytes in base64."""


class DiskCache(Frozen):
    """KV blocks on a disk of the node. Needs `host`, through which every block passes."""

    size: Bytes
    """Physical bytes on a node for this deployment, never passed; at least 64Mi. With `claimTemplate` and `emptyDir`:
    in the volume of each engine."""
    volume: Volume
    """Where the blocks are kept. hostPath is one folder for all engines and deployments of a node: the blocks are in
    its subfolder `headrace-kv`."""
    verify: Literal["Always", "Never"] = "Always"
    """Always: the checksum of a block is checked on every read."""
    eviction: Literal["Default", "LRU"] = "Default"
    """Which blocks go first."""
    on_model_change: Literal["Fence", "Wipe"] = "Fence"
    """Fence keeps blocks of other digests, unread, until they are evicted; Wipe deletes them."""
    encryption: Encryption | None = None
    """Encrypt the blocks. Default: they are not encrypted."""
    return_to_node: ReturnToNode = ReturnToNode()
    """A replaced engine waits for the node that holds its blocks. Those in an emptyDir go with their pod, and nobody
    waits for them."""

    @property
    def outlives_pods(self) -> bool:
        """Whether another pod can read the blocks."""
        return self.volume.empty_dir is None


class KVCache(Frozen):
    """Where KV blocks live."""

    dtype: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9_]+$")] = "auto"
    """The engine's name of the type of KV blocks, such as fp8. auto: as the model."""
    device: DeviceCache | None = None
    """Memory of the device for KV blocks. Default: what the engine finds left; on `cpu`, 512Mi."""
    host: HostCache | None = None
    """A tier in host memory."""
    disk: DiskCache | None = None
    """A tier on a disk of the node."""
    sharing: Literal["All", "Key"] = "All"
    """Whose requests reuse each other's blocks. Key: only those with the same API key."""

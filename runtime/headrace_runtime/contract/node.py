"""What an engine's agent and the Ray head are told: the model, the engine, its KV tiers."""

from typing import Literal

from pydantic import Field

from headrace_runtime.contract.base import (
    KV_MOUNT,
    MODEL_CACHE_MOUNT,
    MODEL_MOUNT,
    RAY_PORT,
    RAY_TOKEN_FILE,
    VERSION,
    Frozen,
    RoleName,
)


class Integrity(Frozen):
    """How the weights are checked before an engine may load them."""

    policy: Literal["Enforce", "Warn", "Off"] = "Enforce"
    files: dict[str, str] | None = None
    """SHA-256 in hex of each file, by path relative to the model's folder. None: no manifest was given."""
    digest: str | None = None
    """Digest of the whole folder (`sha256:…`; `node/weights.py`), pinned at the first load. None: pin what is met."""
    signer_key_file: str | None = None
    """Public key (PEM) of an OpenSSF model-signing bundle that lies beside the weights. None: no signature is asked."""
    allow_pickle: bool = False
    """Whether files may be there that run code when they are loaded (`node/unsafe.py`)."""
    trust_unchanged: Literal["Never", "Boot"] = "Never"
    """Boot: of a fetched model, files that are as they were when this machine's boot wrote them are not read again
    (`models/record.py`). Whoever may write the node's cache could forge that."""
    rescan_seconds: float | None = None
    """How long after one reading the files are read and compared again while they are served. None: never."""


class ModelCache(Frozen):
    """Where models that are fetched are kept: one folder of the node, which all its engines share."""

    path: str = MODEL_CACHE_MOUNT
    size_bytes: int | None = None
    """Physical bytes of all models together; the least recently used one that nothing runs on goes first. None: as
    much as the disk holds."""


class Adapter(Frozen):
    """A LoRA adapter, loaded and unloaded under a running engine."""

    name: str
    """The model name that requests use for it."""
    source: str
    """In the forms of `Model.source`."""
    path: str = ""
    """Its folder, where it is mounted (`node://`, `pvc://`); empty: fetched into the cache."""
    integrity: Integrity = Integrity()


class Model(Frozen):
    source: str
    """`node:///folder` and `pvc://claim/path` are mounted at `path`, and stand here for messages only. `hf://`,
    `oci://`, `s3://` and `https://` are fetched into `cache`."""
    path: str = MODEL_MOUNT
    served_name: str
    loader: Literal["Auto", "Safetensors", "Streamer", "FastSafetensors"] = "Auto"
    integrity: Integrity = Integrity()
    cache: ModelCache | None = None
    """Where the model goes, or those of its adapters, whose source is one that is fetched. None: nothing is fetched."""
    credentials_folder: str | None = None
    """Of what its source, and those of its adapters, ask for; read when a fetch begins."""
    adapters: tuple[Adapter, ...] = ()


class Parallelism(Frozen):
    """Sizes of the groups an engine is cut into. Products are devices (see `engine/arguments.py`)."""

    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    data: int = Field(default=1, ge=1)
    expert: bool = False
    context: int = Field(default=1, ge=1)
    pods: int = Field(default=1, ge=1)
    """Pods that one engine is spread over, each with an equal part of its devices."""


class Transfer(Frozen):
    """How KV blocks go from a prefill to a decode engine."""

    connector: Literal["NIXL"] = "NIXL"
    on_failure: Literal["Recompute", "Fail"] = "Recompute"


class KvDisk(Frozen):
    """KV blocks on a disk of the node (`kv/store.py`)."""

    path: str = KV_MOUNT
    size_bytes: int
    """Physical bytes of this deployment on the node, whichever of its engines writes: never passed."""
    node_size_bytes: int | None = None
    """The same of all deployments together that keep blocks in this place. None: each has its own limit only."""
    verify: Literal["Always", "Never"] = "Always"
    eviction: Literal["Default", "LRU"] = "Default"
    on_model_change: Literal["Fence", "Wipe"] = "Fence"
    key_file: str | None = None
    """AES key, 32 bytes in base64. None: blocks are not encrypted."""


class KvTiers(Frozen):
    """Where KV blocks go that the device has no room for."""

    host_bytes: int
    """Host memory of one engine's tier; every block on its way to or from the disk passes through it."""
    disk: KvDisk | None = None


LoraRank = Literal[8, 16, 32, 64, 128, 256, 320, 512]
"""Ranks that vLLM has room for; an adapter of a rank between two needs the greater one."""


class Lora(Frozen):
    """Room that an engine keeps for adapters, from its start on."""

    max_adapters: int = Field(default=4, ge=1)
    """Served at a time; requests of so many different ones are computed in one step."""
    max_rank: LoraRank = 16


class Engine(Frozen):
    """All that `engine/arguments.py` needs to write vLLM's command line."""

    device: str = "nvidia.com/gpu"
    """The Kubernetes resource the engine computes on; `cpu` selects the CPU settings."""
    dtype: str = "auto"
    max_model_len: int | None = None
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    """Device memory for KV blocks, in bytes. None: the engine measures what is left."""
    parallelism: Parallelism = Parallelism()
    transfer: Transfer | None = None
    """None where prefill and decode are one engine."""
    kv_tiers: KvTiers | None = None
    """None: KV blocks live on the device only."""
    lora: Lora | None = None
    """None: the engine takes no adapters."""
    kv_events: bool = False
    """Tell gateways which KV blocks the engine holds, for prefix-aware routing. The events carry token ids of prompts:
    they are published within the pod network only, or in a socket file where the engine listens on loopback."""
    extra_args: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """vLLM options without their dashes; `true` is a bare flag, `false` its `--no-` form."""
    env: dict[str, str] = Field(default_factory=dict)


class RayNode(Frozen):
    """How a pod joins the Ray cluster. Ray is never on the path of a token, nor needed to keep an engine running."""

    address: str
    """`host:port` of the head's control store (GCS)."""
    token_file: str | None = RAY_TOKEN_FILE
    """None switches token authentication off: only for processes on one machine's loopback."""
    object_store_bytes: int = 80_000_000
    reconnect_seconds: int = 86_400
    """How long a raylet outlives a head that is away. Ray's default of 60 s would end it."""


class Backoff(Frozen):
    base_seconds: float = 5.0
    max_seconds: float = 300.0
    max_restarts: int = 10
    """Restarts without the engine becoming ready in between, after which the agent stops and says so."""


class NodeContract(Frozen):
    """For `headrace_runtime node`: the agent that owns one engine. `model.adapters` may change while it runs
    (`node/adapters.py`); all else that changes needs a new process."""

    kind: Literal["Node"] = "Node"
    version: Literal["headrace.dev/runtime-v1"] = VERSION
    namespace: str
    deployment: str
    revision: str
    role: RoleName
    model: Model
    engine: Engine
    ray: RayNode | None = None
    """None: no raylet beside the engine (plain processes)."""
    backoff: Backoff = Backoff()
    drain_seconds: float = 300.0
    """How long streams may go on after SIGTERM before the engine is ended."""
    start_seconds: float = 1800.0
    """How long an engine may take from its start to its first token before it is started anew."""


class HeadContract(Frozen):
    """For `headrace_runtime head`: the Ray head and the fleet's supervisor actors."""

    kind: Literal["Head"] = "Head"
    version: Literal["headrace.dev/runtime-v1"] = VERSION
    namespace: str
    deployment: str
    gcs: Literal["RocksDB", "Memory"] = "RocksDB"
    gcs_path: str = "/var/lib/headrace/gcs"
    port: int = RAY_PORT
    token_file: str | None = RAY_TOKEN_FILE
    object_store_bytes: int = 80_000_000

"""What the operator tells a runtime process: one JSON file, read at start.

The bridge between the two packages, and the only module of the runtime that the operator imports: standard library and
pydantic only, no I/O. The operator writes a contract into a ConfigMap (`desired/contracts.py`); `__main__` reads it,
and each process (`node`, `head`, `gateway`) gets its own kind. Facts of one pod (its name, address, node) are not in
it: many pods share one contract, and `Place` carries those facts. An unknown field or version is an error, never
skipped.

A gateway looks at its file again while it runs: the fields in `LIVE` change under it, all others need a new process.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

VERSION: Final = "headrace.dev/runtime-v1"

DEPLOYMENT_LABEL = "headrace.dev/deployment"
COMPONENT_LABEL = "headrace.dev/component"
ROLE_LABEL = "headrace.dev/role"
REVISION_LABEL = "headrace.dev/revision"
KV_LAYOUT_LABEL = "headrace.dev/kv-layout"
DRAINING_ANNOTATION = "headrace.dev/draining"

ENGINE_PORT = 8000
AGENT_PORT = 8090
KV_TRANSFER_PORT = 5600
KV_EVENTS_PORT = 5557
KV_REPLAY_PORT = 5558
GATEWAY_PORT = 8080
GATEWAY_ADMIN_PORT = 8081
RAY_PORT = 6379
HEAD_ADMIN_PORT = 8090

MODEL_MOUNT = "/var/run/headrace/model"
"""Where the operator mounts the model's folder, read-only, in an engine's container."""
CONTRACT_MOUNT = "/etc/headrace"
CONTRACT_FILE = "contract.json"
RAY_TOKEN_FILE = "/etc/headrace-ray/token"  # noqa: S105 - a path, not a secret
KEYS_MOUNT = "/etc/headrace-keys"
"""Where the operator mounts the Secret with the API keys, read-only, in a gateway's container."""

REPLAY_FIELD = "headrace_replay"
"""Member of a request's `vllm_xargs`: ids of the tokens that another engine delivered already. The engine takes them
as its own output: sends them again first, then goes on (`engine/replay.py`). The gateway sets it; no client may."""

RoleName = Literal["serve", "prefill", "decode"]


class Frozen(BaseModel):
    """camelCase on the wire, snake_case in Python; unknown fields refused; values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Integrity(Frozen):
    """How the weights are checked before an engine may load them."""

    policy: Literal["Enforce", "Warn", "Off"] = "Enforce"
    files: dict[str, str] | None = None
    """SHA-256 in hex of each file, by path relative to the model's folder. None: no manifest was given."""
    digest: str | None = None
    """Digest of the whole folder (`sha256:…`; `node/weights.py`), pinned at the first load. None: pin what is met."""


class Model(Frozen):
    source: str
    """`node:///folder` or `pvc://claim/path`, for messages only: the folder itself is at `path`."""
    path: str = MODEL_MOUNT
    served_name: str
    loader: Literal["Auto", "Safetensors"] = "Auto"
    integrity: Integrity = Integrity()


class Parallelism(Frozen):
    """Sizes of the groups an engine is cut into. Products are devices (see `engine/arguments.py`)."""

    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    data: int = Field(default=1, ge=1)
    expert: bool = False
    context: int = Field(default=1, ge=1)


class Transfer(Frozen):
    """How KV blocks go from a prefill to a decode engine."""

    connector: Literal["NIXL"] = "NIXL"
    on_failure: Literal["Recompute", "Fail"] = "Recompute"


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
    kv_events: bool = False
    """Tell gateways which KV blocks the engine holds, for prefix-aware routing. The events carry token ids of prompts:
    they are published within the pod network only, or in a socket file where the engine listens on loopback."""
    extra_args: dict[str, bool | int | float | str] = {}
    """vLLM options without their dashes; `true` is a bare flag, `false` its `--no-` form."""
    env: dict[str, str] = {}


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


OWNED_OPTIONS = frozenset({
    "api-key", "api-server-count", "code-revision", "config", "cpu-offload-gb", "data-parallel-address",
    "data-parallel-backend", "data-parallel-external-lb", "data-parallel-hybrid-lb",
    "data-parallel-multi-port-external-lb", "data-parallel-rank", "data-parallel-rpc-port", "data-parallel-size",
    "data-parallel-size-local", "data-parallel-start-rank", "device-ids", "distributed-executor-backend",
    "download-dir", "dtype", "enable-expert-parallel", "enable-log-deltas", "enable-log-outputs",
    "enable-log-requests", "enable-lora", "grpc", "headless", "hf-token", "host", "kv-cache-dtype",
    "kv-cache-memory-bytes", "kv-events-config", "kv-offloading-backend", "kv-offloading-size", "kv-transfer-config",
    "load-format", "lora-modules", "master-addr", "master-port", "max-model-len", "model", "nnodes", "node-rank",
    "otlp-traces-endpoint", "pipeline-parallel-size", "port", "prefill-context-parallel-size", "quantization",
    "revision", "root-path", "scheduler-cls", "served-model-name", "shutdown-timeout", "spec-method", "spec-model",
    "spec-tokens", "speculative-config", "ssl-ca-certs", "ssl-certfile", "ssl-keyfile", "tensor-parallel-size",
    "tokenizer", "tokenizer-revision", "uds", "worker-extension-cls",
})  # fmt: skip
"""Options of vLLM that `Engine.extra_args` may not hold: a field or Headrace sets them, or they would log prompts."""


def owned_option(option: str) -> str | None:
    """The owned option that vLLM would take `option` for, or None.

    It takes underscores for dashes, `no-` forms, members of a JSON option (`kv-transfer-config.kv_role`), and any
    beginning of a name that no other option has.
    """
    plain = option.partition(".")[0].replace("_", "-").removeprefix("no-")
    if plain in OWNED_OPTIONS:
        return plain
    return next((name for name in sorted(OWNED_OPTIONS) if plain and name.startswith(plain)), None)


class NodeContract(Frozen):
    """For `headrace_runtime node`: the agent that owns one engine."""

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


class KvEvents(Frozen):
    """Where an engine says what KV blocks it holds: ZeroMQ addresses to connect to."""

    publish: str
    replay: str
    """What was published before is asked for here."""


class Endpoint(Frozen):
    """One engine as the gateway sees it. `url` is its OpenAI server, `http://host:port`."""

    name: str
    url: str
    role: RoleName
    revision: str
    kv_layout: str = ""
    draining: bool = False
    ready: bool = True
    kv_events: KvEvents | None = None
    """None: it publishes none. An address where nobody publishes costs a connection attempt now and then."""


class PodDiscovery(Frozen):
    """Find engines by watching pods with the deployment's label (in a cluster)."""

    kind: Literal["Pods"] = "Pods"


class FixedDiscovery(Frozen):
    """Engines are these (processes on one machine, benchmarks)."""

    kind: Literal["Fixed"] = "Fixed"
    endpoints: tuple[Endpoint, ...]


class Resume(Frozen):
    """How a stream goes on at another engine when its own is lost."""

    max_attempts: int = Field(default=3, ge=1)
    """Losses of one stream after which it ends with an error."""
    wait_seconds: float = 30.0
    """How long a broken stream waits for an engine that goes on with it: where there is but one, for its restart."""
    kept_bytes: int = 256 * 1024**2
    """Memory for what live streams have delivered, all together and compressed. A stream that finds none left goes on,
    but cannot be resumed."""


class Limit(Frozen):
    """What one gateway lets in. None: any number."""

    max_concurrent: int | None = Field(default=None, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)


Priority = Literal["High", "Normal", "Low"]


class KeyRule(Frozen):
    """How requests with one API key are treated."""

    priority: Priority = "Normal"
    limits: Limit = Limit()


class Admission(Frozen):
    """Which requests are let in, and in which order (`gateway/gate.py`)."""

    total: Limit = Limit()
    """Of all requests together: those above it wait in the queue."""
    each_key: KeyRule = KeyRule()
    """Of a key that `keys` does not name."""
    keys: dict[str, KeyRule] = {}
    """By the key's name."""
    queue_length: int = Field(default=256, ge=0)
    """Requests that wait at a time, at most."""
    queue_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Their bodies together, at most."""
    queue_seconds: float = Field(default=30.0, gt=0)
    """How long one waits, at most."""


class FileDiscovery(Frozen):
    """Engines are those of a file, a JSON list of `Endpoint`, read again whenever it changes: processes on one machine
    that come, go, or change their role. Replace the file (rename over it), never write into it."""

    kind: Literal["File"] = "File"
    path: str


class GatewayContract(Frozen):
    """For `headrace_runtime gateway`: the only way in."""

    kind: Literal["Gateway"] = "Gateway"
    version: Literal["headrace.dev/runtime-v1"] = VERSION
    namespace: str
    deployment: str
    served_name: str
    discovery: Annotated[PodDiscovery | FixedDiscovery | FileDiscovery, Field(discriminator="kind")] = PodDiscovery()
    routing: Literal["PrefixAware", "LeastLoaded", "RoundRobin"] = "LeastLoaded"
    """PrefixAware is LeastLoaded, by tokens, among engines that publish no KV events (`Engine.kv_events`)."""
    min_prompt_tokens: int = 64
    """Shorter prompts go straight to decode. Text is counted as one token per four bytes; token ids exactly."""
    on_transfer_failure: Literal["Recompute", "Fail"] = "Recompute"
    prefill_seconds: float = 30.0
    """A prefill that has not answered by then is given up."""
    transfer_seconds: float = 5.0
    """A decode answer that is to start from transferred KV and has sent no token by then is asked again elsewhere,
    without the transfer: a cut link gives no error for minutes. At the most: where transfers are usually quick, so is
    this (`gateway/patience.py`)."""
    silence_seconds: float = 3.0
    """An engine that owes answers and sends nothing for so long is taken for hung. At the least: long prompts, and
    silences that it ended itself, give it longer (`gateway/patience.py`)."""
    max_retries: int = 3
    """Other engines tried before the first token."""
    engine_wait_seconds: float = 10.0
    """How long a request waits for an engine to come back, where all that there are are out: a restart takes some
    seconds. 0: it is refused at once."""
    resume: Resume | None = Resume()
    """None: a stream whose engine is lost ends with an error."""
    max_connections: int = 10_000
    access_log: bool = True
    """One JSON line per request on standard output: ids, engines, times, status; never a prompt."""
    keys_folder: str | None = None
    """Folder of the API keys, a file each (`gateway/keys.py`); its contents are live. None: no key is asked for."""
    admission: Admission = Admission()
    drain_seconds: float = 60.0
    port: int = GATEWAY_PORT
    admin_port: int = GATEWAY_ADMIN_PORT


LIVE: Final = frozenset({
    "routing", "min_prompt_tokens", "on_transfer_failure", "prefill_seconds", "transfer_seconds", "max_retries",
    "resume", "access_log", "admission",
})  # fmt: skip
"""Fields of `GatewayContract` that change under a running gateway, for requests that come after."""


def live_update(running: GatewayContract, written: GatewayContract) -> GatewayContract:
    """What a gateway goes on with, once the contract that it runs by was written anew."""
    return running.model_copy(update={name: getattr(written, name) for name in LIVE})


def without_live(contract: GatewayContract) -> GatewayContract:
    """The part that needs a new process when it changes: live fields have their defaults."""
    return contract.model_copy(update={name: GatewayContract.model_fields[name].get_default() for name in LIVE})


Contract = Annotated[NodeContract | HeadContract | GatewayContract, Field(discriminator="kind")]
CONTRACT: TypeAdapter[NodeContract | HeadContract | GatewayContract] = TypeAdapter(Contract)


class LocalContract(Frozen):
    """For `headrace_runtime local`: a whole deployment as processes on one machine.

    Addresses and ports of `nodes` are given out by `local`; the gateway's endpoints are filled in from them.
    """

    kind: Literal["Local"] = "Local"
    version: Literal["headrace.dev/runtime-v1"] = VERSION
    head: HeadContract | None = None
    nodes: tuple[NodeContract, ...]
    gateway: GatewayContract


class Place(Frozen):
    """Where one process stands; from the pod's downward API, or from `local`."""

    name: str
    """The pod's name; unique in its namespace."""
    address: str
    """The address other pods reach it at."""
    node: str = ""
    engine_port: int = ENGINE_PORT
    agent_port: int = AGENT_PORT
    kv_transfer_port: int = KV_TRANSFER_PORT
    run_dir: str = "/tmp/headrace"  # noqa: S108 - an emptyDir of the pod
    """Logs, sockets and temporary files of this process; emptied by the agent when it starts."""


Phase = Literal["Waiting", "VerifyingWeights", "StartingEngine", "Ready", "BackOff", "Draining", "Failed"]
Reason = Literal[
    "", "ModelNotFound", "DigestMismatch", "EngineMissing", "RayMissing", "EngineFailed", "EngineUnhealthy",
    "RestartBudgetSpent",
]  # fmt: skip


class WeightsState(Frozen):
    digest: str | None = None
    """`sha256:…` of the folder once it was read whole."""
    bytes_total: int = 0
    bytes_read: int = 0
    verified: bool | None = None
    """None: not decided yet. False stands beside reason DigestMismatch (Enforce) or alone (Warn)."""
    problems: tuple[str, ...] = ()
    """At most ten, a file each."""


class RayState(Frozen):
    joined: bool = False
    version: str | None = None
    restarts: int = 0


class NodeState(Frozen):
    """What an agent answers at `GET /state`, and the operator reads. Never holds a secret, a prompt or a host path."""

    pod: str
    role: RoleName
    """What its engine was made for. The role it has now is its pod's label, which no agent sees: see `Endpoint`."""
    revision: str
    phase: Phase
    reason: Reason = ""
    message: str = ""
    engine_version: str | None = None
    engine_pid: int | None = None
    engine_restarts: int = 0
    since_seconds: float = 0.0
    """Seconds in this phase."""
    ready_seconds: float | None = None
    """Seconds from the engine's start to its first token, of the last start."""
    weights: WeightsState = WeightsState()
    ray: RayState | None = None
    supervisor: str | None = None
    """Id of the Ray actor that last asked after this engine; None when none has within 10 s."""

"""What the operator tells a runtime process: one JSON file, read at start.

The bridge between the two packages, and the only part of the runtime that the operator imports: standard library and
pydantic only, no I/O. The operator writes a contract into a ConfigMap (`desired/contracts.py`); `__main__` reads it,
and each process (`node`, `head`, `gateway`) gets its own kind. Facts of one pod (its name, address, node) are not in
it: many pods share one contract, and `Place` carries those facts. An unknown field or version is an error, never
skipped. What comes back from an agent is in `state.py`.

A gateway looks at its file again while it runs: the fields in `LIVE` change under it, all others need a new process.
"""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from headrace_runtime.contract.base import (
    ADAPTERS_MOUNT,
    AGENT_PORT,
    COMPONENT_LABEL,
    CONTRACT_FILE,
    CONTRACT_MOUNT,
    CREDENTIALS_MOUNT,
    DEPLOYMENT_LABEL,
    DRAINING_ANNOTATION,
    ENGINE_PORT,
    GANG_PORT,
    GATEWAY_ADMIN_PORT,
    GATEWAY_PORT,
    HEAD_ADMIN_PORT,
    KEYS_MOUNT,
    KV_EVENTS_PORT,
    KV_KEY_FILE,
    KV_LAYOUT_LABEL,
    KV_MOUNT,
    KV_REPLAY_PORT,
    KV_TRANSFER_PORT,
    MODEL_CACHE_MOUNT,
    MODEL_MOUNT,
    RANK_LABEL,
    RAY_PORT,
    RAY_TOKEN_FILE,
    REPLAY_FIELD,
    REVISION_LABEL,
    ROLE_LABEL,
    SIGNER_KEY_FILE,
    VERSION,
    Frozen,
    Place,
    RoleName,
)
from headrace_runtime.contract.figures import (
    CanaryFigures,
    DemandFigures,
    GatewayFigures,
    RoleFigures,
)
from headrace_runtime.contract.gang import GangOrder, RankReport
from headrace_runtime.contract.gateway import (
    LIVE,
    Admission,
    CanaryShare,
    Endpoint,
    FileDiscovery,
    FixedDiscovery,
    GatewayContract,
    Hold,
    KeyRule,
    KvEvents,
    Limit,
    PodDiscovery,
    Priority,
    Resume,
    live_update,
    without_live,
)
from headrace_runtime.contract.node import (
    Adapter,
    Backoff,
    Engine,
    HeadContract,
    Integrity,
    KvDisk,
    KvTiers,
    Lora,
    Model,
    ModelCache,
    NodeContract,
    Parallelism,
    RayNode,
    Transfer,
)
from headrace_runtime.contract.options import (
    OWNED_OPTIONS,
    owned_option,
)
from headrace_runtime.contract.sketch import (
    Sketch,
)
from headrace_runtime.contract.state import (
    AdapterState,
    EngineFailure,
    KvReason,
    KvState,
    NodeState,
    Phase,
    RayState,
    Reason,
    WeightsState,
)

__all__ = [
    "ADAPTERS_MOUNT",
    "AGENT_PORT",
    "COMPONENT_LABEL",
    "CONTRACT",
    "CONTRACT_FILE",
    "CONTRACT_MOUNT",
    "CREDENTIALS_MOUNT",
    "DEPLOYMENT_LABEL",
    "DRAINING_ANNOTATION",
    "ENGINE_PORT",
    "GANG_PORT",
    "GATEWAY_ADMIN_PORT",
    "GATEWAY_PORT",
    "HEAD_ADMIN_PORT",
    "KEYS_MOUNT",
    "KV_EVENTS_PORT",
    "KV_KEY_FILE",
    "KV_LAYOUT_LABEL",
    "KV_MOUNT",
    "KV_REPLAY_PORT",
    "KV_TRANSFER_PORT",
    "LIVE",
    "MODEL_CACHE_MOUNT",
    "MODEL_MOUNT",
    "OWNED_OPTIONS",
    "RANK_LABEL",
    "RAY_PORT",
    "RAY_TOKEN_FILE",
    "REPLAY_FIELD",
    "REVISION_LABEL",
    "ROLE_LABEL",
    "SIGNER_KEY_FILE",
    "VERSION",
    "Adapter",
    "AdapterState",
    "Admission",
    "Backoff",
    "CanaryFigures",
    "CanaryShare",
    "Contract",
    "DemandFigures",
    "Endpoint",
    "Engine",
    "EngineFailure",
    "FileDiscovery",
    "FixedDiscovery",
    "Frozen",
    "GangOrder",
    "GatewayContract",
    "GatewayFigures",
    "HeadContract",
    "Hold",
    "Integrity",
    "KeyRule",
    "KvDisk",
    "KvEvents",
    "KvReason",
    "KvState",
    "KvTiers",
    "Limit",
    "LocalContract",
    "Lora",
    "Model",
    "ModelCache",
    "NodeContract",
    "NodeState",
    "Parallelism",
    "Phase",
    "Place",
    "PodDiscovery",
    "Priority",
    "RankReport",
    "RayNode",
    "RayState",
    "Reason",
    "Resume",
    "RoleFigures",
    "RoleName",
    "Sketch",
    "Transfer",
    "WeightsState",
    "live_update",
    "owned_option",
    "without_live",
]

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

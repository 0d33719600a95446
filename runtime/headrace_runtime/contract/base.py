"""What both sides of a contract know by name: labels, ports, where things are mounted."""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

VERSION: Final = "headrace.dev/runtime-v1"

DEPLOYMENT_LABEL = "headrace.dev/deployment"
COMPONENT_LABEL = "headrace.dev/component"
ROLE_LABEL = "headrace.dev/role"
REVISION_LABEL = "headrace.dev/revision"
KV_LAYOUT_LABEL = "headrace.dev/kv-layout"
RANK_LABEL = "headrace.dev/rank"
"""On the pods of an engine that is spread over several: 0 is the one that requests go to."""
DRAINING_ANNOTATION = "headrace.dev/draining"

ENGINE_PORT = 8000
AGENT_PORT = 8090
KV_TRANSFER_PORT = 5600
KV_EVENTS_PORT = 5557
KV_REPLAY_PORT = 5558
GANG_PORT = 29501
"""Where rank 0's workers meet those of the engine's other pods."""
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
ADAPTERS_MOUNT = "/var/run/headrace/adapters"
"""Where the operator mounts the folder that adapters lie in, read-only, in an engine's container."""
KV_MOUNT = "/var/lib/headrace/kv"
"""Where the operator mounts the disk of KV blocks in an engine's container."""
KV_KEY_FILE = "/etc/headrace-kv-key/key"
"""The key that KV blocks are encrypted with at rest, from a Secret."""
MODEL_CACHE_MOUNT = "/var/lib/headrace/models"
"""Where the operator mounts the node's cache of fetched models in an engine's container."""
CREDENTIALS_MOUNT = "/etc/headrace-credentials"
"""The Secret with the credentials of the model's source, a file for each of its keys."""
SIGNER_KEY_FILE = "/etc/headrace-signer/public.pem"
"""The public key that the model's signature is checked with, from a Secret."""

REPLAY_FIELD = "headrace_replay"
"""Member of a request's `vllm_xargs`: ids of the tokens that another engine delivered already. The engine takes them
as its own output: sends them again first, then goes on (`engine/replay.py`). The gateway sets it; no client may."""

RoleName = Literal["serve", "prefill", "decode"]


class Frozen(BaseModel):
    """camelCase on the wire, snake_case in Python; unknown fields refused; values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


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
    rank: int = 0
    """Which of the pods of its engine this is; 0 takes the requests."""
    leader: str = ""
    """`host:port` of rank 0's agent. Empty on rank 0 itself."""
    gang_port: int = GANG_PORT
    run_dir: str = "/tmp/headrace"  # noqa: S108 - an emptyDir of the pod
    """Logs, sockets and temporary files of this process; emptied by the agent when it starts."""

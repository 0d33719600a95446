"""`InferenceDeployment` of `headrace.dev/v1alpha1`: the one source of the CRD, the API page and the parser.

The parts stand in modules named after them; this one puts them together, and the rest of the operator imports it.
Defaults describe what this version does. What it does not act on yet is in the types too and refused by `supported.py`.
"""

from pydantic import Field

from headrace_operator.api.engine import Device, Engine, EnvVar, Executor, Parallelism, Speculative, WeightsOffload
from headrace_operator.api.gateway import Expose, Gateway, Key, Limits, Resume, Routing
from headrace_operator.api.kvcache import (
    ClaimTemplate,
    DeviceCache,
    DiskCache,
    EmptyDir,
    HostCache,
    KVCache,
    ReturnToNode,
    Volume,
)
from headrace_operator.api.lifecycle import (
    GCS,
    Backoff,
    Canary,
    Drain,
    NetworkPolicy,
    Observability,
    Ray,
    Recovery,
    Rollout,
)
from headrace_operator.api.model import Adapter, Integrity, Manifest, Model
from headrace_operator.api.roles import (
    SLO,
    Disaggregation,
    Resources,
    Role,
    RoleChange,
    RoleName,
    RoleScaling,
    Scaling,
    Toleration,
)
from headrace_operator.api.status import (
    CacheNode,
    CachePlacement,
    CanaryStatus,
    CanaryStep,
    Condition,
    InferenceDeploymentStatus,
    KVCacheStatus,
    ModelStatus,
    RayNodes,
    RayStatus,
    RevisionStatus,
    RoleStatus,
    RolloutProgress,
)
from headrace_operator.api.types import Duration, Frozen, LocalRef, Quantity, Timestamp, list_map

__all__ = [
    "GCS",
    "SLO",
    "Adapter",
    "Backoff",
    "CacheNode",
    "CachePlacement",
    "Canary",
    "CanaryStatus",
    "CanaryStep",
    "ClaimTemplate",
    "Condition",
    "Device",
    "DeviceCache",
    "Disaggregation",
    "DiskCache",
    "Drain",
    "Duration",
    "EmptyDir",
    "Engine",
    "EnvVar",
    "Expose",
    "Gateway",
    "HostCache",
    "InferenceDeploymentSpec",
    "InferenceDeploymentStatus",
    "Integrity",
    "KVCache",
    "KVCacheStatus",
    "Key",
    "Limits",
    "LocalRef",
    "Manifest",
    "Model",
    "ModelStatus",
    "NetworkPolicy",
    "Observability",
    "Parallelism",
    "Quantity",
    "Ray",
    "RayNodes",
    "RayStatus",
    "Recovery",
    "Resources",
    "Resume",
    "ReturnToNode",
    "RevisionStatus",
    "Role",
    "RoleChange",
    "RoleName",
    "RoleScaling",
    "RoleStatus",
    "Rollout",
    "RolloutProgress",
    "Routing",
    "Scaling",
    "Speculative",
    "Timestamp",
    "Toleration",
    "Volume",
    "WeightsOffload",
]


class InferenceDeploymentSpec(Frozen):
    """What is wanted."""

    model: Model
    """What is served and how its files are trusted."""
    engine: Engine = Engine()
    """The inference engine of every role."""
    parallelism: Parallelism = Parallelism()
    """How one engine is cut over its accelerators."""
    executor: Executor = "Auto"
    """What starts an engine's workers. Auto: processes of one pod."""
    roles: tuple[Role, ...] = Field(
        default=(Role(name="serve"),), min_length=1, max_length=2, json_schema_extra=list_map("name")
    )
    """One role `serve`, or the two roles `prefill` and `decode`. Default: one `serve` engine."""
    disaggregation: Disaggregation = Disaggregation()
    """How prefill and decode work together."""
    kv_cache: KVCache = KVCache()
    """Where KV blocks live."""
    slo: SLO | None = None
    """Service level objectives, as clients see them at the gateways, for `scaling.mode` SLO. The target of a role with
    `replicas` moves nothing: `ScalingActive` says when it is out of reach."""
    scaling: Scaling = Scaling()
    """Who decides how many engines each role has."""
    gateway: Gateway = Gateway()
    """The only way in."""
    ray: Ray = Ray()
    """The Ray cluster under the engines."""
    rollout: Rollout = Rollout()
    """How a new revision replaces the old one."""
    drain: Drain = Drain()
    """How an engine leaves."""
    recovery: Recovery = Recovery()
    """How failed engines are started again."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who may talk to whom."""
    observability: Observability = Observability()
    """What watches the deployment."""
    paused: bool = False
    """The operator observes and reports but changes nothing."""
    suspend: bool = False
    """Everything is scaled away; state is kept."""

    @property
    def disaggregated(self) -> bool:
        """Prefill and decode are separate engines."""
        return any(role.name == "prefill" for role in self.roles)

"""What the operator reports: the status of an InferenceDeployment.

Written by one place, once per pass. Unknown fields are ignored on reading: a newer operator may have written them.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from headrace_operator.api.types import ATOMIC, Frozen, Timestamp, list_map

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(max_length=1024)]


class Reported(Frozen):
    model_config = ConfigDict(extra="ignore")


class Condition(Reported):
    """One judgement about the deployment, in the form that all of Kubernetes uses."""

    type: Annotated[str, Field(min_length=1, max_length=316)]
    """What is judged."""
    status: Literal["True", "False", "Unknown"]
    """The judgement."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """Why, in a sentence with numbers and what is in the way."""
    observed_generation: Annotated[int, Field(ge=0)]
    """The generation of the spec that was judged."""
    last_transition_time: Timestamp
    """When `status` last changed."""


class RolloutProgress(Reported):
    """How far a rollout has come. Absent while none goes on."""

    revision: Text
    """The revision that is being rolled out."""
    ready: Count = 0
    """The most engines of it that were ready at a time."""
    since: Timestamp
    """When that many were reached first."""


class CanaryStep(Reported):
    """How far a new revision is tried on a share of the requests. Absent while none is."""

    revision: Text
    """The revision that is tried."""
    step: Annotated[int, Field(ge=0, le=100)]
    """The step of spec.rollout.canary, in percent; 100: it was passed."""
    share: Annotated[int, Field(ge=0, le=100)]
    """Percent of the requests that the revision gets now."""
    since: Timestamp | None = None
    """When the step began: its engines were ready."""
    waits: Text = ""
    """What keeps the step from its end, beside time."""
    message: Text = ""
    """What the step before this one showed."""


class RevisionStatus(Reported):
    """Revisions: hashes of the part of the spec that engines are made from."""

    current: Text | None = None
    """The revision that answers."""
    updating: Text | None = None
    """The revision that is being rolled out."""
    failed: Text | None = None
    """The revision of the spec as it is written, where its rollout has failed."""
    reason: Text | None = None
    """Why it failed, in one CamelCase word."""
    message: Text | None = None
    """Why it failed, in a sentence with the pods that were in the way."""
    good: tuple[Text, ...] = Field(default=(), max_length=128, json_schema_extra=ATOMIC)
    """Revisions of the history that were whole and have answered, the last one first."""
    progress: RolloutProgress | None = None
    """How far the rollout has come."""
    canary: CanaryStep | None = None
    """How far the new revision is tried on a share of the requests."""


class AdapterStatus(Reported):
    """One LoRA adapter."""

    name: Text
    """The model name that requests use."""
    digest: Text | None = None
    """sha256:… of the adapter's folder."""
    ready: Count = 0
    """Engines that serve it with this digest."""
    expected: Count = 0
    """Engines that should."""
    message: Text = ""
    """What keeps an engine from it, of one that cannot serve it."""


class ModelStatus(Reported):
    """The weights that engines have loaded."""

    served_name: Text | None = None
    """The model name that requests use."""
    digest: Text | None = None
    """sha256:… of the model's folder."""
    bytes: Count | None = None
    """Size of the model's folder."""
    verified_at: Timestamp | None = None
    """When the files were last compared with the digest."""
    adapters: tuple[AdapterStatus, ...] = Field(default=(), max_length=64, json_schema_extra=list_map("name"))
    """Each LoRA adapter of the spec."""


class RayNodes(Reported):
    """Nodes of the Ray cluster."""

    alive: Count = 0
    """Nodes that Ray sees."""
    expected: Count = 0
    """Nodes that there should be."""


class RayStatus(Reported):
    """The Ray cluster under the engines."""

    address: Text | None = None
    """host:port of the head's control store."""
    version: Text | None = None
    """Ray's version."""
    nodes: RayNodes = RayNodes()
    """Nodes of the Ray cluster."""
    gcs: Text | None = None
    """Where the head keeps its state."""


class RoleStatus(Reported):
    """Engines of one role."""

    name: Literal["serve", "prefill", "decode"]
    """The role."""
    desired: Count = 0
    """Engines that there should be."""
    ready: Count = 0
    """Engines that answer."""
    updated: Count = 0
    """Engines of the newest revision."""
    draining: Count = 0
    """Engines that finish their requests and leave."""
    summary: Text = ""
    """ready/desired."""
    selector: Text | None = None
    """Label selector of the role's pods."""


class CanaryStatus(Reported):
    """The last real request that the operator sent through the gateway."""

    revision: Text
    """The revision that answered."""
    answered_at: Timestamp
    """When it answered."""
    prefill: Text | None = None
    """The engine that computed the prompt, where prefill is a role."""
    decode: Text
    """The engine that wrote the tokens."""


class RoleSize(Reported):
    """How many engines one role is to have."""

    name: Text
    """The role."""
    size: Count
    """Engines."""


class ScalingDecision(Reported):
    """One change of a role's size that was decided, and why."""

    time: Timestamp
    """When."""
    role: Text
    """Whose size."""
    from_: Annotated[Count, Field(alias="from")]
    """Engines that it was to have."""
    to: Count
    """Engines that it is to have."""
    reason: Text
    """Why, in a sentence."""
    swap: bool = False
    """The engines come from the other role, or go to it."""
    inputs: dict[Text, Text] = Field(default={}, max_length=32)
    """The figures that decided, in words."""


class ScalingModel(Reported):
    """What one engine can do, as this deployment was measured. Seconds, to three digits."""

    pace: float
    """Of a computed prompt token."""
    step: float
    """Of a decode step for one request with no context."""
    per_request: float
    """That each request in the batch adds to a step."""
    per_token: float
    """That each token of context in the batch adds to a step."""
    queueing: float
    """What prompts wait for engines, against what the queue's formula says; no unit."""
    startup: float
    """From a new engine's creation until it is ready."""


class ScalingStatus(Reported):
    """How the roles' sizes are decided. Absent while the spec fixes them."""

    sizes: tuple[RoleSize, ...] = Field(default=(), max_length=2, json_schema_extra=list_map("name"))
    """What was decided. With spec.scaling.dryRun it is not carried out: roles[].desired says what is."""
    last_decisions: tuple[ScalingDecision, ...] = Field(default=(), max_length=20, json_schema_extra=ATOMIC)
    """The newest first."""
    model: ScalingModel | None = None
    """What was learnt of the engines."""
    asleep_since: Timestamp | None = None
    """Since when no engine runs because nobody asked."""


class Incident(Reported):
    """Something that failed and was put right."""

    time: Timestamp
    """When it happened."""
    kind: Text
    """What failed: ContainerFailed, OutOfMemory, EngineFailed, EngineUnhealthy (it hung) or RequestsCut (a drain was at
    its deadline)."""
    target: Text
    """The pod."""
    message: Text = ""
    """More of it."""
    recovered_in: Text | None = None
    """How long until the pod was ready again, or was seen to be."""
    requests_cut: Count | None = None
    """Requests that were running or waiting on the engine. Streams among them go on elsewhere where
    spec.gateway.resume allows."""


class RecoveryStatus(Reported):
    """What was put right."""

    incidents: tuple[Incident, ...] = Field(default=(), max_length=20, json_schema_extra=ATOMIC)
    """The newest first."""


class CacheNode(Reported):
    """KV blocks on one node."""

    node: Text
    """The node."""
    bytes: Count = 0
    """Physical bytes used."""
    limit: Count = 0
    """Physical bytes allowed."""
    hit_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of looked-up blocks that were found."""


class CachePlacement(Reported):
    """Where the blocks of one engine are."""

    slot: Text
    """The engine's place in its role."""
    node: Text
    """The node."""


class KVCacheStatus(Reported):
    """KV blocks outside device memory."""

    nodes: tuple[CacheNode, ...] = Field(default=(), max_length=1000, json_schema_extra=list_map("node"))
    """Each node."""
    placement: tuple[CachePlacement, ...] = Field(default=(), max_length=1000, json_schema_extra=list_map("slot"))
    """Each engine."""


class InferenceDeploymentStatus(Reported):
    """What is."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this status speaks of."""
    url: Text | None = None
    """Where clients inside the cluster reach the gateway."""
    revision: RevisionStatus | None = None
    """Revisions."""
    model: ModelStatus | None = None
    """The weights that engines have loaded."""
    ray: RayStatus | None = None
    """The Ray cluster under the engines."""
    roles: tuple[RoleStatus, ...] = Field(default=(), max_length=3, json_schema_extra=list_map("name"))
    """Engines of each role."""
    canary: CanaryStatus | None = None
    """The last real request that the operator sent through the gateway."""
    scaling: ScalingStatus | None = None
    """Decisions about size."""
    recovery: RecoveryStatus | None = None
    """What was put right."""
    kv_cache: KVCacheStatus | None = None
    """KV blocks outside device memory."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=32, json_schema_extra=list_map("type"))
    """Judgements, one per type."""

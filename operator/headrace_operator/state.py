"""The frozen values that the steps of one pass hand to each other. No behaviour beyond small questions about
themselves.

observe → `Observed` → plan → `Plan` → desired → objects → apply → `Outcome` → status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headrace_operator.api.status import ScalingDecision, ScalingModel
from headrace_operator.api.v1alpha1 import CanaryStep, InferenceDeploymentSpec, RolloutProgress
from headrace_runtime.contract import CanaryShare, GatewayFigures, NodeState

Object = dict[str, Any]
"""A Kubernetes object as it is on the wire."""


@dataclass(frozen=True)
class Ref:
    """One InferenceDeployment. The uid tells an object from a later one of the same name."""

    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def owns(self, obj: Object) -> bool:
        """Whether the object's controller is this InferenceDeployment itself, and not only one of its name."""
        owners = obj["metadata"].get("ownerReferences") or []
        return any(owner.get("uid") == self.uid and owner.get("controller") for owner in owners)


@dataclass(frozen=True)
class Defaults:
    """What the operator's settings put where a spec says nothing. Never part of a revision."""

    engine_image: str
    gateway_image: str
    head_image: str | None = None
    """None: the engine's image, which holds Ray too."""
    kv_node_bytes: int | None = None
    """Physical bytes of the KV blocks of all deployments in one folder of a node. None: each has its own limit only."""
    model_cache_path: str = "/var/lib/headrace/models"
    """The folder of a node that models are fetched into."""
    model_cache_bytes: int | None = None
    """Physical bytes of all models in it. None: as much as its disk holds."""


@dataclass(frozen=True)
class Subject:
    """The InferenceDeployment that a pass is about, once its spec was accepted."""

    ref: Ref
    generation: int
    spec: InferenceDeploymentSpec
    defaults: Defaults
    pinned_digest: str | None = None
    """Digest of the model's folder that the first load found. None: not loaded yet, or another model since."""
    pinned_adapters: Mapping[str, str] = field(default_factory=dict)
    """The same of its adapters, by their names."""
    manifest: Mapping[str, str] | None = None
    """SHA-256 of each file of the model, where the spec names a ConfigMap with them."""

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def served_name(self) -> str:
        """The model name in requests."""
        return self.spec.model.served_name or self.ref.name


@dataclass(frozen=True)
class Pod:
    """What matters of one pod that we own: facts read from its object, its agent and its events."""

    name: str
    component: str
    role: str
    """Of an engine, as its label says now. Empty for the head and the gateway."""
    revision: str
    index: int = -1
    """Number of an engine among those made for its role in its revision; -1 where the name has none."""
    born: str = ""
    """Of an engine, the role it was made for, which its name and its contract keep. Empty: the one it has."""
    ready: bool = False
    going: bool = False
    """It has been told to end."""
    ends: datetime | None = None
    """When it is to be gone, if it has been told to end."""
    failed: bool = False
    """Its phase is final: evicted, node lost, out of memory as a whole. It will never run again."""
    ip: str = ""
    node: str = ""
    created: datetime | None = None
    waiting_since: datetime | None = None
    """When it stopped being ready; where it never was, when it was made. None: it is ready, or nobody knows."""
    ready_since: datetime | None = None
    """None: it is not ready, or nobody knows."""
    gang: str = ""
    """Of a pod that is a part of an engine: the engine, by the name of its rank 0. Empty: it is an engine by itself."""
    rank: int = 0
    """Which part of it."""
    ranks: int = 1
    """How many pods that engine has when it is whole."""
    devices: tuple[tuple[str, int], ...] = ()
    """Of an engine's pod, the extended resources that its containers are given, as accelerators are, and how many."""
    kv_slot: str = ""
    """Of an engine, the slot whose KV blocks it reads and writes. Empty: they do not outlive it."""
    returns_to: str = ""
    """The only node that it may start on. Empty: any."""
    terminations: "tuple[Termination, ...]" = ()
    """How its containers failed last, each."""
    blocker: "Blocker | None" = None
    """Why it is not ready, as far as Kubernetes or its agent can say."""
    agent: NodeState | None = None
    """What its agent says; None where it was not asked or gave no answer."""

    @property
    def live(self) -> bool:
        """Counts as one of its role: neither told to end nor dead."""
        return not (self.going or self.failed)

    @property
    def home(self) -> str:
        """The role it was made for."""
        return self.born or self.role

    @property
    def engine(self) -> str:
        """The engine that it is or belongs to, by name."""
        return self.gang or self.name


@dataclass(frozen=True)
class Termination:
    """The last failure of one container."""

    container: str
    reason: str
    """In the kubelet's words: `Error`, `OOMKilled`."""
    exit_code: int
    at: datetime


@dataclass(frozen=True)
class Blocker:
    """One reason why one pod is not ready: a CamelCase constant and a sentence."""

    pod: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.pod}: {self.reason}: {self.message}" if self.message else f"{self.pod}: {self.reason}"


@dataclass(frozen=True)
class Observed:
    """Everything read in one pass. `failure` not None: the reads failed, and all else here is *unknown*, not empty."""

    children: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Objects that we own, by kind and name."""
    foreign: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Objects with our label that somebody else owns."""
    pods: tuple[Pod, ...] = ()
    manifest: Mapping[str, str] | None = None
    """Contents of the ConfigMap with the model's checksums, where the spec names one and it is there."""
    lacks_token: bool = False
    """A pod waits for the Secret with Ray's token."""
    failure: str | None = None

    def engines(self, role: str | None = None) -> tuple[Pod, ...]:
        """The engine pods, of one role or of all, in order of their names. An engine may have several (`gangs.py`)."""
        return tuple(p for p in self.pods if p.component == "engine" and role in (None, p.role))

    @property
    def head(self) -> Pod | None:
        return next((p for p in self.pods if p.component == "head"), None)

    @property
    def gateways(self) -> tuple[Pod, ...]:
        return tuple(p for p in self.pods if p.component == "gateway")


@dataclass(frozen=True)
class Target:
    """What the engines are to be made from now: the spec as it is written, or, once its rollout has failed and it says
    so, the last good revision."""

    spec: InferenceDeploymentSpec
    """The user's, with the words of another revision in their places where that is the target."""
    manifest: Mapping[str, str] | None
    """The checksums that belong to it."""
    revision: str
    reason: str = ""
    """Why the rollout of `failed` has failed: a constant of `conditions.Reason`."""
    message: str = ""
    """The same in a sentence."""
    failed: str | None = None
    """The revision of the spec as it is written, where its rollout has failed."""
    held: bool = False
    """No engine is created: the target itself has failed, and engines of another revision serve."""
    progress: RolloutProgress | None = None
    """How far the rollout of the target has come. None: there is none."""
    records: frozenset[str] = frozenset()
    """Names of the records of the history that stay."""

    @property
    def rolled_back(self) -> bool:
        return self.failed is not None and self.failed != self.revision


@dataclass(frozen=True)
class Sized:
    """How many engines each role is to have, and what this pass decided of it (`plan/sizes.py`)."""

    sizes: Mapping[str, int]
    """To be carried out in this pass: the spec's, or what the status said when the pass began."""
    wished: Mapping[str, int]
    """To be remembered. Other than `sizes` in a dry run, and where this pass decided: the next one carries it out, once
    it is written."""
    decisions: tuple[ScalingDecision, ...] = ()
    """Of this pass."""
    verdict: str = ""
    """A reason of ScalingActive. Empty: sizes were not decided about in this pass, and what was said of them holds."""
    message: str = ""
    model: ScalingModel | None = None
    """What was learnt, where it is worth a write."""
    least: Mapping[str, int] = field(default_factory=dict)
    """Engines of each role that must be there for the deployment to be whole, where its size comes and goes by itself.
    Empty: all of them."""
    asleep_since: datetime | None = None


@dataclass(frozen=True)
class Rest:
    """Whether the deployment sleeps: no engine runs, since nobody asks (`plan/sleep.py`)."""

    since: datetime | None = None
    """To be remembered: since when. None: it does not."""
    carried_out: bool = False
    """No engine shall run in this pass: it slept when the pass began, and nobody has asked since."""
    decisions: tuple[ScalingDecision, ...] = ()
    """Of this pass."""
    took: Mapping[str, str] = field(default_factory=dict)
    """What is known now of how long the last waking took, for the inputs of its decision."""
    waking: bool = False
    """A request woke it, which waits for the engines no longer than it may."""
    look: float | None = None
    """Seconds until it may sleep, or is to be looked at. None: nothing but a request changes anything."""
    listen: Mapping[str, GatewayFigures | None] = field(default_factory=dict)
    """Gateways, by address, whose next request wakes it, and what they said last."""


AWAKE = Rest()


@dataclass(frozen=True)
class Slot:
    """One engine of the current revision that shall exist: a pod, or as many as its role's parallelism says."""

    role: str
    index: int
    born: str = ""
    """The role in its name, where that is another."""
    kv_slot: str = ""
    """As in `Pod`."""
    returns_to: str = ""
    """As in `Pod`."""

    @property
    def home(self) -> str:
        """The role it was or is to be made for."""
        return self.born or self.role


@dataclass(frozen=True)
class Plan:
    """One step. A pod that is neither in `slots` nor in `keep`, nor the head where `head` is true, goes."""

    revision: str
    head_revision: str
    sizes: Mapping[str, int]
    """Engines that each role shall have in the end."""
    slots: tuple[Slot, ...]
    keep: frozenset[str] = frozenset()
    """Names of engine pods of other revisions that stay for now."""
    placement: Mapping[str, str] = field(default_factory=dict)
    """Where the KV blocks of each slot are, by node: of those that have an engine, and of those that an engine may come
    back to."""
    canary: CanaryStep | None = None
    """How far the new revision is tried on a share of the requests; None: it is not."""
    share: CanaryShare | None = None
    """What gateways are told of it."""
    head: bool = True
    """Whether the head's pod of this head revision shall exist now. False: the old one must be gone first."""
    trying: bool = False
    """The canary keeps the rollout from its end."""
    record: int | None = None
    """The number under which the history takes up this revision. None: it is in it."""
    lacking: str = ""
    """Which engines wait for accelerators that others hold, in a sentence. Empty: none does."""


@dataclass(frozen=True)
class Canary:
    """One real request: the revision that must answer it, its length, and whether it must be split.

    A prompt of several KV blocks makes a split deployment really move KV from prefill to decode.
    """

    revision: str
    words: int
    split: bool


@dataclass(frozen=True)
class CanaryAnswer:
    """What came back for the canary. `failure` not None: nothing, or not from the revision that was asked."""

    decode: str = ""
    prefill: str = ""
    failure: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What the pass did, and what stood in its way."""

    applied: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    not_owned: tuple[str, ...] = ()
    """`Kind/name` of objects in our way that belong to somebody else."""
    refused: tuple[str, ...] = ()
    """Objects that the API server will not have, with its reasons: waiting alone does not help."""
    errors: tuple[str, ...] = ()
    """Everything that failed, `refused` included."""


@dataclass(frozen=True)
class Look:
    """When to look again. Waiting is an answer of a pass, not an error."""

    seconds: float | None = None
    """None: at the next resync, or when something wakes the worker."""
    retry: bool = False
    """Something has to be tried again: with growing pauses, as after an error."""
    ended: bool = False
    """The object is gone or going: never again."""
    listen: Mapping[str, GatewayFigures | None] = field(default_factory=dict)
    """Gateways, by address, whose next request is a reason to look, and what they said last (`sleepers.py`). With
    `retry` it is those that it was before."""

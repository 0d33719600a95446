"""Who does the work: `spec.roles`, `spec.disaggregation` and `spec.scaling`."""

from typing import Annotated, Literal

from pydantic import Field

from headrace_operator.api.engine import Engine, Parallelism
from headrace_operator.api.types import ATOMIC, PARTIAL, Duration, FreeForm, Frozen, Quantity

Replicas = Annotated[int, Field(ge=0, le=1000)]
PolicyName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^(builtin|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]
LabelText = Annotated[str, Field(max_length=317)]


class Resources(Frozen):
    """Compute resources of a container. The engine's accelerators are added from `engine.device`."""

    requests: dict[LabelText, Quantity] = Field(default={}, max_length=16)
    """What the scheduler sets aside."""
    limits: dict[LabelText, Quantity] = Field(default={}, max_length=16)
    """What the container may not pass."""


class Toleration(Frozen):
    """A taint that pods of the role accept, as in a pod."""

    key: LabelText | None = None
    """The taint's key. Without one, and with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Equal compares the value as well."""
    value: LabelText | None = None
    """The taint's value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The effect that is accepted. Default: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0)
    """How long a NoExecute taint is accepted. Default: for ever."""


class RoleScaling(Frozen):
    """Bounds for a role whose size is not fixed."""

    min: Replicas = 1
    """Fewest engines. With SLO, 0 is for prefill alone: decode engines then compute all prompts themselves."""
    max: Annotated[int, Field(ge=1, le=1000)]
    """Most engines."""


RoleName = Literal["serve", "prefill", "decode"]


class Role(Frozen):
    """One kind of engine. `serve` computes prompts and answers; `prefill` and `decode` split that work."""

    name: RoleName
    """serve, alone; or prefill and decode, both."""
    replicas: Replicas | None = None
    """Engines of this role. Default: 1, where `scaling` is not given either."""
    scaling: RoleScaling | None = None
    """Bounds between which `spec.scaling` moves this role, with mode SLO or External. Not together with `replicas`: a
    role that has these keeps that size in every mode."""
    engine: Engine | None = Field(default=None, json_schema_extra=PARTIAL)
    """Overrides of `spec.engine` for this role: only the fields given count. `extraArgs` are merged by key,
    `env` by name, objects such as `device` are replaced whole."""
    parallelism: Parallelism | None = Field(default=None, json_schema_extra=PARTIAL)
    """Overrides of `spec.parallelism` for this role; only the fields given count."""
    resources: Resources = Resources()
    """Compute resources of the engine's container."""
    node_selector: dict[LabelText, LabelText] = Field(default={}, max_length=32)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=32, json_schema_extra=ATOMIC)
    """Taints that the role's pods accept."""
    pod_template: FreeForm = Field(default={})
    """A pod template (`metadata`, `spec`) laid over the generated one: volumes, mounts, sidecars, affinity,
    security context. Lists with names are merged by name; the engine's container is named `engine`."""


class RoleChange(Frozen):
    """Engines that change between prefill and decode without being started anew."""

    enabled: bool = False
    """Where one role has an engine too many and the other one too few, an engine changes its role: only routes change,
    and what it computes goes on. Both roles must be alike but for `replicas`. Off: one is ended, another started."""
    min_prefill: int = Field(default=1, ge=0, le=1000)
    """Fewest prefill engines. With 0, decode engines may be left to compute all prompts themselves."""
    min_decode: int = Field(default=1, ge=0, le=1000)
    """Fewest decode engines."""
    cooldown: Duration = Duration("60s")
    """Shortest time between two changes of role for latency targets (`scaling.mode` SLO). Those that an edit of sizes
    makes wait for nothing."""


class Disaggregation(Frozen):
    """How prefill and decode work together. Has no effect on a `serve` role."""

    connector: Literal["NIXL"] = "NIXL"
    """What carries KV blocks from a prefill to a decode engine."""
    min_prompt_tokens: int = Field(default=64, ge=0, le=1_000_000)
    """Shorter prompts go straight to decode."""
    on_transfer_failure: Literal["Recompute", "Fail"] = "Recompute"
    """Recompute: the decode engine computes the prompt itself. Fail: the request fails."""
    role_change: RoleChange = RoleChange()
    """Engines that change their role."""


class ToZero(Frozen):
    """All engines go while nobody asks, and come back with the next request. The gateways stay, and hold requests while
    there is no engine."""

    after: Duration
    """Quiet time after which the engines go; 10s at least."""
    hold_requests: int = Field(default=256, ge=1, le=100_000)
    """Requests that wait at all gateways together while engines come back; more are refused."""
    hold_timeout: Duration = Duration("120s")
    """Longest wait of such a request."""


class Scaling(Frozen):
    """Who decides how many engines each role has."""

    mode: Literal["Fixed", "SLO", "External"] = "Fixed"
    """Fixed: `roles[].replicas`. SLO: the operator, from `spec.slo` and what clients see, every 30 seconds. External:
    whoever writes the role's scale. SLO and External move roles with `roles[].scaling` alone."""
    max_accelerators: int | None = Field(default=None, ge=1, le=100_000)
    """Accelerators that the engines of all roles hold together, in every mode: starting, serving and still ending ones,
    and those of a rollout. Never exceeded, not even half-way through a change: what has no room waits until others are
    gone, and `Progressing` says so. Where `rollout.maxUnavailable` is 0, one engine of each role is set aside for
    rollouts. Default: no cap."""
    to_zero: ToZero | None = None
    """Scale everything away while nobody asks."""
    dry_run: bool = False
    """Decisions are written into the status and not carried out: engines stay as many as they are, within bounds and
    cap."""
    policy: PolicyName = "builtin"
    """builtin, or package.module:function, which the operator's settings must list. Where it fails, builtin answers."""


class LatencyTarget(Frozen):
    """A latency that a share of the requests must keep."""

    target: Duration
    """The latency."""
    percentile: int = Field(default=95, ge=1, le=99)
    """The share of the requests that are to keep it, in percent."""


class SLO(Frozen):
    """Service level objectives, as clients see them at the gateways. For `scaling.mode` SLO, which keeps them with as
    few engines as it can."""

    ttft: LatencyTarget | None = None
    """Time to first token, waiting included. Moves `prefill`, or `serve`."""
    itl: LatencyTarget | None = None
    """Time between two tokens of an answer. Moves `decode`, or `serve`."""

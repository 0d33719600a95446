"""How a deployment changes, heals and is watched: ray, rollout, drain, recovery, networkPolicy, observability."""

from typing import Annotated, Literal

from pydantic import Field

from headrace_operator.api.kvcache import Volume
from headrace_operator.api.roles import Resources
from headrace_operator.api.types import ATOMIC, Duration, FreeForm, Frozen, LocalRef

Percent = Annotated[int, Field(ge=1, le=100)]
Address = Annotated[str, Field(min_length=3, max_length=253, pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}$")]


class Redis(Frozen):
    """A Redis that keeps the state of Ray's head."""

    address: Address
    """host:port."""
    password_secret_ref: LocalRef | None = None
    """A Secret with the key `password`."""


class GCS(Frozen):
    """Where Ray's head keeps its state."""

    backend: Literal["RocksDB", "Redis", "Memory"] = "RocksDB"
    """RocksDB and Redis outlive the head; Memory does not."""
    volume: Volume | None = None
    """Where RocksDB keeps its files. Default: an emptyDir, which outlives a restart of the head's container only."""
    redis: Redis | None = None
    """The Redis, where that is the backend."""


class Ray(Frozen):
    """The Ray cluster under the engines."""

    head_resources: Resources = Resources()
    """Compute resources of the head's container."""
    head_pod_template: FreeForm = Field(default={})
    """A pod template (`metadata`, `spec`) laid over the generated one. The container is named `head`."""
    gcs: GCS = GCS()
    """Where the head keeps its state."""


class Canary(Frozen):
    """A new revision gets its share of the traffic in steps."""

    steps: tuple[Percent, ...] = Field(default=(10, 50, 100), min_length=1, max_length=10, json_schema_extra=ATOMIC)
    """Shares in percent, rising; the last is 100."""
    interval: Duration = Duration("5m")
    """Time at each step."""


class Rollout(Frozen):
    """How a new revision replaces the old one, in every role."""

    strategy: Literal["Rolling"] = "Rolling"
    """Rolling: engine by engine, within the bounds below."""
    max_surge: int = Field(default=1, ge=0, le=1000)
    """Engines of a role above its size during a change; fewer where `scaling.maxAccelerators` has no room."""
    max_unavailable: int = Field(default=0, ge=0, le=1000)
    """Engines of a role below its size during a change."""
    canary: Canary | None = None
    """Give the new revision its share of the traffic in steps."""
    auto_rollback: bool = False
    """Go back to the last good revision when a rollout has failed. The spec stays as it is written."""
    progress_deadline: Duration | None = None
    """Time in which one more engine must become ready, or the rollout has failed. Default: no deadline."""
    history_limit: int = Field(default=5, ge=0, le=100)
    """Earlier revisions that are kept to go back to, beside those in use and the last good one."""
    restarted_at: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Any text. A new one makes one rollout of an unchanged spec, as `headrace restart` does."""


class Drain(Frozen):
    """How an engine leaves."""

    timeout: Duration = Duration("300s")
    """How long running requests may go on before the engine is ended. A gateway has its own,
    `spec.gateway.drainTimeout`."""


class Backoff(Frozen):
    """Waiting times between restarts: each twice the one before."""

    base: Duration = Duration("5s")
    """The first wait."""
    max: Duration = Duration("300s")
    """The longest wait."""


class Recovery(Frozen):
    """How failed engines are started again."""

    backoff: Backoff = Backoff()
    """Waiting times between restarts."""
    max_restarts: int = Field(default=10, ge=0, le=1000)
    """Restarts of an engine that never became ready in between, after which it is left alone and reported."""


class NetworkPolicy(Frozen):
    """Who may talk to whom."""

    mode: Literal["Off", "DefaultDeny"] = "Off"
    """DefaultDeny: only the connections that the deployment needs.
    Write "Off" in quotes: YAML reads a bare Off as false."""


class Tracing(Frozen):
    """OpenTelemetry traces."""

    endpoint: Address
    """host:port of an OTLP receiver."""
    sampler: float = Field(default=0.1, ge=0, le=1)
    """Share of requests that are traced."""


class Observability(Frozen):
    """What watches the deployment."""

    pod_monitor: bool = False
    """Create a PodMonitor for Prometheus' operator."""
    tracing: Tracing | None = None
    """Send traces."""

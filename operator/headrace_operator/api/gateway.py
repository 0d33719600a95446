"""The way in: `spec.gateway`."""

from typing import Literal

from pydantic import Field

from headrace_operator.api.roles import Resources
from headrace_operator.api.types import FreeForm, Frozen, LocalRef


class Limits(Frozen):
    """What the gateway lets in, for each key and for all together."""

    max_concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests at a time."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Requests in any minute."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and answer tokens in any minute."""


class Resume(Frozen):
    """Streams that go on elsewhere when their engine is lost."""

    enabled: bool = False
    """Continue a broken stream on another engine, without a token lost or repeated."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Engines that a request may be moved to."""


class TLS(Frozen):
    """Encryption of the public port."""

    secret_ref: LocalRef
    """A Secret of type kubernetes.io/tls."""


class Routing(Frozen):
    """How an engine is chosen for a request."""

    policy: Literal["PrefixAware", "LeastLoaded", "RoundRobin"] = "LeastLoaded"
    """PrefixAware weighs what an engine holds of the prompt against what waits for it, by KV events that engines then
    publish: to or from it is a change of the engines. LeastLoaded: the engine with the fewest requests."""


class Empty(Frozen):
    """Chosen by being there."""


class Expose(Frozen):
    """How the gateway is reached from outside the cluster. Exactly one field."""

    http_route: FreeForm | None = None
    """The `spec` of a Gateway API HTTPRoute; its backend is filled in."""
    ingress: FreeForm | None = None
    """The `spec` of an Ingress; its backend is filled in."""
    load_balancer: Empty | None = None
    """The Service becomes one of type LoadBalancer."""


class Gateway(Frozen):
    """The only way in: an OpenAI-compatible server in front of the engines."""

    replicas: int = Field(default=2, ge=1, le=100)
    """Gateway pods. Two outlive the loss of a node."""
    resources: Resources = Resources()
    """Compute resources of the gateway's container."""
    pod_template: FreeForm = Field(default={})
    """A pod template (`metadata`, `spec`) laid over the generated one. The container is named `gateway`."""
    api_keys_secret_ref: LocalRef | None = None
    """A Secret whose values are the keys that clients may use. Default: no key is asked for."""
    limits: Limits = Limits()
    """What the gateway lets in."""
    resume: Resume = Resume()
    """Streams that go on elsewhere when their engine is lost."""
    tls: TLS | None = None
    """Encrypt the public port."""
    routing: Routing = Routing()
    """How an engine is chosen for a request."""
    expose: Expose | None = None
    """How the gateway is reached from outside. Default: a Service inside the cluster."""

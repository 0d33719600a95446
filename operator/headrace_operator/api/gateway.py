"""The way in: `spec.gateway`."""

from typing import Annotated, Literal

from pydantic import Field

from headrace_operator.api.roles import Resources
from headrace_operator.api.types import Duration, FreeForm, Frozen, LocalRef, list_map

EntryName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-zA-Z0-9_-][-._a-zA-Z0-9]*$")]


class Limits(Frozen):
    """What is let in. Default: no limit."""

    max_concurrent: int | None = Field(default=None, ge=1, le=1_000_000)
    """Requests at a time. More wait in the queue."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Requests per minute. So many may come at once; the budget refills evenly."""
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000_000)
    """Tokens of prompts and answers per minute. A request is charged with an estimate of its prompt when it comes, and
    with the rest when it is over; what was overdrawn is waited for."""


class Queue(Frozen):
    """Requests that wait for their turn: by priority, in turn between keys, of each key as they came."""

    max_length: int = Field(default=256, ge=0, le=1_000_000)
    """Requests that wait at each gateway pod. Of more, the newest of the key with most waiting is answered 503 with
    Retry-After, or 429 where the key's own limit is the cause."""
    max_wait: Duration = Duration("30s")
    """Longest wait. After it a request is answered likewise."""


class AllLimits(Limits):
    """What is let in, of all requests together and of each key."""

    per_key: Limits | None = None
    """Of each key that `keys` says nothing else about. Above a rate the key's requests are answered 429 with
    Retry-After."""
    queue: Queue = Queue()
    """Requests that wait while all together, or those of their key, are at their limit."""


class Key(Frozen):
    """How the requests of one API key are treated."""

    name: EntryName
    """The key's name: of an entry of the Secret."""
    priority: Literal["High", "Normal", "Low"] = "Normal"
    """Who waits with a higher priority goes first. Apart from `priority` in a request, which the engine reads."""
    limits: Limits = Limits()
    """Limits of this key. What is not given is as in limits.perKey."""


class Resume(Frozen):
    """Streams that go on elsewhere when their engine is lost."""

    enabled: bool = True
    """Continue a broken stream on another engine, without a token lost or repeated."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Losses of one stream after which it ends with an error."""


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
    """A Secret with the keys that clients may use, as `Authorization: Bearer KEY`. An entry's name is the key's name,
    and it holds the key, or `sha256:` and the key's SHA-256 in hex. Changes hold within about a minute, without a
    restart. Default: no key is asked for."""
    limits: AllLimits = AllLimits()
    """What is let in of all requests together; above it they wait in the queue. Each of N gateway pods gives out an Nth
    of every limit, here and below. Changes hold within about a minute, without a restart."""
    keys: tuple[Key, ...] = Field(default=(), max_length=1000, json_schema_extra=list_map("name"))
    """How the requests of single keys are treated."""
    drain_timeout: Duration = Duration("60s")
    """How long answers under way may go on when their gateway pod goes: when it is replaced, evicted, or deleted with
    the whole deployment. For streams that may take longer, as much as `spec.drain.timeout`."""
    resume: Resume = Resume()
    """Streams that go on elsewhere when their engine is lost."""
    tls: TLS | None = None
    """Encrypt the public port."""
    routing: Routing = Routing()
    """How an engine is chosen for a request."""
    expose: Expose | None = None
    """How the gateway is reached from outside. Default: a Service inside the cluster."""

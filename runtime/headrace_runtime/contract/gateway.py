"""What a gateway is told, and which of it changes while it runs."""

from typing import Annotated, Final, Literal

from pydantic import Field

from headrace_runtime.contract.base import GATEWAY_ADMIN_PORT, GATEWAY_PORT, VERSION, Frozen, RoleName


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
    stays: bool = False
    """It drains, and takes requests for as long as no other engine of its role does."""
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
    keys: dict[str, KeyRule] = Field(default_factory=dict)
    """By the key's name."""
    queue_length: int = Field(default=256, ge=0)
    """Requests that wait at a time, at most."""
    queue_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Their bodies together, at most."""
    queue_seconds: float = Field(default=30.0, gt=0)
    """How long one waits, at most."""


class Hold(Frozen):
    """What waits while there is no engine at all, because the deployment sleeps, changes or is down."""

    requests: int = Field(default=256, ge=1)
    """That wait at a time, at most. Their bodies together are bounded by `Admission.queue_bytes`."""
    seconds: float = Field(default=120.0, gt=0)
    """How long one waits for an engine, at most. Once there is one, it waits for its turn as any other."""


class FileDiscovery(Frozen):
    """Engines are those of a file, a JSON list of `Endpoint`, read again whenever it changes: processes on one machine
    that come, go, or change their role. Replace the file (rename over it), never write into it."""

    kind: Literal["File"] = "File"
    path: str


class CanaryShare(Frozen):
    """How much of the traffic goes to a revision that is being tried (`gateway/share.py`)."""

    revision: str
    percent: int = Field(ge=0, le=100)
    """Of requests. The others go to any other revision."""
    step: str = ""
    """Names the step: `GET /figures` tells what was counted since another one."""


class GatewayContract(Frozen):
    """For `headrace_runtime gateway`: the only way in."""

    kind: Literal["Gateway"] = "Gateway"
    version: Literal["headrace.dev/runtime-v1"] = VERSION
    namespace: str
    deployment: str
    served_name: str
    adapters: tuple[str, ...] = ()
    """Model names beside `served_name`: LoRA adapters, which some engines may have yet to load."""
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
    kv_sharing: Literal["All", "Key"] = "All"
    """Key: requests share KV blocks only with those of the same API key (`cache_salt`)."""
    keys_folder: str | None = None
    """Folder of the API keys, a file each (`gateway/keys.py`); its contents are live. None: no key is asked for."""
    admission: Admission = Admission()
    hold: Hold | None = None
    """None: without an engine requests are refused."""
    canary: CanaryShare | None = None
    """None: requests go to engines of all revisions alike."""
    drain_seconds: float = 60.0
    port: int = GATEWAY_PORT
    admin_port: int = GATEWAY_ADMIN_PORT


LIVE: Final = frozenset({
    "routing", "min_prompt_tokens", "on_transfer_failure", "prefill_seconds", "transfer_seconds", "max_retries",
    "resume", "access_log", "admission", "adapters", "kv_sharing", "hold", "canary",
})  # fmt: skip
"""Fields of `GatewayContract` that change under a running gateway, for requests that come after."""


def live_update(running: GatewayContract, written: GatewayContract) -> GatewayContract:
    """What a gateway goes on with, once the contract that it runs by was written anew."""
    return running.model_copy(update={name: getattr(written, name) for name in LIVE})


def without_live(contract: GatewayContract) -> GatewayContract:
    """The part that needs a new process when it changes: live fields have their defaults."""
    return contract.model_copy(update={name: GatewayContract.model_fields[name].get_default() for name in LIVE})

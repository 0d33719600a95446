"""What an agent answers at `GET /state`, and the operator reads. Never a secret, a prompt or a path of a node."""

from typing import Literal

from headrace_runtime.contract.base import Frozen, RoleName

Phase = Literal[
    "Waiting", "FetchingWeights", "VerifyingWeights", "StartingEngine", "Ready", "BackOff", "Draining", "Failed"
]
Reason = Literal[
    "", "ModelNotFound", "FetchFailed", "CacheTooSmall", "UnsafeFiles", "FilesDamaged", "SignatureInvalid",
    "DigestMismatch",
    "EngineMissing", "EngineTooOld", "ConnectorMissing", "LoaderMissing", "RayMissing",
    "EngineFailed", "EngineUnhealthy", "RestartBudgetSpent", "RanksMissing", "RankLost",
]  # fmt: skip


class WeightsState(Frozen):
    digest: str | None = None
    """`sha256:…` of the folder once it was read whole."""
    bytes_total: int = 0
    bytes_read: int = 0
    verified: bool | None = None
    """None: not decided yet. With Enforce no engine runs on files for which it is False; with Warn it does."""
    reason: Reason = ""
    """Why it is False: UnsafeFiles, FilesDamaged, SignatureInvalid or DigestMismatch."""
    problems: tuple[str, ...] = ()
    """At most ten, a file each."""
    notes: tuple[str, ...] = ()
    """What is no problem and should be known, such as code that the engine runs from the model's folder."""
    fetched: int = 0
    """Bytes that came from the source so far, of `fetch_total`; both 0 where nothing is fetched."""
    fetch_total: int = 0
    verified_at: float | None = None
    """When the files were last read and found right, in seconds since the epoch."""


KvReason = Literal[
    "", "DiskFull", "DiskReadOnly", "DiskFailing", "DiskSlow", "DiskGone", "DiskDenied", "DiskUnmeasurable",
    "BudgetTooSmall", "KeyMissing", "WeightsUnverified",
]  # fmt: skip


class KvState(Frozen):
    """What an engine's disk tier says of itself. Counters are since the engine's start."""

    ready: bool
    reason: KvReason = ""
    message: str = ""
    """Names no path of a node, and stays as it is while the reason does: every new one is a write of the status."""
    bytes_used: int = 0
    """Physical, of the whole deployment on this node."""
    bytes_limit: int = 0
    blocks: int = 0
    """Readable with this engine's model and layout."""
    looked_up: int = 0
    found: int = 0
    stored: int = 0
    loaded: int = 0
    damaged: int = 0
    """Blocks whose checksum was wrong: never served."""
    evicted: int = 0
    dropped: int = 0
    """Blocks that were not stored, as the disk could not follow or was not well."""


class AdapterState(Frozen):
    """One adapter of the contract."""

    name: str
    digest: str | None = None
    """`sha256:…` of its folder once it was read whole."""
    served: bool = False
    """The engine answers by this name, with the files of this digest."""
    problem: str = ""
    """Why it is not, or, with policy Warn, what its files should have been. Names no path of a node."""


class RayState(Frozen):
    joined: bool = False
    version: str | None = None
    restarts: int = 0


class EngineFailure(Frozen):
    """An engine that ended by itself, or hung and was ended."""

    at: float
    """Seconds since the epoch."""
    reason: Reason


class NodeState(Frozen):
    """What an agent answers at `GET /state`, and the operator reads. Never holds a secret, a prompt or a host path."""

    pod: str
    role: RoleName
    """What its engine was made for. The role it has now is its pod's label, which no agent sees: see `Endpoint`."""
    revision: str
    phase: Phase
    reason: Reason = ""
    message: str = ""
    engine_version: str | None = None
    engine_pid: int | None = None
    engine_restarts: int = 0
    failure: EngineFailure | None = None
    """The last one; None: there was none."""
    staying: bool = False
    """Draining, and it takes requests all the same, until its replacement does."""
    cut: int = 0
    """Requests that were running or waiting when the time of a drain was over."""
    cut_at: float | None = None
    """When that was, in seconds since the epoch; None where none was cut."""
    since_seconds: float = 0.0
    """Seconds in this phase."""
    ready_seconds: float | None = None
    """Seconds from the engine's start to its first token, of the last start."""
    weights: WeightsState = WeightsState()
    kv: KvState | None = None
    """None: no disk tier, or it has said nothing yet."""
    adapters: tuple[AdapterState, ...] = ()
    """In the order of the contract."""
    ray: RayState | None = None
    supervisor: str | None = None
    """Id of the Ray actor that last asked after this engine; None when none has within 10 s."""

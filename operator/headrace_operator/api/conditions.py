"""Condition types, their reasons, and the one function that writes a condition.

A reason is a constant of this file: users script against reasons, so they are part of the API. Negative reasons stand
beside the positive one that ends them. Pure; `status.py` judges, this module only records.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final, Literal

from headrace_operator.api.status import Condition

Truth = Literal["True", "False", "Unknown"]

ACCEPTED: Final = "Accepted"
MODEL_READY: Final = "ModelReady"
WEIGHTS_VERIFIED: Final = "WeightsVerified"
RAY_READY: Final = "RayReady"
ROLES_READY: Final = "RolesReady"
GATEWAY_READY: Final = "GatewayReady"
KV_CACHE_READY: Final = "KVCacheReady"
SCALING_ACTIVE: Final = "ScalingActive"
PROGRESSING: Final = "Progressing"
DEGRADED: Final = "Degraded"
READY: Final = "Ready"

TYPES: Final = (
    ACCEPTED,
    MODEL_READY,
    WEIGHTS_VERIFIED,
    RAY_READY,
    ROLES_READY,
    GATEWAY_READY,
    KV_CACHE_READY,
    SCALING_ACTIVE,
    PROGRESSING,
    DEGRADED,
    READY,
)
"""All of them, in the order in which a deployment passes them. Every object carries all, from the first pass."""


class Reason:
    """Why a condition is as it is."""

    # Any condition: nothing can be said yet.
    NOT_OBSERVED: Final = "NotObserved"
    PAUSED: Final = "Paused"
    SUSPENDED: Final = "Suspended"
    NOT_CONFIGURED: Final = "NotConfigured"
    ASLEEP: Final = "Asleep"
    WAKING: Final = "Waking"

    # Accepted: the spec, and whether what it asks for may be made.
    VALID: Final = "Valid"
    INVALID_SPEC: Final = "InvalidSpec"
    NOT_SUPPORTED: Final = "NotSupported"
    NOT_OWNED: Final = "NotOwned"
    REFUSED_BY_CLUSTER: Final = "RefusedByCluster"

    # ModelReady and WeightsVerified.
    MODEL_FOUND: Final = "ModelFound"
    MODEL_NOT_FOUND: Final = "ModelNotFound"
    MANIFEST_NOT_FOUND: Final = "ManifestNotFound"
    FETCHING: Final = "Fetching"
    FETCH_FAILED: Final = "FetchFailed"
    CACHE_TOO_SMALL: Final = "CacheTooSmall"
    LOADING: Final = "Loading"
    LOADED: Final = "Loaded"
    VERIFYING: Final = "Verifying"
    VERIFIED: Final = "Verified"
    DIGEST_PINNED: Final = "DigestPinned"
    UNSAFE_FILES: Final = "UnsafeFiles"
    FILES_DAMAGED: Final = "FilesDamaged"
    SIGNATURE_INVALID: Final = "SignatureInvalid"
    DIGEST_MISMATCH: Final = "DigestMismatch"
    NOT_CHECKED: Final = "NotChecked"

    # Pods of any kind.
    PODS_NOT_READY: Final = "PodsNotReady"
    UNSCHEDULABLE: Final = "Unschedulable"
    IMAGE_PULL_FAILED: Final = "ImagePullFailed"
    VOLUME_NOT_MOUNTED: Final = "VolumeNotMounted"
    SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105 - a reason
    CONTAINER_FAILED: Final = "ContainerFailed"

    # RayReady.
    HEAD_READY: Final = "HeadReady"
    HEAD_NOT_READY: Final = "HeadNotReady"
    NODES_JOINED: Final = "NodesJoined"
    NODES_MISSING: Final = "NodesMissing"

    # RolesReady: the engines.
    ENGINES_READY: Final = "EnginesReady"
    ENGINES_STARTING: Final = "EnginesStarting"
    ENGINE_MISSING: Final = "EngineMissing"
    ENGINE_TOO_OLD: Final = "EngineTooOld"
    CONNECTOR_MISSING: Final = "ConnectorMissing"
    LOADER_MISSING: Final = "LoaderMissing"
    RAY_MISSING: Final = "RayMissing"
    RUNTIME_MISSING: Final = "RuntimeMissing"
    ENGINE_FAILED: Final = "EngineFailed"
    ENGINE_UNHEALTHY: Final = "EngineUnhealthy"
    RESTART_BUDGET_SPENT: Final = "RestartBudgetSpent"
    RANKS_MISSING: Final = "RanksMissing"
    RANK_LOST: Final = "RankLost"
    DRAINING: Final = "Draining"
    SCALED_TO_ZERO: Final = "ScaledToZero"

    # GatewayReady.
    GATEWAY_ANSWERS: Final = "GatewayAnswers"
    GATEWAY_NOT_READY: Final = "GatewayNotReady"

    # KVCacheReady: where blocks are kept, or why an engine keeps none on its disk (it serves on without).
    IN_MEMORY: Final = "InMemory"
    ON_DISK: Final = "OnDisk"
    OPENING: Final = "Opening"
    DISK_FULL: Final = "DiskFull"
    DISK_READ_ONLY: Final = "DiskReadOnly"
    DISK_FAILING: Final = "DiskFailing"
    DISK_SLOW: Final = "DiskSlow"
    DISK_GONE: Final = "DiskGone"
    DISK_DENIED: Final = "DiskDenied"
    DISK_UNMEASURABLE: Final = "DiskUnmeasurable"
    BUDGET_TOO_SMALL: Final = "BudgetTooSmall"
    KEY_MISSING: Final = "KeyMissing"
    WEIGHTS_UNVERIFIED: Final = "WeightsUnverified"

    # ScalingActive.
    SIZED: Final = "Sized"
    FIGURES_MISSING: Final = "FiguresMissing"
    TARGET_OUT_OF_REACH: Final = "TargetOutOfReach"
    CAP_TOO_SMALL: Final = "CapTooSmall"
    POLICY_FAILED: Final = "PolicyFailed"
    EXTERNAL: Final = "External"
    SCALES_TO_ZERO: Final = "ScalesToZero"

    # ScalingLimited of an InferenceRole, in the words of a HorizontalPodAutoscaler.
    DESIRED_WITHIN_RANGE: Final = "DesiredWithinRange"
    TOO_MANY_REPLICAS: Final = "TooManyReplicas"
    TOO_FEW_REPLICAS: Final = "TooFewReplicas"

    # Progressing.
    UP_TO_DATE: Final = "UpToDate"
    CREATING: Final = "Creating"
    ROLLING_OUT: Final = "RollingOut"
    SCALING: Final = "Scaling"

    # Progressing and Degraded: a rollout has failed.
    PROGRESS_DEADLINE_EXCEEDED: Final = "ProgressDeadlineExceeded"
    CANARY_REJECTED: Final = "CanaryRejected"

    # Degraded.
    AS_WANTED: Final = "AsWanted"
    END_OVERDUE: Final = "EndOverdue"
    VERSIONS_DIFFER: Final = "VersionsDiffer"
    BELOW_WANTED: Final = "BelowWanted"
    ADAPTER_FAILED: Final = "AdapterFailed"

    # Ready: a real request through the gateway, answered by the current revision in every role.
    ANSWERED: Final = "Answered"
    AWAITING_CANARY: Final = "AwaitingCanary"
    CANARY_FAILED: Final = "CanaryFailed"

    # The operator itself.
    APPLY_FAILED: Final = "ApplyFailed"
    OBSERVE_FAILED: Final = "ObserveFailed"
    INTERNAL_ERROR: Final = "InternalError"

    # Of Events alone.
    CANARY_PASSED: Final = "CanaryPassed"
    SCALED_UP: Final = "ScaledUp"
    SCALED_DOWN: Final = "ScaledDown"
    ROLE_CHANGED: Final = "RoleChanged"
    SLEPT: Final = "Slept"
    WOKEN: Final = "Woken"


def initial(generation: int, now: datetime) -> tuple[Condition, ...]:
    """Every condition, Unknown: what an object carries before anything was looked at."""
    return tuple(
        Condition(
            type=kind,
            status="Unknown",
            reason=Reason.NOT_OBSERVED,
            message="Not looked at yet.",
            observed_generation=generation,
            last_transition_time=now,
        )
        for kind in TYPES
    )


def set_condition(conditions: Iterable[Condition], new: Condition) -> tuple[Condition, ...]:
    """The conditions with `new` in its place, all types of `TYPES` first and in that order.

    `new.last_transition_time` is the time of this judgement: it is kept only where the status differs from the one
    before, so that a transition time moves on a flip and on nothing else.
    """
    known = {condition.type: condition for condition in conditions}
    before = known.get(new.type)
    if before is not None and before.status == new.status:
        new = new.model_copy(update={"last_transition_time": before.last_transition_time})
    known[new.type] = new
    order = {kind: place for place, kind in enumerate(TYPES)}
    return tuple(sorted(known.values(), key=lambda condition: order.get(condition.type, len(order))))

"""Revisions: short hashes of what the user wrote in the parts of a spec that a process is made from. Pure.

Only the user's words count, never what the builders make of them, and defaults do not count as words: a new version of
the operator, with new fields or other rendering, restarts no pod. Sizes are not in a revision, nor is what the gateway
alone reads. Two specs that differ in the order of their roles are the same.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from headrace_operator.api.types import Frozen
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec

LENGTH = 10
KV_UNSEEN: Final = {"sharing": True, "disk": {"return_to_node": True, "volume": {"claim_template": {"size"}}}}
"""What no engine is told of its KV tiers: who shares blocks is the gateway's business, the rest ours."""


def engine_revision(spec: InferenceDeploymentSpec, manifest: Mapping[str, str] | None = None) -> str:
    """The revision of all engine pods. One for all roles, since only engines of one revision work together.

    `manifest` holds the model's checksums by path. They are the user's words too, though in a ConfigMap: an agent
    checks the weights once, so that corrected checksums need new pods.
    """
    words: dict[str, Any] = {
        "model": _words(spec.model, exclude={"adapters"}),  # loaded and unloaded under a running engine
        "engine": _words(spec.engine),
        "parallelism": _words(spec.parallelism),
        "executor": spec.executor,
        "kvCache": _words(spec.kv_cache, exclude=KV_UNSEEN),
        "drain": _words(spec.drain),
        "recovery": _words(spec.recovery),
        "roles": {role.name: _role_words(role) for role in spec.roles},
        "checksums": dict(manifest or {}),
        "kvEvents": spec.gateway.routing.policy == "PrefixAware",  # engines are started to publish them
        "restartedAt": spec.rollout.restarted_at,
    }
    if spec.disaggregated:
        words["disaggregation"] = _words(spec.disaggregation, include={"connector", "on_transfer_failure"})
    return _digest(words)


def head_revision(spec: InferenceDeploymentSpec) -> str:
    """The revision of the Ray head's pod."""
    return _digest({"ray": _words(spec.ray), "image": spec.engine.image})


def _role_words(role: Frozen) -> dict[str, Any]:
    words = _words(role, exclude={"name", "replicas", "scaling", "engine", "parallelism"})
    # An override counts although it says what would be the default: what it overrides may say something else.
    for part in ("engine", "parallelism"):
        override: Frozen | None = getattr(role, part)
        if override is not None:
            words[part] = override.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return words


def _words(part: Frozen, **which: Any) -> dict[str, Any]:
    return part.model_dump(mode="json", by_alias=True, exclude_defaults=True, **which)


def _digest(words: dict[str, Any]) -> str:
    """Empty parts are left out, so that a part added to the hash later changes no revision that does not use it."""
    said = {name: value for name, value in words.items() if value}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]

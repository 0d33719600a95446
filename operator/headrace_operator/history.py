"""The history of revisions: what a ControllerRevision keeps of one, and the spec that makes its engines again. Pure.

A record holds the user's words that count into a revision, never what was made of them, and never changes: a newer
operator reads it as it reads a spec. `plan.target` goes back by it, `desired.history` writes it, `headrace history` and
`headrace rollback` show and use it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from headrace_operator import names
from headrace_operator.api.problems import Problem
from headrace_operator.api.rules import check
from headrace_operator.api.types import Frozen
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, KVCache, Role
from headrace_operator.state import Object

KIND: Final = "ControllerRevision"
WHOLE: Final = ("model", "engine", "parallelism", "executor", "kv_cache", "drain", "recovery")
"""Parts of a spec that a record keeps as they are. Of others it keeps the fields that count into a revision."""


@dataclass(frozen=True)
class Record:
    """One revision of the history."""

    name: str
    """Of the ControllerRevision."""
    revision: str
    number: int
    """Counts revisions of one deployment in the order of their first appearance."""
    words: Mapping[str, Any]
    checksums: Mapping[str, str] | None
    """Of the model's files, where the spec named a ConfigMap with them."""
    created: str
    """As Kubernetes writes it."""


def records(objects: Iterable[Object]) -> dict[str, Record]:
    """The records among a deployment's children, by revision, in the order of their numbers."""
    found = [_record(obj) for obj in objects if obj["kind"] == KIND]
    return {one.revision: one for one in sorted(found, key=lambda one: (one.number, one.revision))}


def _record(obj: Object) -> Record:
    meta, data = obj["metadata"], obj.get("data") or {}
    return Record(
        name=meta["name"],
        revision=(meta.get("labels") or {}).get(names.REVISION, ""),
        number=obj.get("revision", 0),
        words=data.get("spec") or {},
        checksums=data.get("checksums"),
        created=meta.get("creationTimestamp", ""),
    )


def words_of(spec: InferenceDeploymentSpec) -> dict[str, Any]:
    """The words of a spec that its engines are made from, as a spec of their own without anything that has its
    default."""
    said = _words(spec, include={*WHOLE}) | {"roles": [_role(role) for role in spec.roles]}
    parts = {
        "disaggregation": _words(spec.disaggregation, include={"connector", "on_transfer_failure"}),
        "gateway": _words(spec.gateway, include={"routing": {"policy"}}),
        "rollout": _words(spec.rollout, include={"restarted_at"}),
    }
    return said | {name: part for name, part in parts.items() if part}


def _role(role: Role) -> dict[str, Any]:
    said = _words(role, exclude={"engine", "parallelism"})
    # What an override says counts, although it be the default: what it overrides may say something else.
    for part in ("engine", "parallelism"):
        override: Frozen | None = getattr(role, part)
        if override is not None:
            said[part] = override.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return said


def _words(part: Frozen, **which: Any) -> dict[str, Any]:
    return part.model_dump(mode="json", by_alias=True, exclude_defaults=True, **which)


def restored(record: Record, spec: InferenceDeploymentSpec) -> InferenceDeploymentSpec | list[Problem]:
    """`spec` with the words of a record in place of its own, or why the two do not go together.

    What is no part of a revision stays: sizes, limits, who shares KV blocks. Adapters stay where they can; those of the
    record come back where its engines could not load the others.
    """
    try:
        old = InferenceDeploymentSpec.model_validate_json(json.dumps(record.words), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return [Problem(f"ControllerRevision {record.name}", f"cannot be read: {first['msg']}")]
    back = _laid_over(old, spec)
    listed = back.model.model_copy(update={"adapters": spec.model.adapters})
    with_ours = back.model_copy(update={"model": listed})
    if not check(with_ours):
        return with_ours
    return list(check(back)) or back


def _laid_over(old: InferenceDeploymentSpec, spec: InferenceDeploymentSpec) -> InferenceDeploymentSpec:
    now = {role.name: role for role in spec.roles}
    sizes = {name: {"replicas": role.replicas, "scaling": role.scaling} for name, role in now.items()}
    routing = spec.gateway.routing
    if "PrefixAware" in {routing.policy, old.gateway.routing.policy}:
        routing = old.gateway.routing
    kept = {"connector": old.disaggregation.connector, "on_transfer_failure": old.disaggregation.on_transfer_failure}
    return spec.model_copy(
        update={
            **{part: getattr(old, part) for part in WHOLE},
            "kv_cache": _kv_cache(old.kv_cache, spec.kv_cache),
            "roles": tuple(role.model_copy(update=sizes.get(role.name, {})) for role in old.roles),
            "disaggregation": spec.disaggregation.model_copy(update=kept),
            "gateway": spec.gateway.model_copy(update={"routing": routing}),
            "rollout": spec.rollout.model_copy(update={"restarted_at": old.rollout.restarted_at}),
        }
    )


def _kv_cache(old: KVCache, now: KVCache) -> KVCache:
    """The old tiers with what no engine is told of as it is now. A claim, above all, can only grow."""
    back = old.model_copy(update={"sharing": now.sharing})
    if old.disk is None or now.disk is None:
        return back
    volume, claim = old.disk.volume, now.disk.volume.claim_template
    if volume.claim_template is not None and claim is not None:
        volume = volume.model_copy(
            update={"claim_template": volume.claim_template.model_copy(update={"size": claim.size})}
        )
    disk = old.disk.model_copy(update={"volume": volume, "return_to_node": now.disk.return_to_node})
    return back.model_copy(update={"disk": disk})


def kept(found: Mapping[str, Record], limit: int, used: Iterable[str]) -> frozenset[str]:
    """Names of the records that stay: those in use, and of the others the newest, `limit` of them."""
    in_use = frozenset(used)
    others = [one for one in found.values() if one.revision not in in_use]
    newest = others[len(others) - min(limit, len(others)) :]
    return frozenset({*(one.name for one in newest), *(found[r].name for r in in_use if r in found)})

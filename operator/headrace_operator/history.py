"""The history of revisions: what a ControllerRevision keeps of one, and the spec that makes its engines again. Pure.

A record holds the user's words that count into a revision, never what was made of them, and never changes: a newer
operator reads it as it reads a spec. `plan.target` goes back by it, `desired.history` writes it, `headrace history` and
`headrace rollback` show and use it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace_operator import names
from headrace_operator.api.engine import Device
from headrace_operator.api.parse import parse
from headrace_operator.api.problems import Problem
from headrace_operator.api.roles import RoleScaling
from headrace_operator.api.types import Frozen
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec, Role
from headrace_operator.state import Object

KIND: Final = "ControllerRevision"
WHOLE: Final = ("model", "engine", "parallelism", "executor", "kvCache", "drain", "recovery", "roles")
"""Parts of a spec that a record keeps as they are."""
PARTLY: Final = {
    "disaggregation": ("connector", "onTransferFailure"),
    "gateway": ("routing",),
    "rollout": ("restartedAt",),
}
"""Fields that it keeps of other parts: those that count into a revision."""
SIZES: Final = ("replicas", "scaling")


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


def devices(words: Mapping[str, Any]) -> set[str]:
    """The resources that engines of these words compute on; `cpu` is none."""
    engines = [words.get("engine") or {}, *(role.get("engine") or {} for role in words.get("roles") or ())]
    named = {one["device"].get("resource", Device().resource) for one in engines if one.get("device")}
    return (named if engines[0].get("device") else named | {Device().resource}) - {"cpu"}


def words_of(spec: InferenceDeploymentSpec) -> dict[str, Any]:
    """The words of a spec that its engines are made from, as a spec of their own without anything that has its
    default."""
    said = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    said["roles"] = [_role(role) for role in spec.roles]
    parts = {name: {key: said.get(name, {}).get(key) for key in fields} for name, fields in PARTLY.items()}
    spoken = {name: {key: value for key, value in part.items() if value} for name, part in parts.items()}
    return {part: said[part] for part in WHOLE if part in said} | {name: part for name, part in spoken.items() if part}


def _role(role: Role) -> dict[str, Any]:
    said = role.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"engine", "parallelism"})
    # What an override says counts, although it be the default: what it overrides may say something else.
    for part in ("engine", "parallelism"):
        override: Frozen | None = getattr(role, part)
        if override is not None:
            said[part] = override.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return said


def restored(record: Record, spec: Mapping[str, Any]) -> dict[str, Any] | list[Problem]:
    """A spec as it is on the wire with the words of a record in place of its own, or why the two do not go together.

    What is no part of a revision stays: sizes, limits, who shares KV blocks. Adapters stay where they can; those of the
    record come back where its engines could not load the others.
    """
    # Who decides sizes is no part of it, nor what bounds they have.
    roles = [
        {key: value for key, value in role.items() if key not in SIZES} for role in record.words.get("roles") or ()
    ]
    alone = parse({"metadata": {"name": record.name}, "spec": {**record.words, **({"roles": roles} if roles else {})}})
    if not isinstance(alone, InferenceDeploymentSpec):
        return alone
    problems: list[Problem] = []
    back = _laid_over(record.words, spec)
    now = {key: value for key, value in (spec.get("model") or {}).items() if key == "adapters"}
    model = {key: value for key, value in back["model"].items() if key != "adapters"} | now
    for candidate in ({**back, "model": model}, back):
        parsed = parse({"metadata": {"name": record.name}, "spec": candidate})
        if isinstance(parsed, InferenceDeploymentSpec):
            return candidate
        problems = parsed
    return problems


def _laid_over(words: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    back = {part: value for part, value in spec.items() if part not in WHOLE}
    back |= {part: words[part] for part in WHOLE if part in words}
    for part, fields in PARTLY.items():
        said, now = words.get(part) or {}, spec.get(part) or {}
        inner = {name: value for name, value in now.items() if name not in fields}
        back[part] = inner | {name: said[name] for name in fields if name in said}
    policies = {(one.get("gateway") or {}).get("routing", {}).get("policy") for one in (words, spec)}
    if "PrefixAware" not in policies and "routing" in (spec.get("gateway") or {}):
        # Engines publish KV events for that policy alone; between the others the gateway may choose as it likes.
        back["gateway"]["routing"] = spec["gateway"]["routing"]
    sizes = {role["name"]: {key: role[key] for key in SIZES if key in role} for role in spec.get("roles") or ()}
    back["roles"] = [
        {key: value for key, value in role.items() if key not in SIZES} | sizes[role["name"]]
        if role["name"] in sizes
        else (_fixed(role) if (spec.get("scaling") or {}).get("mode", "Fixed") == "Fixed" else role)
        for role in words.get("roles") or ()
    ]
    back["kvCache"] = _kv_cache(words.get("kvCache") or {}, spec.get("kvCache") or {})
    return {part: value for part, value in back.items() if value not in ({}, [])}


def _fixed(role: Mapping[str, Any]) -> dict[str, Any]:
    """A role that the spec has no more, as it is where sizes are fixed: at the least that it had."""
    kept = {key: value for key, value in role.items() if key != "scaling"}
    return kept | (
        {"replicas": role["scaling"].get("min", RoleScaling.model_fields["min"].default)} if "scaling" in role else {}
    )


def _kv_cache(words: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded tiers with what no engine is told of as it is now. A claim, above all, can only grow."""
    back = {key: value for key, value in words.items() if key != "sharing"}
    back |= {"sharing": now["sharing"]} if "sharing" in now else {}
    old, disk = words.get("disk"), now.get("disk")
    if not old or not disk:
        return back
    volume, claim = dict(old.get("volume") or {}), (disk.get("volume") or {}).get("claimTemplate")
    if "claimTemplate" in volume and claim:
        volume["claimTemplate"] = {**volume["claimTemplate"], "size": claim.get("size")}
    kept_back = {"returnToNode": disk["returnToNode"]} if "returnToNode" in disk else {}
    back["disk"] = {key: value for key, value in old.items() if key != "returnToNode"} | {"volume": volume, **kept_back}
    return back


def kept(found: Mapping[str, Record], limit: int, used: Iterable[str]) -> frozenset[str]:
    """Names of the records that stay: those in use, and of the others the newest, `limit` of them."""
    in_use = frozenset(used)
    others = [one for one in found.values() if one.revision not in in_use]
    newest = others[len(others) - min(limit, len(others)) :]
    return frozenset({*(one.name for one in newest), *(found[r].name for r in in_use if r in found)})

"""Judgements, pure: what a run left behind and how it got there, against the clean run of the same scenario.

Left out of the comparison is what no two runs share: namespace, uids, versions, times, addresses, the number of writes
that an object has seen, hashes over these, and the Ray token's value (that it is made once is in the counts). Events
are at most once: one may be lost with the operator that was about to post it, and they are not counted.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from headrace_operator import names
from headrace_operator.desired.gateway import CONTRACT_ANNOTATION
from headrace_operator.state import Object
from sweep.proxy import Write

VOLATILE = frozenset(
    {
        "uid", "resourceVersion", "generation", "observedGeneration", "managedFields", "creationTimestamp",
        "lastTransitionTime", "answeredAt", "verifiedAt", "startTime", "podIP", "podIPs", "hostIP", "hostIPs",
        "clusterIP", "clusterIPs", "data", names.APPLIED,
        CONTRACT_ANNOTATION,
    }
)  # fmt: skip
"""Fields, wherever they stand."""

Key = tuple[str, str]
Counts = Counter[tuple[str, str]]
"""How often objects of a kind were created or deleted: by verb and kind."""


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    objects: dict[Key, Any]
    counts: Counts
    writes: tuple[Write, ...]
    passes: frozenset[int]
    """The passes whose lists could be replayed."""
    complaints: tuple[str, ...] = ()
    """What went wrong on the way: a floor undercut, no end in sight, a write after the end."""
    struck: bool = False


def ending_objects(objects: list[Object], namespace: str) -> dict[Key, Any]:
    """The objects by kind and name, without what no two runs share. Contents of ConfigMaps are kept."""
    return {
        (obj["kind"], obj["metadata"]["name"]): _steady(obj, namespace, keep_data=obj["kind"] == "ConfigMap")
        for obj in objects
    }


def _steady(value: Any, namespace: str, *, keep_data: bool = False) -> Any:
    if isinstance(value, dict):
        return {k: _steady(v, namespace) for k, v in value.items() if k not in VOLATILE or (keep_data and k == "data")}
    if isinstance(value, list):
        return [_steady(entry, namespace) for entry in value]
    return value.replace(namespace, "NAMESPACE") if isinstance(value, str) else value


def count(writes: list[Write]) -> Counts:
    """Creations and deletions that the API server answered with a yes, whoever heard it."""
    about = [w for w in writes if w.kind != "events"]
    made = Counter(("create", w.kind) for w in about if w.creates)
    # By uid: a client that heard no answer may say the same once more.
    gone = Counter(("delete", kind) for kind, _ in {(w.kind, w.uid) for w in about if w.deletes})
    return made + gone


def differences(clean: Ending, run: Ending, *, counts: bool) -> list[str]:
    """Everything in which the run is not like the clean one; empty: nothing. `counts`: how often is compared too."""
    found = list(run.complaints)
    for key in sorted(clean.objects.keys() | run.objects.keys()):
        found += [
            f"{'/'.join(key)}{path}: {text}" for path, text in compare(clean.objects.get(key), run.objects.get(key), "")
        ][:3]
    if counts:
        for verb, kind in sorted(clean.counts.keys() | run.counts.keys()):
            wanted, had = clean.counts[verb, kind], run.counts[verb, kind]
            if wanted != had:
                found.append(f"{verb} {kind}: {had} times, not {wanted}")
    return found


def compare(clean: Any, run: Any, path: str) -> list[tuple[str, str]]:
    """Every place below `path` where two values differ, and how."""
    if isinstance(clean, dict) and isinstance(run, dict):
        return [d for k in sorted(clean.keys() | run.keys()) for d in compare(clean.get(k), run.get(k), f"{path}.{k}")]
    if isinstance(clean, list) and isinstance(run, list) and len(clean) == len(run):
        return [d for i, (c, r) in enumerate(zip(clean, run, strict=True)) for d in compare(c, r, f"{path}[{i}]")]
    if clean == run:
        return []
    if clean is None or run is None:
        return [(path, "is there, and was not" if clean is None else "is missing")]
    return [(path, f"{str(run)[:120]!r}, not {str(clean)[:120]!r}")]

"""A user's pod template laid over a generated pod: Kubernetes' strategic merge, for pods. Pure.

Maps merge, `null` removes a field, lists whose entries have a key merge by it, and every other list is replaced.
Tolerations are added, since to repeat the generated ones would be the only other use. `$patch: delete` in an entry
removes it, `$patch: replace` puts it in place of the generated one.
"""

from typing import Any

from headrace_operator.api.podtemplate import MERGE_KEYS
from headrace_operator.state import Object

ADDED = frozenset({"tolerations", "envFrom"})
WHOLE = frozenset({"volumes"})
"""Lists whose entries are unions: an entry with another source would have two, so it replaces the generated one."""

DIRECTIVE = "$patch"


def lay_over(pod: Object, template: Object) -> Object:
    """The pod with `template` (`metadata.labels`, `metadata.annotations`, `spec`) over it.

    Labels of the generated pod stay as they are: services, the gateway and the operator find pods by them.
    """
    if not template:
        return pod
    theirs = template.get("metadata") or {}
    meta = dict(pod["metadata"])
    for part in ("labels", "annotations"):
        merged = {**(theirs.get(part) or {}), **meta.get(part, {})}
        if merged:
            meta[part] = merged
    return {**pod, "metadata": meta, "spec": merge(pod["spec"], template.get("spec") or {})}


def merge(base: Any, over: Any, field: str = "") -> Any:
    """`over` on top of `base`; neither is changed. `field` is the name under which both stand."""
    if isinstance(base, dict) and isinstance(over, dict):
        if over.get(DIRECTIVE) == "replace":
            return _plain(over)
        result = dict(base)
        for name, value in over.items():
            if value is None:
                result.pop(name, None)
            elif name != DIRECTIVE:
                result[name] = merge(result.get(name), value, name)
        return result
    if isinstance(over, list) and field in MERGE_KEYS:
        return _merge_list(base if isinstance(base, list) else [], over, field)
    if isinstance(over, list) and isinstance(base, list) and field in ADDED:
        return [*base, *(entry for entry in over if entry not in base)]
    return _plain(over)


def _merge_list(base: list[Any], over: list[Any], field: str) -> list[Any]:
    key = MERGE_KEYS[field]
    result = {entry[key]: entry for entry in base}
    for entry in over:
        name = entry[key]
        if entry.get(DIRECTIVE) == "delete":
            result.pop(name, None)
        elif field in WHOLE or name not in result:
            result[name] = _plain(entry)
        else:
            result[name] = merge(result[name], entry)
    return list(result.values())


def _plain(value: Any) -> Any:
    """The value without directives and nulls, which only mean something over something else."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != DIRECTIVE and v is not None}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value

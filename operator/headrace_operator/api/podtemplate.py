"""What a user's pod template may look like, so that it can be laid over a generated pod.

The template's own schema is Kubernetes' and is checked by the API server when the pod is applied. What is checked here
is what the merge itself needs. Pure; called by `checks.py`, and `desired/overlay.py` merges by the same keys.
"""

from collections.abc import Iterator
from typing import Any, Final

from headrace_operator.api.problems import Problem

MERGE_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists whose entries merge, and the field that tells them apart: k8s.io/api `core/v1/types.go`, `patchMergeKey`."""

OUR_PREFIX: Final = "headrace.dev/"


def template_problems(path: str, template: dict[str, Any]) -> Iterator[Problem]:
    """What is wrong with the pod template at `path`."""
    yield from _strangers(path, template, ("metadata", "spec"))
    metadata, spec = _given(template, "metadata"), _given(template, "spec")
    if isinstance(metadata, dict):
        yield from _metadata(f"{path}.metadata", metadata)
    else:
        yield Problem(f"{path}.metadata", "must be an object")
    if isinstance(spec, dict):
        yield from _merged_lists(f"{path}.spec", spec)
    else:
        yield Problem(f"{path}.spec", "must be an object")


def _given(part: dict[str, Any], name: str) -> Any:
    """A part of a template. One that was left empty is none; anything else is looked at, empty lists and texts too."""
    value = part.get(name)
    return {} if value is None else value


def _strangers(path: str, part: dict[str, Any], known: tuple[str, ...]) -> Iterator[Problem]:
    for key in sorted(part.keys() - set(known)):
        yield Problem(f"{path}.{key}", f"is not acted on here: a pod template has {' and '.join(known)}")


def _metadata(path: str, metadata: dict[str, Any]) -> Iterator[Problem]:
    yield from _strangers(path, metadata, ("annotations", "labels"))
    for part in ("annotations", "labels"):
        entries = _given(metadata, part)
        if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
            yield Problem(f"{path}.{part}", "must be texts by name: put numbers and true or false in quotes")
            continue
        for key in entries:
            if key.startswith(OUR_PREFIX):
                yield Problem(f"{path}.{part}", f"{key} is Headrace's own: use another prefix")


def _merged_lists(path: str, part: dict[str, Any]) -> Iterator[Problem]:
    """Entries that cannot be told apart, here and in everything below."""
    for field, value in part.items():
        if field in MERGE_KEYS and value is not None:
            yield from _entries(f"{path}.{field}", value, MERGE_KEYS[field])
        elif isinstance(value, dict):
            yield from _merged_lists(f"{path}.{field}", value)


def _entries(path: str, entries: Any, key: str) -> Iterator[Problem]:
    if not isinstance(entries, list):
        yield Problem(path, "must be a list")
        return
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get(key):
            yield Problem(f"{path}[{index}]", f"needs {key}: entries are merged by it")
        else:
            yield from _merged_lists(f"{path}[{index}]", entry)

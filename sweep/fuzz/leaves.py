"""The leaves of a structural schema, and how a value is put at one. Pure; the schema is the CRD's own.

A leaf is a field with no fields of its own: a scalar, a mapping, a list of scalars, or an object of any form. Its path
is written as in `api/supported.py`: `roles[].engine.env[].value`.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headrace_operator.api.crd import crd
from sweep.fuzz.values import Schema, values

Spec = dict[str, Any]
"""What a user writes below `spec`."""


@dataclass(frozen=True)
class Leaf:
    """One field that a user may set."""

    path: str
    schema: Schema

    @property
    def name(self) -> str:
        """The last step of its path."""
        return self.path.rpartition(".")[2].removesuffix("[]")


def spec_schema() -> Schema:
    """The schema of `spec`, as the CRD has it."""
    (version,) = crd()["spec"]["versions"]
    schema: Schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def leaves(schema: Schema, path: str = "") -> Iterator[Leaf]:
    """Every leaf at and below a place, in the schema's order."""
    for name, child in schema.get("properties", {}).items():
        yield from _below(child, f"{path}.{name}" if path else name)


def _below(schema: Schema, path: str) -> Iterator[Leaf]:
    entries = schema.get("items")
    if schema.get("properties"):
        yield from leaves(schema, path)
    elif entries and entries.get("properties"):
        yield from leaves(entries, f"{path}[]")
    else:
        yield Leaf(path, schema)


def put(spec: Spec, schema: Schema, path: str, value: Any) -> Spec:
    """A copy of `spec` with `value` at the path, in the first entry of each list on the way. What is not there is made
    with what its schema requires, and nothing more."""
    changed = copy.deepcopy(spec)
    _put(changed, schema, path.split("."), value)
    return changed


def get(spec: Mapping[str, Any], path: str) -> Any:
    """The value at a path, in the first entry of each list on the way. None: nothing."""
    place: Any = spec
    for step in path.split("."):
        place = place.get(step.removesuffix("[]")) if isinstance(place, Mapping) else None
        if step.endswith("[]") and isinstance(place, list):
            place = place[0] if place else None
    return place


def at(schema: Schema, path: str) -> Schema:
    """The schema at a path."""
    for step in path.split("."):
        schema = schema["properties"][step.removesuffix("[]")]
        schema = schema["items"] if step.endswith("[]") else schema
    return schema


def _put(place: Spec, schema: Schema, steps: list[str], value: Any) -> None:
    step, *rest = steps
    name = step.removesuffix("[]")
    child = schema["properties"][name]
    if not rest:
        place[name] = value
    elif step.endswith("[]"):
        entries = place.setdefault(name, [])
        if not entries:
            entries.append(_least(child["items"]))
        _put(entries[0], child["items"], rest, value)
    else:
        _put(place.setdefault(name, _least(child)), child, rest, value)


def _least(schema: Schema) -> Any:
    """The smallest value that the schema takes: of an object, what it requires."""
    if "properties" in schema:
        return {name: _least(schema["properties"][name]) for name in schema.get("required", ())}
    return values(schema).valid[0]

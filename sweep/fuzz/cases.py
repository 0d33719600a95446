"""One edit of one leaf: from which spec, to which, and what must come of it. Pure.

What must come of a valid value follows from `api/supported.py`: the operator takes it, or refuses it by name as not yet
acted on. A bad value must be refused by the API server and, where an older CRD let it through, by the operator.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import yaml

from headrace_operator.api.manifest import read_checksums
from headrace_operator.api.parse import parse
from headrace_operator.api.supported import ACTED_ON, NOT_YET
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from headrace_operator.desired import desired_objects
from headrace_operator.plan import make_plan
from headrace_operator.state import Observed, Ref, Subject
from headrace_operator.testing import DEFAULTS
from sweep.fuzz.hints import BASES, EFFECTS, ELSEWISE, HINTS, SUMS_DATA, Effect, Hint
from sweep.fuzz.leaves import Leaf, Spec, at, get, leaves, put, spec_schema
from sweep.fuzz.values import Schema, values
from sweep.oracle import Key
from sweep.stage import NAME

Sort = Literal["base", "valid", "boundary", "invalid"]

PLAYED_BAD = 2
"""Bad values of a leaf that are played where no hint gives them. The rest is for the API server alone."""


class UnplannedError(Exception):
    """Leaves that need a hint and have none."""


@dataclass(frozen=True)
class Case:
    """One edit, upon a base."""

    leaf: str
    sort: Sort
    base: str
    value: Any
    spec: Spec
    taken: bool
    """Whether the operator must act on it. False: it must refuse it, and name the field."""
    served: bool
    """Whether the API server must take it."""
    played: bool
    """Whether it is played to its end. Of the bad values of a leaf some are; the API server is asked about all."""
    effect: Effect | None
    """What taking it does to the children. None: it depends."""
    children: frozenset[Key] = frozenset()
    """What there must be of it in the end, where it is taken."""

    @property
    def name(self) -> str:
        """Tells it from all others: `roles[].replicas=2 (valid)`."""
        if self.sort == "base":
            return f"base {self.base}"
        text = str(self.value)
        return f"{self.leaf}={text if len(text) < 40 else text[:37] + '...'} ({self.sort})"

    def edit(self) -> str:
        """The whole object after the edit, as YAML to apply."""
        whole = BASES[self.base].build() | {"metadata": {"name": NAME}, "spec": self.spec}
        return yaml.safe_dump(whole, sort_keys=False)


def cases(seed: int) -> list[Case]:
    """Every case, in the order of the schema. The seed draws valid values where there are several.

    UnplannedError: a leaf of which the schema alone does not tell enough.
    """
    schema = spec_schema()
    found, missing = [], []
    for leaf in leaves(schema):
        try:
            found += of_leaf(leaf, schema, seed)
        except ValueError as error:
            missing.append(f"{leaf.path}: {error}")
    if missing:
        raise UnplannedError("hints.py lacks what these leaves need:\n" + "\n".join(missing))
    return found


def of_leaf(leaf: Leaf, schema: Schema, seed: int) -> list[Case]:
    """The cases of one leaf, with a bad value among them. ValueError: there is none, or a valid one is none."""
    found = list(_of_leaf(leaf, schema, seed))
    if not any(case.sort == "invalid" for case in found):
        raise ValueError("no bad value")
    return found


def _of_leaf(leaf: Leaf, schema: Schema, seed: int) -> Iterator[Case]:
    hint = HINTS.get(leaf.path, Hint())
    base = BASES[hint.base].build()["spec"]
    found = values(leaf.schema)
    present = get(base, leaf.path)
    present = leaf.schema.get("default") if present is None else present
    valid = hint.valid if hint.valid is not None else tuple(v for v in found.valid if v != present)
    boundary = hint.boundary if hint.boundary is not None else found.boundary
    # What is there already, said once more.
    boundary = (*boundary, present) if present is not None and hint.boundary is None else boundary
    sorts: tuple[tuple[Sort, tuple[Any, ...], bool], ...] = (
        ("valid", _drawn(valid, leaf, seed), True),
        ("boundary", boundary, True),
        ("invalid", found.invalid if hint.invalid is None else hint.invalid, False),
        ("invalid", hint.unseen, True),
    )
    for sort, tried, served in sorts:
        shuffled = sorted(_distinct(tried), key=lambda value: draw(seed, f"{leaf.path}={value!r}"))
        for number, value in enumerate(shuffled):
            played = sort != "invalid" or number < PLAYED_BAD or hint.invalid is not None
            yield _case(leaf, hint, schema, Tried(sort, value, served, played))


class Tried(NamedTuple):
    """A value, and what is said of it in `Case`."""

    sort: Sort
    value: Any
    served: bool
    played: bool


def _case(leaf: Leaf, hint: Hint, schema: Schema, tried: Tried) -> Case:
    base = BASES[hint.base].build()["spec"]
    spec = base
    for path, beside in hint.also.items():
        spec = put(spec, schema, path, beside)
    spec = put(spec, schema, leaf.path, tried.value)
    taken = tried.sort != "invalid" and not refused(spec, schema)
    effect = effect_of(leaf.path) if taken else "none"
    if taken and same(base, spec):
        effect = "none"
    children = planned(spec) if taken else frozenset()
    return Case(
        leaf.path, tried.sort, hint.base, tried.value, spec, taken, tried.served, tried.played, effect, children
    )


def base_case(base: str) -> Case:
    """The spec that edits begin from, as an edit."""
    spec = BASES[base].build()["spec"]
    return Case("", "base", base, None, spec, True, True, True, None, planned(spec))


def planned(spec: Spec) -> frozenset[Key]:
    """What the operator's pure functions make of a spec where nothing is there yet, by kind and name.

    Worked out before any bug is planted. ValueError: the spec is not valid, as what was meant to be valid must be.
    """
    parsed = parse({"metadata": {"name": NAME}, "spec": spec})
    if not isinstance(parsed, InferenceDeploymentSpec):
        raise ValueError("; ".join(map(str, parsed)))
    named = get(spec, "model.integrity.manifest.configMapRef.name") is not None
    observed = Observed(manifest=read_checksums(SUMS_DATA) if named else None)
    subject = Subject(Ref("fuzz", NAME, "uid"), 1, parsed, DEFAULTS, manifest=observed.manifest)
    objects = desired_objects(subject, make_plan(parsed, observed))
    return frozenset((obj["kind"], obj["metadata"]["name"]) for obj in objects)


def same(one: Spec, other: Spec) -> bool:
    """Whether two valid specs say the same in other words."""
    meta = {"metadata": {"name": NAME}}
    return parse(meta | {"spec": one}) == parse(meta | {"spec": other})


def refused(spec: Spec, schema: Schema) -> bool:
    """Whether this version says of a valid spec that it does not act on all of it."""
    for field in NOT_YET:
        value = get(spec, field)
        if value is not None and not _default(value, at(schema, field)):
            return True
    for field, known in ACTED_ON.items():
        value = get(spec, field)
        if known and value is not None and value not in known:
            return True
    return False


def _default(value: Any, schema: Schema) -> bool:
    """Whether a value says no more than its default."""
    if isinstance(value, dict) and "properties" in schema:
        return "default" in schema and all(_default(v, schema["properties"][name]) for name, v in value.items())
    return bool(value == schema.get("default"))


def effect_of(path: str) -> Effect | None:
    """What a change of the leaf does: the longest path of the tables that it is at or below."""
    table = {**EFFECTS, **ELSEWISE}
    above = [part for part in table if path == part or path.startswith((f"{part}.", f"{part}[]"))]
    return table[max(above, key=len)] if above else None


def _drawn(tried: tuple[Any, ...], leaf: Leaf, seed: int) -> tuple[Any, ...]:
    """One of them, by seed and path, so that a new leaf changes nothing for the others."""
    return (tried[draw(seed, leaf.path) % len(tried)],) if tried else ()


def draw(seed: int, text: str) -> int:
    """A number that looks drawn by chance, and is always the same for a seed and a text."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:8], "big")


def _distinct(tried: Iterable[Any]) -> list[Any]:
    return list({repr(value): value for value in tried}.values())

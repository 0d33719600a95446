"""The invariants of the transition fuzz: a sound step breaks none, and each one notices what it is for."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from headrace_operator import names
from headrace_operator.state import Object
from headrace_operator.testing import Scene
from sweep.fuzz.cases import Case, base_case, cases
from sweep.fuzz.hints import BASES
from sweep.fuzz.invariants import INVARIANTS, judge, names_leaf, sizes
from sweep.fuzz.lane import TOKEN, Engines, Step, Write
from sweep.oracle import ending_objects

BASE = base_case("split")
ONE = {"prefill": 1, "decode": 1}


async def settled(case: Case = BASE) -> tuple[Scene, tuple[Object, ...]]:
    """A world in memory that came to an end with this spec."""
    scene = Scene(BASES[case.base])
    await scene.settle()
    if case is not BASE:
        scene.edit(_Edited(case))
        await scene.settle()
    return scene, tuple(copy.deepcopy(list(scene.cluster.objects.values())))


class _Edited:
    """What a scene takes for a sample."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def build(self) -> Object:
        return {"spec": self._case.spec}


async def sound(case: Case = BASE) -> Step:
    """The step to a case from the base, as a sound operator makes it."""
    _, before = await settled()
    scene, after = await settled(case)
    return Step(
        case=case,
        was=BASE.spec,
        before=before,
        after=after,
        writes=(),
        engines=(Engines(ONE, ONE),),
        told=(),
        quiet=True,
        raised=(),
        namespace=scene.ref.namespace,
        uid=scene.ref.uid,
        reference=ending_objects(list(before), scene.ref.namespace) if case is BASE else None,
    )


@cache
def every() -> list[Case]:
    return cases(seed=1)


def case_of(leaf: str, sort: str) -> Case:
    return next(case for case in every() if case.leaf == leaf and case.sort == sort)


@pytest.mark.parametrize(
    ("leaf", "sort"),
    [
        ("drain.timeout", "valid"),
        ("drain.timeout", "invalid"),
        ("gateway.limits.queue.maxWait", "valid"),
        ("roles[].replicas", "valid"),
        ("rollout.maxSurge", "valid"),
        ("suspend", "valid"),
        ("paused", "valid"),
        ("kvCache.dtype", "boundary"),
    ],
)
async def test_a_sound_step_breaks_nothing(leaf: str, sort: str) -> None:
    assert judge(await sound(case_of(leaf, sort))) == []


async def test_a_step_to_the_same_spec_breaks_nothing() -> None:
    assert judge(await sound()) == []


def _child(step: Step, kind: str) -> Object:
    return next(obj for obj in step.after if obj["kind"] == kind)


def _spoil(kind: str, path: str, value: Any) -> Callable[[Step], Step]:
    """One field of one object is another."""

    def spoiled(step: Step) -> Step:
        place: Any = _child(step, kind)
        *steps, last = path.split("/")
        for name in steps:
            place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
        place[last] = value
        return step

    return spoiled


def _gone(kind: str) -> Callable[[Step], Step]:
    return lambda step: replace(step, after=tuple(obj for obj in step.after if obj is not _child(step, kind)))


DELETED = Write("deleted", "pods", "chat-head", "a-uid")
SPOILED: list[tuple[str, Callable[[Step], Step]]] = [
    ("comes_to_an_end", lambda step: replace(step, quiet=False)),
    ("never_raises", lambda step: replace(step, raised=("KeyError: 'x'",))),
    ("is_told", _spoil(names.KIND, "status/observedGeneration", 0)),
    ("is_told", _spoil(names.KIND, "status/conditions/0/observedGeneration", 0)),
    ("is_complete", _gone("Service")),
    ("is_complete", _gone("Pod")),
    ("is_complete", _spoil("Service", "metadata/name", "chat-other")),
    ("is_complete", _spoil(names.KIND, "status/canary/revision", "0000000000")),
    ("is_owned", _spoil("ConfigMap", "metadata/ownerReferences", [])),
    ("is_owned", _spoil("Service", "metadata/finalizers", ["example.org/hold"])),
    ("nothing_twice", lambda step: replace(step, writes=(DELETED, DELETED))),
    ("nothing_twice", lambda step: replace(step, writes=(Write("made", "pods", "chat-x", "a-uid"),))),
    ("never_too_few", lambda step: replace(step, engines=(Engines(ONE, {"prefill": 1, "decode": 0}),))),
    ("never_too_many", lambda step: replace(step, engines=(Engines({"prefill": 3, "decode": 1}, ONE),))),
    ("is_as_before", _spoil("Service", "spec/type", "LoadBalancer")),
    ("keeps_secrets", lambda step: replace(step, told=(f"token {TOKEN}",))),
    ("keeps_secrets", _spoil(names.KIND, "status/url", TOKEN)),
    ("keeps_secrets", _spoil("ConfigMap", "metadata/annotations/token", TOKEN)),
]


@pytest.mark.parametrize(("name", "spoil"), SPOILED, ids=lambda value: value if isinstance(value, str) else "")
async def test_an_invariant_notices_what_it_is_for(name: str, spoil: Callable[[Step], Step]) -> None:
    found = judge(spoil(await sound()))
    assert any(line.startswith(f"{name}:") for line in found), found


async def test_a_refusal_that_names_nothing_is_noticed() -> None:
    case = case_of("rollout.maxSurge", "invalid")
    step = _spoil(names.KIND, "status/conditions/0/message", "no")(await sound(case))
    assert [line.partition(":")[0] for line in judge(step)] == ["names_the_field"]


async def test_a_child_that_a_bad_edit_changed_is_noticed() -> None:
    case = case_of("rollout.maxSurge", "invalid")
    step = _spoil("Service", "metadata/resourceVersion", "other")(await sound(case))
    assert [line.partition(":")[0] for line in judge(step)] == ["a_bad_edit_changes_no_child"]


@pytest.mark.parametrize(
    ("leaf", "effect"),
    [("rollout.maxSurge", "engines"), ("rollout.maxSurge", "objects"), ("drain.timeout", "none")],
)
async def test_a_change_that_does_something_else_is_noticed(leaf: str, effect: Any) -> None:
    step = await sound(replace(case_of(leaf, "valid"), effect=effect))
    assert {line.partition(":")[0] for line in judge(step)} == {"does_what_it_says"}


def test_every_invariant_is_tried() -> None:
    apart = {"names_the_field", "a_bad_edit_changes_no_child", "does_what_it_says"}
    assert {invariant.__name__ for invariant in INVARIANTS} == {name for name, _ in SPOILED} | apart


def test_a_field_is_named_by_its_own_words() -> None:
    assert names_leaf("spec.gateway.limits.queue.maxWait: soon is no duration", "gateway.limits.queue.maxWait")
    assert not names_leaf("the object is not valid", "gateway.limits.queue.maxWait")


def test_sizes_are_read_as_a_user_reads_them() -> None:
    assert sizes({}) == {"serve": 1}
    assert sizes({"roles": [{"name": "serve", "replicas": 3}], "suspend": True}) == {"serve": 0}

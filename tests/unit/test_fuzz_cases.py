"""What the transition fuzz plays: every leaf of the schema, with values that are what they are meant to be."""

import pytest

from headrace_operator.api.parse import parse
from headrace_operator.api.v1alpha1 import InferenceDeploymentSpec
from sweep.fuzz.cases import Case, cases, effect_of
from sweep.fuzz.command import QUICK_LEAVES, chosen
from sweep.fuzz.hints import BASES, ELSEWISE, HINTS
from sweep.fuzz.leaves import get, leaves, put, spec_schema
from sweep.fuzz.mutants import MUTANTS
from sweep.fuzz.values import values


@pytest.fixture(scope="module")
def every() -> list[Case]:
    return cases(seed=1)


def test_no_leaf_is_without_a_bad_value_and_none_without_a_good_one(every: list[Case]) -> None:
    planned = {case.leaf for case in every}
    assert {leaf.path for leaf in leaves(spec_schema())} == planned
    assert {case.leaf for case in every if case.sort == "invalid"} == planned
    # Nothing is valid there: the rules refuse the field in a role whatever it says.
    nowhere = {f"roles[].engine.lora.{field}" for field in ("maxAdapters", "maxRank", "folder")}
    assert {case.leaf for case in every if case.sort != "invalid"} == planned - nowhere


def test_the_operator_says_of_every_edit_what_the_case_says(every: list[Case]) -> None:
    wrong = []
    for case in every:
        found = parse({"metadata": {"name": "chat"}, "spec": case.spec})
        if isinstance(found, InferenceDeploymentSpec) is not case.taken:
            wrong.append(case.name)
    assert wrong == []


def test_no_two_cases_have_one_name(every: list[Case]) -> None:
    assert len({case.name for case in every}) == len(every)


def test_hints_are_about_leaves_that_there_are() -> None:
    paths = {leaf.path for leaf in leaves(spec_schema())}
    assert HINTS.keys() - paths == set()
    assert {path for path in ELSEWISE if not any(leaf.startswith(path) for leaf in paths)} == set()
    assert {hint.base for hint in HINTS.values()} <= BASES.keys()


def test_mutants_bite_somewhere_and_have_names_of_their_own(every: list[Case]) -> None:
    assert [mutant.name for mutant in MUTANTS if not any(map(mutant.bites, every))] == []
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20


def test_an_edit_changes_one_leaf_and_makes_what_is_required_around_it() -> None:
    schema, spec = spec_schema(), BASES["split"].build()["spec"]
    changed = put(spec, schema, "gateway.keys[].limits.maxConcurrent", 5)
    assert get(changed, "gateway.keys[].limits.maxConcurrent") == 5
    assert get(changed, "gateway.keys[].name")
    assert get(spec, "gateway") is None


def test_a_seed_says_what_is_played() -> None:
    assert [case.name for case in cases(3)] == [case.name for case in cases(3)]
    assert [case.name for case in cases(3)] != [case.name for case in cases(4)]
    assert chosen(3, quick=True).leaves == QUICK_LEAVES


def test_an_edit_is_printed_so_that_it_can_be_applied(every: list[Case]) -> None:
    edit = next(case for case in every if case.leaf == "engine.dtype" and case.sort == "valid").edit()
    assert "kind: InferenceDeployment" in edit
    assert "dtype: " in edit


@pytest.mark.parametrize(
    ("path", "effect"),
    [("engine.dtype", "engines"), ("gateway.limits.queue.maxWait", "objects"), ("roles[].replicas", None)],
)
def test_the_longest_path_says_what_a_change_does(path: str, effect: str | None) -> None:
    assert effect_of(path) == effect


@pytest.mark.parametrize(
    ("schema", "valid", "bad"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 3}, 2, 4),
        ({"type": "boolean"}, True, "yes"),
        ({"type": "string", "enum": ["a", "b"]}, "b", "Nonsense"),
        ({"type": "string", "pattern": "^v[0-9]{2}$"}, "v00", 7),
        ({"type": "array", "items": {"type": "integer", "minimum": 1}}, [2], [0]),
    ],
)
def test_a_schema_says_what_is_valid_and_what_is_not(schema: dict[str, object], valid: object, bad: object) -> None:
    found = values(schema)
    assert valid in found.valid
    assert bad in found.invalid


def test_a_schema_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="not known"):
        values({"type": "null"})
